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
#include "quant/panel.h"

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

// Packs one row of activations into its tile of 16 rows for products with panels of `kind` (kernels/panel.h). Rows of a tile
// that are never packed may hold anything.
struct PackRow {
  PanelKind kind;
  const float* x;
  int64_t in;
  const int32_t* columns;  // optional: column k of the weight takes x[columns[k]]
  float* scratch;          // (in) when there are columns
  void* tile;              // activation_bytes, 64-byte aligned
  int64_t row;             // in the tile
};

// out[t][row] = w[row] . x[t] (+ bias[row]); with `gate`: silu(gate[row] . x[t]) * (w[row] . x[t]). Prepared weights of one
// kind and shape (rows, in); ranges are of panels of 16 rows.
struct PanelProduct {
  PanelKind kind;
  const int8_t* table;        // Format::table4 of w and gate
  const std::byte *w, *gate;  // gate null for a plain product
  int64_t rows, in;
  const void* x;  // ceil(tokens / 16) tiles
  int64_t tokens;
  float* out;  // row t at out + (out_rows ? out_rows[t] : t) * out_stride
  const int32_t* out_rows;
  int64_t out_stride;
  const float* bias;  // (rows), optional
  float* scratch;     // kPanelScratchFloats
  // A row of the result must not depend on how many others there are. Else a family may do better than the int8 codes of large
  // batches with few tokens and 4-bit weights.
  bool batch_invariant;
};
constexpr int64_t kPanelScratchFloats = (4 * 8192 + 8 * 1024 + 32 * 16 * 1024) / 4 + 64;

// Rows per step of a matmul: ranges given to it start at a multiple, so that blocks are whole.
constexpr int64_t kMatmulRows = 8;
constexpr int64_t kMatmulDepth = 512;  // elements of k decoded at a time: 8 rows of 2 KiB stay in L1
constexpr int64_t kMatmulMaxTokens = 192;

// Element types of the paged cache (device/cache_format.h).
enum class CacheElement : uint8_t { kF32, kBf16, kF16, kFp8, kInt8 };

// One part of the paged cache as seen by one sequence: the row of position p is at
// data + blocks[p / block_tokens] * block_bytes + p % block_tokens * row_bytes. Columns count from `column` on.
struct CacheView {
  const void* data;
  CacheElement element;
  int64_t block_bytes, row_bytes, block_tokens;
  int64_t width, column;  // of the whole row; the first column in use
  const int32_t* blocks;
};

// Positions of the cache that attention handles at a time. Tiles start at position 0 whatever the query rows are, which
// makes a row's result independent of how the prefill was cut.
constexpr int64_t kTile = 64;

// Some query rows of one sequence, for all heads of some kv heads, over positions [begin, end). Query head
// kv_head * group + i uses columns kv_head * k_width and kv_head * v_width of the caches. Row i sees the first `visible` + i
// positions.
struct AttentionTask {
  const float* q;
  int64_t q_row_stride, q_head_stride;
  float* out;
  int64_t out_row_stride, out_head_stride;
  int64_t rows, kv_heads, group;
  int64_t visible;
  int64_t begin, end;  // begin is a multiple of kTile; end at most visible + rows - 1
  int64_t cached;      // positions that may be read ahead of their use: a hint for the next task of the same sequence
  CacheView k, v;      // the same data and column (MLA): v is the first v_width columns of k
  int64_t k_width, v_width;
  float scale;
  bool partial;    // out is what attention_merge takes: the sum without division, then the row's maximum and sum of weights
  float* scratch;  // attention_scratch_floats
};

// A row's partial results over consecutive ranges of positions, in order, to its result.
struct AttentionMerge {
  const float* parts;
  int64_t splits, split_stride;  // floats from one range to the next
  int64_t v_width;
  float* out;  // (v_width)
};

// Rows of one prefill slice for one head: k and v of each tile are made from the latent rows.
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
  float* scratch;  // mla_prefill_scratch_floats
};

// The products of absorbed MLA for one head. Absorb: out[t] = Wk^T x[t][0, nope) followed by x[t][nope, nope + rope).
// Output: out[t] = Wv x[t].
struct MlaProjectTask {
  const float* x;  // token t at x + (x_rows ? x_rows[t] : t) * x_stride
  const int32_t* x_rows;
  int64_t x_stride;
  float* out;  // addressed like x
  const int32_t* out_rows;
  int64_t out_stride;
  int64_t tokens;
  Matrix kv_b;
  int64_t head, nope, rope, v_dim, kv_lora;
  CacheElement element;  // of the cache: with f32 and f16 the product is made in f32
  float* scratch;        // mla_project_scratch_floats
};

// One measurement of what an instruction set can do at most on the calling thread (kernels/peaks.h).
enum class PeakKind : uint8_t { kRead, kF32, kBf16, kInt8, kBf16FromL2, kInt8FromL2 };
struct PeakRun {
  PeakKind kind;
  double seconds;                     // how long it runs; kRead runs over `memory` once instead
  std::byte* memory;                  // 64-byte aligned; kRead: read; tiles: at least 4096 bytes, overwritten
  int64_t bytes;                      // of it
  const char* instruction = nullptr;  // set to what was run
};

