// Pairs (token, slot) of the mixture of experts: sorting by expert, gathering their rows, adding up their results.
#include <algorithm>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/moe_kernels.h"
#include "backends/cuda/kernels/weight_unpack.cuh"

namespace dg::cuda {
namespace {

constexpr int kSortThreads = 1024;
static_assert(kMostLocalExperts == 2 * kSortThreads);

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(std::clamp<int64_t>((threads + 255) / 256, 1, 132 * 16)); }

__device__ __forceinline__ int local_expert(const SortArgs& a, int pair) {
  const int e = a.ids[static_cast<int64_t>(pair / a.top_k) * a.ld_ids + pair % a.top_k] - a.first;
  return e >= 0 && e < a.experts ? e : -1;
}

// A counting sort in one CTA: one pass counts, one places. The order of an expert's pairs is left to chance; a pair's result does not
// depend on it.
__global__ void __launch_bounds__(kSortThreads) sort_kernel(const SortArgs a) {
  wait_for_previous();
  start_next();
  __shared__ int counts[kMostLocalExperts];
  __shared__ int2 warp_sums[32];
  const int i = threadIdx.x, pairs = a.tokens * a.top_k;
  counts[2 * i] = counts[2 * i + 1] = 0;
  __syncthreads();
  for (int p = i; p < pairs; p += kSortThreads)
    if (const int e = local_expert(a, p); e >= 0) atomicAdd(&counts[e], 1);
  __syncthreads();

  // Prefix sums of pairs and work items; a thread has two experts.
  const int count[2] = {counts[2 * i], counts[2 * i + 1]};
  const int tiles[2] = {(count[0] + a.item_pairs - 1) / a.item_pairs, (count[1] + a.item_pairs - 1) / a.item_pairs};
  int2 sum = make_int2(count[0] + count[1], tiles[0] + tiles[1]);
  const int2 mine = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int x = __shfl_up_sync(0xffffffffu, sum.x, step), y = __shfl_up_sync(0xffffffffu, sum.y, step);
    if (i % 32 >= step) sum.x += x, sum.y += y;
  }
  if (i % 32 == 31) warp_sums[i / 32] = sum;
  __syncthreads();
  if (i < 32) {
    int2 total = warp_sums[i];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int x = __shfl_up_sync(0xffffffffu, total.x, step), y = __shfl_up_sync(0xffffffffu, total.y, step);
      if (i >= step) total.x += x, total.y += y;
    }
    warp_sums[i] = total;
    if (i == 31) a.counts[0] = total.y, a.counts[1] = total.x;
  }
  __syncthreads();
  int begin = sum.x - mine.x, item = sum.y - mine.y;
  if (i >= 32) begin += warp_sums[i / 32 - 1].x, item += warp_sums[i / 32 - 1].y;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    for (int t = 0; t < tiles[h]; t++)
      a.items[item + t] = {2 * i + h, begin + t * a.item_pairs, min(a.item_pairs, count[h] - t * a.item_pairs)};
    counts[2 * i + h] = begin;  // from here on the place of the expert's next pair
    begin += count[h], item += tiles[h];
  }
  __syncthreads();
  for (int p = i; p < pairs; p += kSortThreads) {
    const int e = local_expert(a, p), place = e >= 0 ? atomicAdd(&counts[e], 1) : -1;
    a.pair_of[p] = place;
    if (place < 0) continue;
    a.token_of[place] = p / a.top_k;
    if (a.pair_expert) a.pair_expert[place] = e;
  }
}

struct CombineArgs {
  float* out;
  int64_t ld_out;
  const float* weights;
  int64_t ld_weights;
  const int32_t* pair_of;
  int32_t top_k;
  const float* y;
  int64_t ld_y, tokens, dim;
};

template <bool kVector>
__global__ void __launch_bounds__(256) combine_kernel(const CombineArgs a) {
  wait_for_previous();
  start_next();
  constexpr int width = kVector ? 4 : 1;
  const int64_t pieces = a.dim / width, total = a.tokens * pieces;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t t = p / pieces, column = p % pieces * width;
    float* out = a.out + t * a.ld_out + column;
    float sum[width];
    if constexpr (kVector) {
      const float4 v = *reinterpret_cast<const float4*>(out);
      sum[0] = v.x, sum[1] = v.y, sum[2] = v.z, sum[3] = v.w;
    } else {
      sum[0] = *out;
    }
    // Four slots' loads at once, added in order.
    for (int first = 0; first < a.top_k; first += 4) {
      int pair[4];
      float weight[4], y[4][width] = {};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        pair[i] = first + i < a.top_k ? a.pair_of[t * a.top_k + first + i] : -1;
        weight[i] = pair[i] >= 0 ? a.weights[t * a.ld_weights + first + i] : 0;
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (pair[i] < 0) continue;
        const float* from = a.y + pair[i] * a.ld_y + column;
        if constexpr (kVector) {
          const float4 v = *reinterpret_cast<const float4*>(from);
          y[i][0] = v.x, y[i][1] = v.y, y[i][2] = v.z, y[i][3] = v.w;
        } else {
          y[i][0] = *from;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (pair[i] >= 0)
#pragma unroll
          for (int c = 0; c < width; c++) sum[c] = fmaf(weight[i], y[i][c], sum[c]);
    }
    if constexpr (kVector) *reinterpret_cast<float4*>(out) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    else *out = sum[0];
  }
}

