// What a checkpoint says of one tensor: name, type, shape and where its bytes lie.
//
// A tensor is a matrix (out, in) or a vector whose rows lie one after the other in the published layout: `format` when it
// is set (the block formats of GGUF files: q8_0, q4_0, q4_k, ...), else plain elements of `dtype`. Two things of GGUF files
// break the rule "bytes [offset, offset + bytes) are the rows in order":
//  - rows of attention projections that were permuted for ggml's rope (`rotary_rows`),
//  - MLA's kv_b_proj when the file only has its two halves, one of them transposed (`parts`).
// TensorIndex::read_rows delivers rows in order for all of them, so loading needs to know neither; only who reads
// `offset` and `bytes` itself must look at contiguous().
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "quant/format.h"
#include "tensor/dtype.h"

namespace dg {

struct TensorInfo {
  std::string name;                // valid UTF-8 without control characters, so it can be printed; of GGUF tensors Hugging Face's name
  Dtype dtype = Dtype::kF32;       // of plain elements; without meaning (kU8) when `format` is set
  std::vector<int64_t> shape;      // outermost first, (out, in); empty for a scalar; the product with dtype_bytes fits 63 bits
  int file = 0;                    // index into TensorIndex::file
  uint64_t offset = 0;             // of the first byte, from the start of the file; not necessarily aligned to the dtype
  uint64_t bytes = 0;              // in the file; a tensor made of parts: of both together, the first begins at `offset`
  const Format* format = nullptr;  // null: plain elements of `dtype`. Never has separate scales; `in` is whole packs

  // Rows per head of a permuted projection, 0: rows lie in order. Row r of a head lies at 2 r in its first half (r < n / 2)
  // and at 2 (r - n / 2) + 1 in its second. A vector (bias) is permuted by element.
  int64_t rotary_rows = 0;

  // kv_b_proj (heads * (nope + v), kv_lora) from attn_k_b (heads, kv_lora, nope), transposed within each head, and attn_v_b
  // (heads, v, kv_lora). Its rows are computed while reading; their type is `dtype` (bf16, or f32 when both parts are).
  struct Part {
    int file = 0;
    uint64_t offset = 0, bytes = 0;
    const Format* format = nullptr;  // never null
    int64_t rows = 0, in = 0;        // of one head
  };
  std::vector<Part> parts;  // empty, or {k_b, v_b}

  bool contiguous() const { return rotary_rows == 0 && parts.empty(); }
};

// Name of the element type for messages: "BF16", "q4_k".
inline const char* type_name(const TensorInfo& info) { return info.format ? info.format->name : dtype_name(info.dtype); }

}  // namespace dg