struct KernelTable {
  const char* isa;
  const Decoder* decoders;
  int decoder_count;

  void (*matmul)(const MatmulArgs&, int64_t begin, int64_t end);
  void (*panel_pack)(const Weight& rows, int64_t first, int64_t out, std::byte* to);  // quant/panel.h
  int64_t (*activation_bytes)(PanelKind, int64_t in);                                 // of one tile of 16 rows
  void (*pack_row)(const PackRow&);
  void (*panel_product)(const PanelProduct&, int64_t begin, int64_t end);
  void (*attention)(const AttentionTask&);
  void (*attention_merge)(const AttentionMerge&);
  void (*mla_prefill)(const MlaPrefillTask&);
  void (*mla_absorb)(const MlaProjectTask&);
  void (*mla_output)(const MlaProjectTask&);
  void (*cache_write)(const float* values, int64_t width, CacheElement element, void* row);
  // Single rows of n elements.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*add)(const float* a, const float* b, int64_t n, float* out);
  void (*add_scaled)(const float* x, float scale, int64_t n, float* out);  // out += scale * x
  void (*act_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*rope)(float* x, const float* cosine, const float* sine, int64_t half, bool interleaved);
  void (*convert)(const void* from, Element from_type, void* to, Element to_type, int64_t n);
  // Operations per second (multiply and add count as two), of kRead the bytes read; 0: the family has no such instruction.
  double (*peak)(PeakRun&);
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
constexpr int64_t kAttentionPairs = 256;  // (row, head) pairs per kv head and attention task, at most
constexpr int64_t kMlaRows = 1024;        // rows per task of MLA prefill: making k and v costs as much as 400 rows use
constexpr int64_t kMlaTokens = 64;        // tokens of an absorbing product that share a pass over the weight
static inline constexpr int64_t pad32(int64_t n) { return (n + 31) / 32 * 32; }
static inline constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Partial results: v_width sums, maximum, sum of weights.
static inline constexpr int64_t partial_floats(int64_t v_width) { return pad16(v_width + 2); }
// Portable code, per pair: pointers to q and out, max, sum, visible count.
static inline constexpr int64_t flash_rows_floats(int64_t pairs) { return pad16(pairs) * 8 + 64; }
// Tiles: weights, packed queries, sums, and max, sum, visible of every 16 pairs.
static inline constexpr int64_t tile_rows_floats(int64_t pairs, int64_t k_width, int64_t v_width) {
  return pad16(pairs) / 16 * (512 + 8 * pad32(k_width) + 16 * pad32(v_width) + 48);
}
// Tiles: scores, and a tile of keys and values in bf16, with two rows beside.
static inline constexpr int64_t tile_cache_floats(int64_t k_width, int64_t v_width) {
  return 16 * kTile + 32 * (pad32(k_width) + pad32(v_width)) + pad32(v_width) + 512;
}
static inline constexpr int64_t attention_scratch_floats(int64_t pairs, int64_t kv_heads, int64_t k_width, int64_t v_width) {
  return larger(
      flash_rows_floats(pairs * kv_heads) + 4 * kTile + kTile * (2 * k_width + v_width) + 64,
      kv_heads * tile_rows_floats(pairs, k_width, v_width) + tile_cache_floats(kv_heads * pad32(k_width), kv_heads * pad32(v_width)) + 64);
}
static inline constexpr int64_t mla_prefill_scratch_floats(int64_t rows, int64_t nope, int64_t rope, int64_t v_dim, int64_t kv_lora) {
  // portable: k, v and v transposed, the latent rows in both orders, four rows of weights
  const int64_t portable =
      flash_rows_floats(rows) + 4 * kTile + kTile * (nope + rope + 2 * v_dim) + kTile * (2 * kv_lora + rope) + 4 * kv_lora;
  // tiles: kv_b of the head in bf16 and one row in f32, the latent rows, four products
  const int64_t weights = (pad32(nope) + pad32(v_dim)) * pad32(kv_lora) / 2 + 16 * pad32(kv_lora) / 2 + pad32(kv_lora);
  const int64_t tiles =
      tile_rows_floats(rows, nope + rope, v_dim) + tile_cache_floats(nope + rope, v_dim) + weights + kTile * pad32(kv_lora) / 2 + 1024;
  return larger(portable, tiles) + 64;
}
static inline constexpr int64_t mla_project_scratch_floats(int64_t nope, int64_t kv_lora) {
  const int64_t lora = pad32(kv_lora), groups = kMlaTokens / 16;
  // portable: 16 rows of weights; tiles: packed tokens, sums, 32 rows of weights packed and as rows, one in f32
  return larger(16 * lora, groups * (8 * larger(pad32(nope), lora) + 16 * lora) + 32 * lora + 2 * lora + 512) + 64;
}

}  // namespace dg
