// Experts of up to 8 tokens in two kernels and nothing around them: `up` makes silu(gate x) * (up x) of each pair (token, slot), `down`
// multiplies these, weighs them and adds them to the output. Every CTA finds the work items, an expert with the tokens that chose it, from
// the router's ids for itself: column n of an mma is token n, so an expert's weights are read once however many tokens chose it.
//
// up: a unit is a tile of 16 rows of gate and up of an item. The warps of a CTA share the unit's columns; CTAs stay and take unit after
//   unit, and each warp's ring goes on with the next unit's chunks while this one's are multiplied and added up.
// down: a CTA has 16 rows of the output and all items, one long row of columns that its warps share. A token's sum is that of its items in
//   registers and then of the warps in order: no results of pairs in memory, no pass that combines them, no short products.
// Grids are small enough that (nearly) all CTAs are on the GPU at once: they share the memory's rate, and none begins when others end.
//
// Arithmetic: a warp takes 400 - 600 clocks for a stage of 2 KiB (shared memory, unpacking, four mma one behind the other, x from L1 or
// L2), so 16 warps of a multiprocessor read at most 55 - 80 bytes per clock; its share of the memory's 4.6 TB/s is 20. In flight are 16 x 3
// stages, 96 - 110 KiB; Little's law asks for some 40.
#pragma once
#include "backends/cuda/kernels/few_experts.h"
#include "backends/cuda/kernels/product_tile.cuh"

namespace dg::cuda {
namespace {

extern __shared__ __align__(16) uint8_t few_shared[];  // the warps' rings, then sums of parts

struct FewItems {
  uint32_t leaders[2];           // first pairs of items
  int32_t key[kFewPairs];        // expert of each pair; -1: none of ours
  int8_t pair_of[kFewPairs][8];  // of an item and token; -1: the token does not take part
  int8_t token_of[kFewPairs];    // of an item: one that takes part
  const uint8_t* data[kFewPairs][2];
  float weight[kFewPairs];  // of a pair
};

// A stage of a warp's ring: a chunk of gate and one of up, or two chunks of down.
template <WeightKind kKind>
constexpr int kFewStage = 2 * RingPart<kKind>::kBytes;
template <WeightKind kKind>
constexpr int kFewStages = kFewStage<kKind> > 2304 ? 3 : 4;
template <WeightKind kKind>
constexpr int kFewRing = kFewStages<kKind>* kFewStage<kKind>;

__device__ __forceinline__ int share_begin(int all, int part, int parts) {
  return static_cast<int>(static_cast<int64_t>(all) * part / parts);
}

// The table of a layer's experts has left the caches since the last step: brings it to L2 while the router still works.
__device__ __forceinline__ void warm_table(const FewExpertsArgs& a) {
#ifdef __CUDA_ARCH__
  const auto* table = reinterpret_cast<const uint8_t*>(a.experts);
  for (int at = threadIdx.x * 128; at < a.count * static_cast<int>(sizeof(ExpertMatrices)); at += blockDim.x * 128)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(table + at));
#endif
}

// The items, in the order of their first pairs; their number. A token that chose an expert twice takes part in two items. For all threads
// of a CTA, at least kFewPairs. Reads past L1: ids may be read before the wait (launch.cuh).
__device__ __forceinline__ int find_items(const FewExpertsArgs& a, int matrix, FewItems& s) {
  const int p = threadIdx.x, pairs = a.tokens * a.top_k;
  int key = -1;
  const uint8_t* data[2] = {};
  if (p < kFewPairs) {
    if (p < pairs) {
      const int t = p / a.top_k, k = p % a.top_k;
      const int e = __ldcg(a.ids + t * a.ld_ids + k) - a.first;
      s.weight[p] = __ldcg(a.weights + t * a.ld_weights + k);
      if (e >= 0 && e < a.count) {
        key = e;
        data[0] = a.experts[e].data[matrix];
        if (matrix == 0) data[1] = a.experts[e].data[1];
      }
    }
    s.key[p] = key;
    *reinterpret_cast<uint2*>(s.pair_of[p]) = make_uint2(~0u, ~0u);
  }
  __syncthreads();
  int leader = -1;
  if (key >= 0) {
    const int token = p / a.top_k;
    int copy = 0;  // how often the token chose the expert before
    for (int q = token * a.top_k; q < p; q++) copy += s.key[q] == key;
    for (int t = 0; t <= token && leader < 0; t++) {
      int seen = 0;
      for (int k = 0; k < a.top_k && leader < 0; k++)
        if (s.key[t * a.top_k + k] == key && seen++ == copy) leader = t * a.top_k + k;
    }
  }
  if (p < kFewPairs) {
    const uint32_t leaders = __ballot_sync(0xffffffffu, leader == p);
    if (p % 32 == 0) s.leaders[p / 32] = leaders;
  }
  __syncthreads();
  const uint32_t low = s.leaders[0], high = s.leaders[1];
  if (leader >= 0) {
    const int item = leader < 32 ? __popc(low & ((1u << leader) - 1)) : __popc(low) + __popc(high & ((1u << (leader - 32)) - 1));
    s.pair_of[item][p / a.top_k] = static_cast<int8_t>(p);
    if (leader == p) {
      s.token_of[item] = static_cast<int8_t>(p / a.top_k);
      s.data[item][0] = data[0], s.data[item][1] = data[1];
    }
  }
  __syncthreads();
  return __popc(low) + __popc(high);
}

template <WeightKind kKind>
__global__ void __launch_bounds__(kFewUpWarps * 32, 2) few_up_kernel(const FewExpertsArgs a) {
  constexpr int kStages = kFewStages<kKind>, kStage = kFewStage<kKind>, kPart = RingPart<kKind>::kBytes;
  __shared__ FewItems items;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = blockDim.x / 32;
  if (blockIdx.x == 0) warm_table(a);
  wait_for_previous();
  start_next();
  const int units = find_items(a, 0, items) * a.tiles;
  const int begin = share_begin(a.chunks, warp, parts), end = share_begin(a.chunks, warp + 1, parts);
  uint8_t* const ring = few_shared + warp * kFewRing<kKind>;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(ring));

