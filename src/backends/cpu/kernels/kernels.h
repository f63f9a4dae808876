// The boundary between the CPU backend (portable code) and the kernels, which are compiled once per instruction set from
// one source (kernels.cpp). Only plain data crosses it: the kernel files include no C++ library header and define nothing
// with external linkage but one KernelTable, so that no AVX-512 copy of a shared inline function can end up in the
// portable path (tests/ops/isa_leak.sh looks at the objects).
//
// A later family (AMX, AVX-512 VNNI, SVE2, RVV) is one more translation unit whose table starts from a family's entries
// and replaces those it does better.
#pragma once
#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace dg {

using DecodeFn = void (*)(const Weight& w, int64_t row, int64_t col, int64_t n, float* out);

struct Decoder {
  const char* format;
  DecodeFn decode;
};

// Element types of activations and caches.
enum class Element : uint8_t { kF32, kBf16, kF16 };

struct Matrix {
  const Weight* weight;
  DecodeFn decode;
};

// out[t][row] = w[row] . x[t] (+ bias[row]) for rows [begin, end); with `gate`: silu(gate[row] . x[t]) * (w[row] . x[t]).
struct MatmulArgs {
  Matrix w, gate;  // gate.weight is null for a plain product
  const float* x;  // row t of x is x + (x_rows ? x_rows[t] : t) * x_stride
  const int32_t* x_rows;
  int64_t x_stride;
  float* out;  // addressed like x
  const int32_t* out_rows;
  int64_t out_stride;
  int64_t tokens;
  int64_t first_row;  // row r of the product is row first_row + r of the weight
  const float* bias;  // optional
  float* scratch;     // matmul_scratch_floats
};

// Rows per step of a matmul: ranges given to it start at a multiple, so that blocks are whole.
constexpr int64_t kMatmulRows = 8;
constexpr int64_t kMatmulDepth = 512;  // elements of k decoded at a time: 8 rows of 2 KiB stay in L1
constexpr int64_t kMatmulMaxTokens = 192;

// One part of the paged cache as seen by one sequence: element c of position p is at
// data + (blocks[p / block_tokens] * block_stride + p % block_tokens * row_stride + c).
struct CacheView {
  const void* data;
  Element element;
  int64_t block_stride, row_stride, block_tokens;
  const int32_t* blocks;
};

// Positions of the cache that attention handles at a time. Tiles start at position 0 whatever the query rows are, which
// makes a row's result independent of how the prefill was cut.
constexpr int64_t kTile = 64;

// Query rows [row_begin, row_end) x heads [head_begin, head_end) of one sequence against one kv head. Row i of the slice
// sees the first `visible` + i positions.
struct AttentionTask {
  const float* q;
  int64_t q_row_stride, q_head_stride;
  float* out;
  int64_t out_row_stride, out_head_stride;
  int64_t row_begin, row_end, head_begin, head_end;
  int64_t visible;
  CacheView k, v;  // data points at the first element of the kv head
  int64_t k_width, v_width;
  float scale;
  float* scratch;  // attention_scratch_floats
};

// All rows of one prefill slice for one head: k and v of each tile are made from the latent rows.
struct MlaPrefillTask {
  const float* q;
  int64_t q_row_stride;
  float* out;
  int64_t out_row_stride;
  int64_t rows, visible;  // row i sees visible + i positions
  CacheView cache;
  Matrix kv_b;
  int64_t head, nope, rope, v_dim, kv_lora;
  float scale;
  float* scratch;
};

// Attention of query vectors already in latent space: v is the first kv_lora elements of the cache row itself.
struct MlaDecodeTask {
  const float* q;                       // (pairs, kv_lora + rope)
  float* out;                           // (pairs, kv_lora)
  int64_t pair_begin, pair_end, heads;  // pair = row * heads + head; row i sees visible + i positions
  int64_t visible;
  CacheView cache;
  int64_t kv_lora, rope;
  float scale;
  float* scratch;
};

// For one head: latent[t] = Wk^T q_nope[t] followed by q_rope[t].
struct MlaAbsorbTask {
  const float* q;  // this head's query (nope + rope) of token t at q + q_rows[t] * q_row_stride
  const int32_t* q_rows;
  int64_t q_row_stride;
  float* latent;  // (tokens, kv_lora + rope), rows latent_stride apart
  int64_t latent_stride;
  int64_t tokens;
  Matrix kv_b;
  int64_t head, nope, rope, v_dim, kv_lora;
  float* scratch;
};

struct KernelTable {
  const char* isa;
  const Decoder* decoders;
  int decoder_count;

  void (*matmul)(const MatmulArgs&, int64_t begin, int64_t end);
  void (*attention)(const AttentionTask&);
  void (*mla_prefill)(const MlaPrefillTask&);
  void (*mla_decode)(const MlaDecodeTask&);
  void (*mla_absorb)(const MlaAbsorbTask&);
  // Single rows of n elements.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*add_scaled)(const float* x, float scale, int64_t n, float* out);  // out += scale * x
  void (*act_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*rope)(float* x, const float* cosine, const float* sine, int64_t half, bool interleaved);
  void (*convert)(const void* from, Element from_type, void* to, Element to_type, int64_t n);
};

// Scratch of the kernels in floats, per worker.
static inline constexpr int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }
// Tokens that share one pass over a block of rows: their x should stay in L2.
static inline constexpr int64_t matmul_token_block(int64_t in) {
  int64_t fit = (int64_t{3} << 17) / (in > 0 ? in : 1) / 3 * 3;  // 1.5 MiB of x
  return fit < 24 ? 24 : fit > kMatmulMaxTokens ? kMatmulMaxTokens : fit;
}
static inline constexpr int64_t matmul_scratch_floats(int64_t tokens, int64_t in, bool gated) {
  int64_t block = matmul_token_block(in);
  if (tokens < block) block = tokens;
  // decoded rows; accumulators (16 lanes per row and token), tail of x, two pointers
  return kMatmulRows * kMatmulDepth + block * (kMatmulRows * 16 * (gated ? 2 : 1) + 16 + 4) + 64;
}
constexpr int64_t kRowBlock = 64;      // (row, head) pairs per attention task, at most
constexpr int64_t kMlaRowBlock = 128;  // and per task of MLA decode: all heads of V3 share one read of the latent rows
// Per pair: pointers to q and out, max, sum, visible count.
static inline constexpr int64_t flash_rows_floats(int64_t pairs) { return pad16(pairs) * 8 + 64; }
static inline constexpr int64_t attention_scratch_floats(int64_t k_width, int64_t v_width) {
  return flash_rows_floats(kRowBlock) + 4 * kTile + kTile * (k_width + v_width) + 4 * k_width + 64;
}
static inline constexpr int64_t mla_prefill_scratch_floats(int64_t rows, int64_t nope, int64_t rope, int64_t v_dim, int64_t kv_lora) {
  return flash_rows_floats(rows) + 4 * kTile + kTile * (nope + rope + v_dim) + kTile * (kv_lora + rope) +
         matmul_scratch_floats(kTile, kv_lora, false) + 64;
}
static inline constexpr int64_t mla_decode_scratch_floats(int64_t kv_lora, int64_t rope) {
  return flash_rows_floats(kMlaRowBlock) + 4 * kTile + 2 * kTile * (kv_lora + rope) + 64;
}
static inline constexpr int64_t mla_absorb_scratch_floats(int64_t nope, int64_t kv_lora) { return nope * kv_lora + 64; }

}  // namespace dg