__global__ void __launch_bounds__(256) pair_rows_kernel(const PairRowsArgs a) {
  wait_for_previous();
  start_next();
  const int64_t pieces = a.ld / 8, total = *a.pair_count * pieces;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t pair = p / pieces, k = p % pieces * 8;
    const int32_t* columns = a.experts[a.pair_expert[pair]].columns[a.matrix];
    const float* x = a.x + (a.row_of ? a.row_of[pair] : pair) * a.ldx;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = k + i < a.in ? x[columns ? columns[k + i] : k + i] : 0.0f;
    *reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(a.to) + pair * a.ld + k) =
        make_uint4(pack_bf162(v[0], v[1]), pack_bf162(v[2], v[3]), pack_bf162(v[4], v[5]), pack_bf162(v[6], v[7]));
  }
}

__global__ void __launch_bounds__(256)
    pair_silu_mul_kernel(float* gate, const float* up, int64_t ld, int64_t columns, const int32_t* pair_count) {
  wait_for_previous();
  start_next();
  const int64_t total = *pair_count * columns;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t at = p / columns * ld + p % columns;
    const float g = gate[at];
    gate[at] = g / (1.0f + expf(-g)) * up[at];
  }
}

// CTA = row of the weights; a warp per pair.
__global__ void __launch_bounds__(256) pair_f32_kernel(const PairF32Args a) {
  wait_for_previous();
  start_next();
  const int64_t o = blockIdx.x;
  const int lane = threadIdx.x % 32, count = *a.pair_count;
  for (int pair = threadIdx.x / 32; pair < count; pair += 8) {
    const ExpertMatrices& expert = a.experts[a.pair_expert[pair]];
    const float* w = reinterpret_cast<const float*>(expert.data[a.matrix]) + o * a.in;
    const int32_t* columns = expert.columns[a.matrix];
    const float* x = a.x + (a.row_of ? a.row_of[pair] : pair) * a.ldx;
    float sum = 0;
    for (int64_t k = lane; k < a.in; k += 32) sum = fmaf(w[k], x[columns ? columns[k] : k], sum);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) a.to[pair * a.ld + o] = sum;
  }
}

}  // namespace

void launch_sort_pairs(const SortArgs& args, cudaStream_t stream) {
  launch_dependent(sort_kernel, dim3(1), dim3(kSortThreads), 0, stream, args);
}

void launch_combine(float* out, int64_t ld_out, const float* weights, int64_t ld_weights, const int32_t* pair_of, int32_t top_k,
                    const float* y, int64_t ld_y, int64_t tokens, int64_t dim, cudaStream_t stream) {
  const CombineArgs a{out, ld_out, weights, ld_weights, pair_of, top_k, y, ld_y, tokens, dim};
  const bool vector = dim % 4 == 0 && ld_out % 4 == 0 && ld_y % 4 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(y) % 16 == 0;
  if (vector) launch_dependent(combine_kernel<true>, dim3(blocks_for(tokens * dim / 4)), dim3(256), 0, stream, a);
  else launch_dependent(combine_kernel<false>, dim3(blocks_for(tokens * dim)), dim3(256), 0, stream, a);
}

void launch_pair_rows(const PairRowsArgs& args, cudaStream_t stream) {
  launch_dependent(pair_rows_kernel, dim3(blocks_for(args.most_pairs * (args.ld / 8))), dim3(256), 0, stream, args);
}

void launch_pair_silu_mul(float* gate, const float* up, int64_t ld, int64_t columns, const int32_t* pair_count, int64_t most_pairs,
                          cudaStream_t stream) {
  launch_dependent(pair_silu_mul_kernel, dim3(blocks_for(most_pairs * columns)), dim3(256), 0, stream, gate, up, ld, columns, pair_count);
}

void launch_pair_f32(const PairF32Args& args, cudaStream_t stream) {
  launch_dependent(pair_f32_kernel, dim3(static_cast<unsigned>(args.out)), dim3(256), 0, stream, args);
}

}  // namespace dg::cuda