  // What is fetched next, some chunks ahead of what is multiplied.
  LaneTile<kKind> tiles[2];
  int next_unit = begin < end ? static_cast<int>(blockIdx.x) : units, next_chunk = begin;
  const auto aim = [&] {
    const int item = next_unit / a.tiles, tile = next_unit - item * a.tiles;
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const uint8_t* data = items.data[item][m];
      tiles[m].set(data, data + a.aux_offset, tile, a.tile_bytes, a.out, a.chunks, lane);
    }
  };
  const auto fetch = [&](int stage) {
    if (next_unit < units) {
#pragma unroll
      for (int m = 0; m < 2; m++) tiles[m].issue(base + stage * kStage + m * kPart, lane, next_chunk);
      if (++next_chunk == end) {
        next_chunk = begin, next_unit += gridDim.x;
        if (next_unit < units) aim();
      }
    }
    cp_async_commit();
  };
  if (next_unit < units) aim();
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) fetch(s);

  int stage = 0;
  float* sums = reinterpret_cast<float*>(few_shared + parts * kFewRing<kKind>);
  float* other_sums = sums + (parts - 1) * 256;  // two that take turns: one barrier for each unit
  for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int item = unit / a.tiles, tile = unit - item * a.tiles;
    const int row = items.pair_of[item][lane / 4] >= 0 ? lane / 4 : items.token_of[item];
    const uint32_t x_offset = static_cast<uint32_t>(row) * a.ldx + lane % 4 * 8;
    float acc[2][1][4] = {};
    for (int chunk = begin; chunk < end; chunk++) {
      fetch(stage == 0 ? kStages - 1 : stage - 1);
      cp_async_wait<kStages - 1>();
      Chunk<kKind> now[2];
#pragma unroll
      for (int m = 0; m < 2; m++) read_chunk(now[m], ring + stage * kStage + m * kPart, lane);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      multiply_chunk<kKind, 1>(
          now, acc, [&](int, int group, uint32_t(&b)[4]) { load_x<true>(a.x, x_offset + chunk * chunk_columns(kKind) + group * 32, b); });
    }
    if (warp > 0) {
#pragma unroll
      for (int i = 0; i < 8; i++) sums[(warp - 1) * 256 + i * 32 + lane] = acc[i / 4][0][i % 4];
    }
    __syncthreads();
    if (warp == 0) {
      for (int part = 1; part < parts; part++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[i / 4][0][i % 4] += sums[(part - 1) * 256 + i * 32 + lane];
#pragma unroll
      for (int m = 0; m < 2; m++) scale_rows<kKind>(items.data[item][m] + a.aux_offset, tile, lane, acc[m]);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int pair = items.pair_of[item][lane % 4 * 2 + i % 2], o = tile * kTileRows + lane / 4 + i / 2 * 8;
        if (pair >= 0 && o < a.out)
          static_cast<__nv_bfloat16*>(a.to)[pair * a.ld_to + o] = __float2bfloat16_rn(silu(acc[0][0][i]) * acc[1][0][i]);
      }
    }
    float* const swap = sums;
    sums = other_sums, other_sums = swap;
  }
}

