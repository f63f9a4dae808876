// Launchers of the product kernels. Plain functions: asynchronous on `stream`, addresses on the device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/weight_layout.h"

namespace dg::cuda {

constexpr int kProductWarps = 8;        // of a CTA
constexpr int kProductMostTokens = 64;  // of one product_kernel
constexpr size_t kProductSharedBytes = 48 << 10;

// out = x W^T for up to 64 rows of x (product_tile.cuh) and up to three weights W of one width, whose tiles stand in one row. A CTA's 8
// warps are row_tiles tiles of 16 rows times 8 / row_tiles parts of the columns; `splits` CTAs share a tile.
struct ProductSegment {
  const uint8_t* data;
  const uint8_t* aux;
  float* to;
  int64_t ld_to;
  const float* bias;   // or null
  int32_t out, first;  // rows; tiles before it
};
struct ProductArgs {
  ProductSegment segments[3];  // with glu gate and up, both from tile 0, and `to` of gate
  int32_t segment_count;
  int64_t tile_bytes;
  int32_t chunks, tiles;
  const void* x;  // (tokens, ldx): bf16, zeros behind the last column to a whole chunk; or f32, whole chunks, 16-byte rows
  uint32_t ldx;
  int32_t tokens;
  float* partial;     // (splits, weights, tokens, tiles * 16) when splits > 1
  int32_t row_tiles;  // 1, 2, 4, 8
  bool early;         // the weights are there before the kernels issued earlier are done (launch.cuh)
};
struct ProductShape {
  WeightKind kind;
  bool glu;     // to = silu(gate x) * up x
  bool f32_x;   // tiles_n == 1 only
  int tiles_n;  // tiles of 8 tokens: 1, 2, 4, 8
  int splits;
};
// Shared memory of a CTA; at most kProductSharedBytes, which limits row_tiles from below.
constexpr size_t product_shared_bytes(int row_tiles, int weights, int tiles_n) {
  return static_cast<size_t>((kProductWarps - row_tiles) * weights * tiles_n * 4 * 32) * 4;
}
template <WeightKind kKind>
void launch_product_kind(const ProductShape& shape, const ProductArgs& args, cudaStream_t stream);

// The same for experts: work items of up to 8 * tiles_n (token, expert) pairs, counted on the device; CTAs beyond the count exit.
struct ExpertMatrices {
  const uint8_t* data[3];     // gate, up, down
  const int32_t* columns[3];  // or null
};
struct GroupedItem {
  int32_t expert, begin, count;  // pairs [begin, begin + count) of the sorted list
};
struct GroupedArgs {
  const ExpertMatrices* experts;
  const GroupedItem* items;
  const int32_t* item_count;
  int32_t most_items;     // grid: at least *item_count
  const int32_t* row_of;  // (pairs) row of x of each pair; null: the pair itself
  int32_t matrix;         // 0, 1, 2 of ExpertMatrices; with glu: 0 and 1
  int64_t aux_offset, tile_bytes;
  int32_t out, chunks, tiles;
  const void* x;  // bf16, whole chunks
  uint32_t ldx;
  void* to;  // (pairs, ld_to): f32; with glu bf16
  int64_t ld_to;
  int32_t row_tiles;
  bool early;  // all but x was there before the kernel issued just before, which calls start_next() after its wait (launch.cuh)
};
struct GroupedShape {
  WeightKind kind;
  bool glu;
  int tiles_n;  // 1, 2 or 8: the most tokens of an item
};
template <WeightKind kKind>
void launch_grouped_kind(const GroupedShape& shape, const GroupedArgs& args, cudaStream_t stream);

// x_bf16.cu
// to (rows, ld): columns [0, in) of x, column k from x[columns[k]] where `columns` is not null, then zeros.
void launch_to_bf16(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, void* to, int64_t ld,
                    cudaStream_t stream);
// The second pass of ProductArgs with splits > 1: sums over splits of partial, then as in one pass.
void launch_finish_product(const ProductArgs& args, bool glu, int splits, cudaStream_t stream);
// out[t][i] = silu(gate[t][i]) * up[t][i]; `out` may be `up`.
void launch_silu_mul(float* out, int64_t ld_out, const float* gate, int64_t ld_gate, const float* up, int64_t ld_up, int64_t rows,
                     int64_t columns, cudaStream_t stream);
// up = silu(gate) * up in bf16; columns and rows' distances are multiples of 8, addresses of 16 bytes.
void launch_silu_mul_bf16(void* up, int64_t ld_up, const void* gate, int64_t ld_gate, int64_t rows, int64_t columns, cudaStream_t stream);
void launch_add_bias(float* out, int64_t ld, const float* bias, int64_t rows, int64_t columns, cudaStream_t stream);
// to (rows, in) = x (rows, columns[k]), f32.
void launch_gather_columns(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, float* to, cudaStream_t stream);

// f32_product.cu: exact, by f32 FMA. `weight` (out, in), 4-byte aligned; column k multiplies x[columns[k]] where given. `early`: as in
// ProductArgs.
void launch_f32_product(const float* weight, int64_t out, int64_t in, const int32_t* columns, const float* x, int64_t ldx, int64_t tokens,
                        float* to, int64_t ld_to, const float* bias, bool early, cudaStream_t stream);

}  // namespace dg::cuda
