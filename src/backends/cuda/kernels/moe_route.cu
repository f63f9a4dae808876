// Router: a CTA of 128 threads per token. Scores and selection scores lie in shared memory; groups and experts are chosen by repeated
// search for the largest (lower index first among equals). A few microseconds of latency; the bytes are nothing.
#include <cmath>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/moe_kernels.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

struct Best {
  float value;
  int index;
};
// Larger value first, then lower index. Indices below 0 are no candidates.
__device__ __forceinline__ Best better(Best a, Best b) {
  if (b.index < 0) return a;
  if (a.index < 0) return b;
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}
__device__ __forceinline__ Best warp_best(Best v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    v = better(v, {__shfl_xor_sync(0xffffffffu, v.value, step), __shfl_xor_sync(0xffffffffu, v.index, step)});
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

// Rounded once: choices among close scores should be those of the reference.
__device__ __forceinline__ float exact_exp(float v) { return static_cast<float>(exp(static_cast<double>(v))); }

struct Shared {
  float score[kMostRouteExperts], choice[kMostRouteExperts], group[kMostRouteExperts];
  float part[kWarps];
  Best best[kWarps];
  float chosen_score[kMostRouteExperts];
  int chosen[kMostRouteExperts];
};

// The best of `values` (n of them) among those not `taken`, for all threads.
__device__ __forceinline__ Best block_best(const float* values, const bool* taken, int n, Best* parts) {
  Best mine{-INFINITY, -1};
  for (int i = threadIdx.x; i < n; i += kThreads)
    if (!taken[i]) mine = better(mine, {values[i], i});
  mine = warp_best(mine);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = mine;
  __syncthreads();
  Best all = parts[0];
#pragma unroll
  for (int w = 1; w < kWarps; w++) all = better(all, parts[w]);
  __syncthreads();
  return all;
}

__global__ void __launch_bounds__(kThreads) route_kernel(const RouteArgs a) {
  wait_for_previous();
  start_next();
  __shared__ Shared s;
  __shared__ bool taken[kMostRouteExperts], group_kept[kMostRouteExperts];
  const int64_t t = blockIdx.x;
  const float* x = a.logits + t * a.ld_logits;
  const int experts = a.experts, per_group = experts / a.groups;

  if (a.sigmoid) {
    for (int e = threadIdx.x; e < experts; e += kThreads) s.score[e] = 1.0f / (1.0f + exact_exp(-x[e]));
  } else {
    float top = -INFINITY;
    for (int e = threadIdx.x; e < experts; e += kThreads) top = fmaxf(top, x[e]);
    top = warp_max(top);
    if (threadIdx.x % 32 == 0) s.part[threadIdx.x / 32] = top;
    __syncthreads();
    top = s.part[0];
#pragma unroll
    for (int w = 1; w < kWarps; w++) top = fmaxf(top, s.part[w]);
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kThreads) s.score[e] = exact_exp(x[e] - top);
    __syncthreads();
    float total = 0;  // in index order, as the reference adds; every thread for itself
    for (int e = 0; e < experts; e++) total += s.score[e];
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += kThreads) s.score[e] /= total;
  }
  // NaN (a broken checkpoint) must not break the order: never chosen before a number.
  for (int e = threadIdx.x; e < experts; e += kThreads) {
    const float c = s.score[e] + (a.bias ? a.bias[e] : 0.0f);
    s.choice[e] = isnan(c) ? -INFINITY : c;
    taken[e] = false;
  }
  __syncthreads();

  if (a.groups > 1) {
    for (int g = threadIdx.x; g < a.groups; g += kThreads) {
      float first = -INFINITY, second = -INFINITY;
      for (int e = g * per_group; e < (g + 1) * per_group; e++) {
        const float c = s.choice[e];
        if (c > first) second = first, first = c;
        else second = fmaxf(second, c);
      }
      s.group[g] = a.top_two_sum ? first + (per_group > 1 ? second : 0.0f) : first;
      group_kept[g] = false;
    }
    __syncthreads();
    for (int i = 0; i < a.top_groups; i++) {
      const Best best = block_best(s.group, group_kept, a.groups, s.best);
      if (threadIdx.x == 0 && best.index >= 0) group_kept[best.index] = true;
      __syncthreads();
    }
    for (int e = threadIdx.x; e < experts; e += kThreads)
      if (!group_kept[e / per_group]) s.choice[e] = -INFINITY;
    __syncthreads();
  }

  for (int k = 0; k < a.top_k; k++) {
    const Best best = block_best(s.choice, taken, experts, s.best);
    if (threadIdx.x == 0) {
      taken[best.index] = true;
      s.chosen[k] = best.index;
      s.chosen_score[k] = s.score[best.index];
    }
    __syncthreads();
  }
  float sum = 0;
  if (a.normalise)
    for (int k = 0; k < a.top_k; k++) sum += s.chosen_score[k];
  for (int k = threadIdx.x; k < a.top_k; k += kThreads) {
    float w = s.chosen_score[k];
    if (a.normalise) w /= sum + 1e-20f;
    a.ids[t * a.ld_ids + k] = s.chosen[k];
    a.weights[t * a.ld_weights + k] = w * a.routed_scale;
  }
}

}  // namespace

void launch_route(const RouteArgs& args, cudaStream_t stream) {
  launch_dependent(route_kernel, dim3(args.tokens), dim3(kThreads), 0, stream, args);
}

}  // namespace dg::cuda