template <WeightKind kKind>
__global__ void __launch_bounds__(kFewDownWarps * 32, 1) few_down_kernel(const FewExpertsArgs a) {
  constexpr int kStages = kFewStages<kKind>, kStage = kFewStage<kKind>, kPart = RingPart<kKind>::kBytes;
  __shared__ FewItems items;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = blockDim.x / 32, tile = blockIdx.x;
  if (!a.early) wait_for_previous();
  const int steps = (a.chunks + 1) / 2, all = find_items(a, 2, items) * steps;  // a step: two chunks
  const int begin = share_begin(all, warp, parts), end = share_begin(all, warp + 1, parts);
  uint8_t* const ring = few_shared + warp * kFewRing<kKind>;
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(ring));

  LaneTile<kKind> from;
  int next = begin, next_item = begin / steps, next_step = begin - next_item * steps;
  const auto aim = [&] {
    const uint8_t* data = items.data[next_item][0];
    from.set(data, data + a.aux_offset, tile, a.tile_bytes, a.out, a.chunks, lane);
  };
  const auto fetch = [&](int stage) {
    if (next < end) {
      from.issue(base + stage * kStage, lane, 2 * next_step);
      if (2 * next_step + 1 < a.chunks) from.issue(base + stage * kStage + kPart, lane, 2 * next_step + 1);
      next++;
      if (++next_step == steps) {
        next_step = 0, next_item++;
        if (next < end) aim();
      }
    }
    cp_async_commit();
  };
  if (next < end) aim();
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) fetch(s);
  if (a.early) wait_for_previous();
  start_next();

  float* const to = static_cast<float*>(a.to) + threadIdx.x / 16 * a.ld_to + tile * kTileRows + threadIdx.x % 16;
  const bool mine = threadIdx.x / 16 < a.tokens && tile * kTileRows + static_cast<int>(threadIdx.x) % 16 < a.out;
  float result = mine ? *to : 0;

  int item = begin / steps, step = begin - item * steps, stage = 0;
  uint32_t x_offset = 0;
  const auto aim_x = [&] {
    const int own = items.pair_of[item][lane / 4], pair = own >= 0 ? own : items.pair_of[item][items.token_of[item]];
    x_offset = static_cast<uint32_t>(pair) * a.ldx + lane % 4 * 8;
  };
  if (begin < end) aim_x();
  float sum[4] = {}, acc[2][1][1][4] = {};
  const auto multiply = [&](const Chunk<kKind>(&now)[1], int half) {
    multiply_chunk<kKind, 1>(now, acc[half], [&](int, int group, uint32_t(&b)[4]) {
      load_x<false>(a.x, x_offset + (2 * step + half) * chunk_columns(kKind) + group * 32, b);
    });
  };
  for (int i = begin; i < end; i++) {
    fetch(stage == 0 ? kStages - 1 : stage - 1);
    cp_async_wait<kStages - 1>();
    Chunk<kKind> now[2][1];
    read_chunk(now[0][0], ring + stage * kStage, lane);
    if (2 * step + 1 < a.chunks) {
      read_chunk(now[1][0], ring + stage * kStage + kPart, lane);
      multiply(now[0], 0);
      multiply(now[1], 1);
    } else {
      multiply(now[0], 0);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
    if (++step < steps && i + 1 < end) continue;
      // The end of the item, or of this warp's part of it.
#pragma unroll
    for (int v = 0; v < 4; v++) acc[0][0][0][v] += acc[1][0][0][v];
    scale_rows<kKind>(items.data[item][0] + a.aux_offset, tile, lane, acc[0][0]);
#pragma unroll
    for (int v = 0; v < 4; v++) {
      if (const int pair = items.pair_of[item][lane % 4 * 2 + v % 2]; pair >= 0) sum[v] = fmaf(items.weight[pair], acc[0][0][0][v], sum[v]);
      acc[0][0][0][v] = acc[1][0][0][v] = 0;
    }
    item++, step = 0;
    if (i + 1 < end) aim_x();
  }

  float* const sums = reinterpret_cast<float*>(few_shared + parts * kFewRing<kKind>);
#pragma unroll
  for (int v = 0; v < 4; v++) sums[warp * 128 + (lane % 4 * 2 + v % 2) * 16 + lane / 4 + v / 2 * 8] = sum[v];
  __syncthreads();
  if (!mine) return;
  for (int w = 0; w < parts; w++) result += sums[w * 128 + threadIdx.x];
  *to = result;
}

