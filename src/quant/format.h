// Format: how the elements of a weight are stored. One header per format carries its layout, decode and encode;
// formats.cpp lists them. Backends, the quantiser, the op table and the planner read only this.
//
// A weight is an (out, in) matrix stored row by row. A row is a sequence of packs of `pack_elements` elements in
// `pack_bytes` bytes; a ragged last pack is padded with zeros. Scales, if any, lie in a separate matrix with one value per
// block of `scale_rows` x `scale_cols` elements (scale_cols 0: the whole row); q8_0 keeps its scale inside the pack.
//
// Decode functions are `static inline` on purpose: the CPU kernels compile them once per instruction set, and a shared
// (COMDAT) copy would leak AVX-512 code into the portable path. For the same reason the Format constants, which point to
// them, are defined once, in formats.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

namespace dg {

struct Weight;

enum class ScaleType : uint8_t { kNone, kF32, kF16 };

struct Format {
  const char* name;
  int pack_elements;
  int pack_bytes;
  ScaleType scale_type;
  int scale_rows, scale_cols;

  // out[0, n) = elements [col, col + n) of `row`; col is a multiple of pack_elements.
  void (*decode)(const Weight& w, int64_t row, int64_t col, int64_t n, float* out);
  // Encodes `rows` x `cols` floats (row-major, tightly packed). `rows` starts at a scale block: for a format with
  // scale_rows > 1 it must be a multiple of scale_rows except at the end of the matrix.
  void (*encode)(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);
  // Formats whose elements are scale * code + offset with a 4-bit code and one (scale, offset) per group of a multiple of 32
  // elements: codes of [col, col + n) one per byte, and for each 32 of them scale and offset. n is a multiple of 32 except at
  // the end of a row. Null for all others. Backends repack these without a detour over floats.
  void (*codes4)(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float* offset) = nullptr;
  bool centred4 = false;  // the offset of codes4 is always -8 * scale
  // Formats whose elements are scale * table4[code] instead, 16 values of at most 127: their codes4 writes no offsets.
  const int8_t* table4 = nullptr;

  int64_t row_bytes(int64_t in) const { return (in + pack_elements - 1) / pack_elements * pack_bytes; }
  int64_t data_bytes(int64_t out, int64_t in) const { return out * row_bytes(in); }
  int64_t scale_bytes_each() const { return scale_type == ScaleType::kF32 ? 4 : scale_type == ScaleType::kF16 ? 2 : 0; }
  int64_t scale_row_count(int64_t out) const { return (out + scale_rows - 1) / scale_rows; }
  int64_t scale_col_count(int64_t in) const { return scale_cols == 0 ? 1 : (in + scale_cols - 1) / scale_cols; }
  int64_t scale_bytes(int64_t out, int64_t in) const {
    return scale_type == ScaleType::kNone ? 0 : scale_row_count(out) * scale_col_count(in) * scale_bytes_each();
  }
  int64_t total_bytes(int64_t out, int64_t in) const { return data_bytes(out, in) + scale_bytes(out, in); }
};

// A weight matrix (out, in) in some format; a view, owned by the weight store.
struct Weight {
  const Format* format = nullptr;
  const std::byte* data = nullptr;
  const std::byte* scales = nullptr;
  int64_t out = 0, in = 0;
  const int32_t* columns = nullptr;  // (in), optional: column k multiplies x[columns[k]] (GPTQ act-order); null: x[k]
  bool prepared = false;             // laid out by Backend::prepare; then only that backend may read `data`

  bool valid() const { return data != nullptr; }
  int64_t row_bytes() const { return format->row_bytes(in); }
  int64_t bytes() const { return format->total_bytes(out, in); }
  void decode(int64_t row, int64_t col, int64_t n, float* to) const { format->decode(*this, row, col, n, to); }
};

}  // namespace dg
