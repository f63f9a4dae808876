// Products of e4m3 rows of x with e4m3 weights (kFp8Block128), for many rows: Hopper's matrix unit (grouped_wgmma.cu), and the rows
// around it (fp8_rows.cu). Asynchronous on `stream`, addresses on the device.
//
// Rows of x are quantised as DeepSeek-V3's own inference does: a row's 128 columns share a scale = max |x| / 448, f32. They lie in tiles of
// 64 rows and 128 columns: 8192 bytes of codes [half of the columns][row][64 bytes, in the order and swizzle of weight_layout.h] and 64
// scales. Tiles of the same rows follow each other along the columns. Columns are multiples of 128 (fp8_columns()).
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/kernels/product_kernels.h"

namespace dg::cuda {

constexpr int kFp8TileRows = 64, kFp8TileColumns = 128, kFp8TileBytes = kFp8TileRows * kFp8TileColumns;
constexpr int kFp8ItemRows = 128;

// Codes and scales of tiles.
struct Fp8Rows {
  uint8_t* codes;  // (row tiles, columns / 128, 8192)
  float* scales;   // (row tiles, columns / 128, 64)
};
constexpr int64_t fp8_code_bytes(int64_t rows, int64_t columns) {
  return (rows + kFp8TileRows - 1) / kFp8TileRows * kFp8TileRows * columns;
}
constexpr int64_t fp8_scale_count(int64_t rows, int64_t columns) { return fp8_code_bytes(rows, columns) / kFp8TileColumns; }

// Rows of x (f32) to tiles: row t to row t, or, with `place_of`, to the rows place_of[t * copies + k], k below copies, less those below 0.
struct Fp8QuantiseArgs {
  Fp8Rows to;
  const float* x;
  int64_t ldx, rows, columns;
  const int32_t* place_of;
  int32_t copies;
};
void launch_fp8_quantise(const Fp8QuantiseArgs& args, cudaStream_t stream);

// The same codes as plain rows for cuBLASLt: (rows, columns) bytes, scales (columns / 128, ld_scales).
void launch_fp8_quantise_rows(uint8_t* codes, float* scales, int64_t ld_scales, const float* x, int64_t ldx, int64_t rows, int64_t columns,
                              cudaStream_t stream);
// A prepared weight as plain rows in the same order of columns, and its scales at 4 floats' multiples from row to row.
void launch_fp8_weight_rows(uint8_t* codes, float* scales, int64_t ld_scales, const uint8_t* weight, int64_t aux_offset, int64_t tile_bytes,
                            int64_t out, int64_t in, cudaStream_t stream);

// Up to 128 rows of x that meet one weight; `begin` is a multiple of 64.
struct Fp8Item {
  int32_t expert, begin, count;
};
enum class Fp8Output : int32_t {
  kRows,     // f32
  kGluRows,  // silu(gate x) * up x, f32
  kGlu,      // the same, quantised to tiles; `out` a multiple of 128
  kPairs,    // bf16, row pair_at[row]
};
// One product for each item. Matrices: `experts`' (gate and up, or `matrix`), or data[] where there are none.
struct Fp8ProductArgs {
  const ExpertMatrices* experts;
  const uint8_t* data[2];
  int32_t matrix;
  int64_t aux_offset, tile_bytes;
  int32_t out, columns;
  const Fp8Item* items;  // null: all rows of x, in order
  const int32_t* item_count;
  int32_t rows;
  Fp8Rows x;
  void* to;  // kGlu: codes
  int64_t ld_to;
  float* to_scales;  // kGlu
  const int32_t* pair_at;
};
// For compute capability 9.0 only (and built for 90a): nothing is written elsewhere.
void launch_fp8_product(Fp8Output output, const Fp8ProductArgs& args, int multiprocessors, cudaStream_t stream);

// Sorts the pairs (token, slot) by expert, each expert's from a multiple of 64 rows on; only experts [first, first + experts).
struct Fp8SortArgs {
  const int32_t* ids;
  int64_t ld_ids;
  int32_t tokens, top_k, first, experts;
  int32_t* place_of;  // (tokens * top_k) row of each pair; -1: not an expert of ours
  int32_t* pair_at;   // (most rows) pair of each row in use
  Fp8Item* items;
  int32_t* item_count;
};
constexpr int64_t fp8_most_rows(int64_t pairs, int64_t experts) {
  const int64_t hit = pairs < experts ? pairs : experts;
  return (pairs + hit * (kFp8TileRows - 1) + kFp8TileRows - 1) / kFp8TileRows * kFp8TileRows;
}
constexpr int64_t fp8_most_items(int64_t pairs, int64_t experts) { return pairs / kFp8ItemRows + (pairs < experts ? pairs : experts); }
void launch_fp8_sort(const Fp8SortArgs& args, cudaStream_t stream);

// out[t] += sum over k, in order, of weights[t][k] * y[t * top_k + k] (bf16), less the pairs that have no place.
struct Fp8CombineArgs {
  float* out;
  int64_t ld_out;
  const float* weights;
  int64_t ld_weights;
  const int32_t* place_of;
  int32_t top_k;
  const void* y;  // (tokens * top_k, dim)
  int64_t tokens, dim;
};
void launch_fp8_combine(const Fp8CombineArgs& args, cudaStream_t stream);

}  // namespace dg::cuda