template <class Kernel>
void launch_few(Kernel kernel, int ctas, int warps, size_t shared, const FewExpertsArgs& a, cudaStream_t stream) {
  launch_dependent(kernel, dim3(static_cast<unsigned>(ctas)), dim3(static_cast<unsigned>(warps) * 32), shared, stream, a);
}

}  // namespace

template <WeightKind kKind>
void launch_few_experts_kind(const FewExpertsShape& s, const FewExpertsArgs& a, cudaStream_t stream) {
  const auto shared = [](int warps, bool down) {
    return static_cast<size_t>(warps) * kFewRing<kKind> + (down ? static_cast<size_t>(warps) * 512 : static_cast<size_t>(warps - 1) * 2048);
  };
  const auto allow = [](auto kernel, size_t bytes) {  // of the current device, before anything asks for so much
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "cudaFuncSetAttribute");
  };
  if (s.down) {
    allow(few_down_kernel<kKind>, shared(kFewDownWarps, true));
    return launch_few(few_down_kernel<kKind>, a.tiles, s.warps, shared(s.warps, true), a, stream);
  }
  allow(few_up_kernel<kKind>, shared(kFewUpWarps, false));
  const int units = a.tokens * a.top_k * a.tiles;  // at most: tokens may share experts
  int resident = s.ctas;
  if (resident < 0)
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, few_up_kernel<kKind>, s.warps * 32, shared(s.warps, false)),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  int ctas = units;
  if (resident > 0 && units > resident * s.multiprocessors) {  // each takes as many units
    const int rounds = (units + resident * s.multiprocessors - 1) / (resident * s.multiprocessors);
    ctas = (units + rounds - 1) / rounds;
  }
  launch_few(few_up_kernel<kKind>, ctas, s.warps, shared(s.warps, false), a, stream);
}

}  // namespace dg::cuda

#define DG_FEW_EXPERTS_KIND(kind)                                                                                                \
  template void ::dg::cuda::launch_few_experts_kind<::dg::cuda::WeightKind::kind>(const FewExpertsShape&, const FewExpertsArgs&, \
                                                                                  cudaStream_t);
