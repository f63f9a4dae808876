// The kernels around accumulate() and their launchers, instantiated per kind by product_*.cu.
#pragma once
#include <cstdio>
#include <cstdlib>

#include "backends/cuda/kernels/product_kernels.h"
#include "backends/cuda/kernels/product_tile.cuh"

namespace dg::cuda {
namespace {

extern __shared__ __align__(16) uint8_t product_shared[];  // the warps' rings, then the sums of parts

// [begin, end) of part `part` of `parts`.
__device__ __forceinline__ int part_begin(int chunks, int part, int parts) {
  return static_cast<int>(static_cast<int64_t>(chunks) * part / parts);
}

// The segment of a tile.
__device__ __forceinline__ int segment_of(const ProductArgs& a, int tile) {
  int s = 0;
  for (int i = 1; i < a.segment_count; i++) s += tile >= a.segments[i].first;
  return s;
}

template <WeightKind kKind, int kWeights, int kN, bool kF32X>
__global__ void __launch_bounds__(kProductWarps * 32, kN >= 4 ? 1 : 2) product_kernel(const ProductArgs a) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts_in_cta = kProductWarps / a.row_tiles;
  const int wanted = blockIdx.x * a.row_tiles + warp % a.row_tiles, tile = min(wanted, a.tiles - 1);
  const bool active = wanted < a.tiles;
  uint8_t* const ring = product_shared + warp * (kRingBytes<kKind, kWeights> / kProductWarps);
  const int splits = static_cast<int>(gridDim.y), split = static_cast<int>(blockIdx.y), begin = part_begin(a.chunks, split, splits);
  const Chunks chunks{begin, active ? part_begin(a.chunks, split + 1, splits) : begin, warp / a.row_tiles, parts_in_cta};
  const int chosen = kWeights == 1 ? segment_of(a, tile) : 0, own = tile - a.segments[chosen].first;  // own: within the segment

  float acc[kWeights][kN][4] = {};
  {
    uint32_t x_offset[kN];
#pragma unroll
    for (int n = 0; n < kN; n++) x_offset[n] = static_cast<uint32_t>(min(n * 8 + lane / 4, a.tokens - 1)) * a.ldx + lane % 4 * 8;
    LaneTile<kKind> tiles[kWeights];
#pragma unroll
    for (int m = 0; m < kWeights; m++) {
      const ProductSegment& s = a.segments[chosen + m];
      tiles[m].set(s.data, s.aux, own, a.tile_bytes, s.out, a.chunks, lane);
    }
    if (!a.early) wait_for_previous();
    accumulate<kKind, kN, kWeights, kF32X>(tiles, chunks, a.x, x_offset, acc, ring, lane, a.early);
    if (!a.early) start_next();
  }
  if (!reduce_parts(acc, a.row_tiles, reinterpret_cast<float*>(product_shared + kRingBytes<kKind, kWeights>)) || !active) return;
#pragma unroll
  for (int m = 0; m < kWeights; m++) scale_rows<kKind>(a.segments[chosen + m].aux, own, lane, acc[m]);

  const ProductSegment& s = a.segments[chosen];
#pragma unroll
  for (int n = 0; n < kN; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int token = n * 8 + lane % 4 * 2 + i % 2, row = own * kTileRows + lane / 4 + i / 2 * 8;
      if (token >= a.tokens) continue;
      if (gridDim.y > 1) {
        const int place = tile * kTileRows + lane / 4 + i / 2 * 8;
#pragma unroll
        for (int m = 0; m < kWeights; m++)
          a.partial[((static_cast<int64_t>(blockIdx.y) * kWeights + m) * a.tokens + token) * (a.tiles * kTileRows) + place] = acc[m][n][i];
      } else if (row < s.out) {
        float v = acc[0][n][i];
        if constexpr (kWeights == 2) v = silu(v) * acc[1][n][i];
        else if (s.bias) v += __ldg(s.bias + row);
        s.to[token * s.ld_to + row] = v;
      }
    }
}

template <WeightKind kKind, int kWeights, int kN>
__device__ __forceinline__ void grouped_item(const GroupedArgs& a, const GroupedItem& item) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = kProductWarps / a.row_tiles;
  const int wanted = blockIdx.x * a.row_tiles + warp % a.row_tiles, tile = min(wanted, a.tiles - 1), part = warp / a.row_tiles;
  const bool active = wanted < a.tiles;
  uint8_t* const ring = product_shared + warp * (kRingBytes<kKind, kWeights> / kProductWarps);
  const Chunks chunks{0, active ? a.chunks : 0, part, parts};
  const ExpertMatrices& expert = a.experts[item.expert];

  float acc[kWeights][kN][4] = {};
  {
    uint32_t x_offset[kN];
#pragma unroll
    for (int n = 0; n < kN; n++) {
      const int pair = item.begin + min(n * 8 + lane / 4, item.count - 1);
      x_offset[n] = static_cast<uint32_t>(a.row_of ? __ldcg(a.row_of + pair) : pair) * a.ldx + lane % 4 * 8;
    }
    LaneTile<kKind> tiles[kWeights];
#pragma unroll
    for (int m = 0; m < kWeights; m++) {
      const uint8_t* data = expert.data[kWeights == 2 ? m : a.matrix];
      tiles[m].set(data, data + a.aux_offset, tile, a.tile_bytes, a.out, a.chunks, lane);
    }
    accumulate<kKind, kN, kWeights, false>(tiles, chunks, a.x, x_offset, acc, ring, lane, a.early);
  }
  if (!reduce_parts(acc, a.row_tiles, reinterpret_cast<float*>(product_shared + kRingBytes<kKind, kWeights>)) || !active) return;
#pragma unroll
  for (int m = 0; m < kWeights; m++) scale_rows<kKind>(expert.data[kWeights == 2 ? m : a.matrix] + a.aux_offset, tile, lane, acc[m]);

#pragma unroll
  for (int n = 0; n < kN; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int pair = n * 8 + lane % 4 * 2 + i % 2, row = tile * kTileRows + lane / 4 + i / 2 * 8;
      if (pair >= item.count || row >= a.out) continue;
      const int64_t at = (item.begin + pair) * a.ld_to + row;
      if constexpr (kWeights == 2) static_cast<__nv_bfloat16*>(a.to)[at] = __float2bfloat16_rn(silu(acc[0][n][i]) * acc[1][n][i]);
      else static_cast<float*>(a.to)[at] = acc[0][n][i];
    }
}

template <WeightKind kKind, int kWeights, int kMostN>
__global__ void __launch_bounds__(kProductWarps * 32, kMostN >= 4 ? 1 : 2) grouped_kernel(const GroupedArgs a) {
  if (!a.early) {
    wait_for_previous();
    start_next();
  }
  // Both loads at once, past L1; beyond the count there is memory, but no item.
  const int32_t* const at = &a.items[blockIdx.y].expert;
  const int count = __ldcg(a.item_count);
  const GroupedItem item{__ldcg(at), __ldcg(at + 1), __ldcg(at + 2)};
  if (static_cast<int>(blockIdx.y) >= count) {
    if (a.early) wait_for_previous();  // nobody behind this kernel may find one before it unfinished
    return;
  }
  if (kMostN >= 8 && item.count > 32) grouped_item<kKind, kWeights, kMostN>(a, item);
  else if (kMostN >= 4 && item.count > 16) grouped_item < kKind, kWeights, kMostN<4 ? kMostN : 4>(a, item);
  else if (kMostN >= 2 && item.count > 8) grouped_item < kKind, kWeights, kMostN<2 ? kMostN : 2>(a, item);
  else grouped_item<kKind, kWeights, 1>(a, item);
}

// Rings need more shared memory than a kernel gets unasked.
template <class Kernel, class Args>
void launch_with_rings(Kernel kernel, dim3 grid, size_t shared, const Args& args, cudaStream_t stream) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  launch_dependent(kernel, grid, dim3(kProductWarps * 32), shared, stream, args);
}

[[noreturn]] inline void no_kernel(const char* what, int n) {
  std::fprintf(stderr, "dougong: no %s kernel of %d tiles\n", what, n);
  std::abort();
}

template <WeightKind kKind, int kWeights>
void launch_product_weights(const ProductShape& s, const ProductArgs& a, cudaStream_t stream) {
  const dim3 grid((a.tiles + a.row_tiles - 1) / a.row_tiles, s.splits);
  const size_t sums = product_shared_bytes(a.row_tiles, kWeights, s.tiles_n), shared = kRingBytes<kKind, kWeights> + sums;
  if (sums > kProductSharedBytes) no_kernel("product", -a.row_tiles);
  switch (s.tiles_n) {
    case 1:
      if (s.f32_x) launch_with_rings(product_kernel<kKind, kWeights, 1, true>, grid, shared, a, stream);
      else launch_with_rings(product_kernel<kKind, kWeights, 1, false>, grid, shared, a, stream);
      return;
    case 2: launch_with_rings(product_kernel<kKind, kWeights, 2, false>, grid, shared, a, stream); return;
    case 4: launch_with_rings(product_kernel<kKind, kWeights, 4, false>, grid, shared, a, stream); return;
    case 8: launch_with_rings(product_kernel<kKind, kWeights, 8, false>, grid, shared, a, stream); return;
    default: no_kernel("product", s.tiles_n);
  }
}

template <WeightKind kKind, int kWeights>
void launch_grouped_weights(const GroupedShape& s, const GroupedArgs& a, cudaStream_t stream) {
  const dim3 grid((a.tiles + a.row_tiles - 1) / a.row_tiles, a.most_items);
  const size_t sums = product_shared_bytes(a.row_tiles, kWeights, s.tiles_n), shared = kRingBytes<kKind, kWeights> + sums;
  if (sums > kProductSharedBytes) no_kernel("grouped product", -a.row_tiles);
  switch (s.tiles_n) {
    case 1: launch_with_rings(grouped_kernel<kKind, kWeights, 1>, grid, shared, a, stream); return;
    case 2: launch_with_rings(grouped_kernel<kKind, kWeights, 2>, grid, shared, a, stream); return;
    case 8: launch_with_rings(grouped_kernel<kKind, kWeights, 8>, grid, shared, a, stream); return;
    default: no_kernel("grouped product", s.tiles_n);
  }
}

}  // namespace

template <WeightKind kKind>
void launch_product_kind(const ProductShape& s, const ProductArgs& a, cudaStream_t stream) {
  if (s.glu) launch_product_weights<kKind, 2>(s, a, stream);
  else launch_product_weights<kKind, 1>(s, a, stream);
}
template <WeightKind kKind>
void launch_grouped_kind(const GroupedShape& s, const GroupedArgs& a, cudaStream_t stream) {
  if (s.glu) launch_grouped_weights<kKind, 2>(s, a, stream);
  else launch_grouped_weights<kKind, 1>(s, a, stream);
}

}  // namespace dg::cuda

#define DG_PRODUCT_KIND(kind)                                                                                                         \
  template void ::dg::cuda::launch_product_kind<::dg::cuda::WeightKind::kind>(const ProductShape&, const ProductArgs&, cudaStream_t); \
  template void ::dg::cuda::launch_grouped_kind<::dg::cuda::WeightKind::kind>(const GroupedShape&, const GroupedArgs&, cudaStream_t);
