// Router: a warp per token, no barriers. Lane l holds the experts l, l + 32, ...; a score is chosen by the warp's maximum of 32-bit keys in
// the order of floats, then by the lowest index that has it. Latency is all there is: up to four tokens share a CTA only where there are
// more tokens than multiprocessors.
#include <cmath>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/moe_kernels.h"

namespace dg::cuda {
namespace {

constexpr uint32_t kAll = 0xffffffffu;

// In the order of floats, equal zeros equal; never 0, which stands for what is taken.
__device__ __forceinline__ uint32_t order_key(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Rounded once: choices among close scores should be those of the reference. The library's exp in double has a branch, so that a lane's
// eight would follow each other; this has none: 2^n times Taylor's polynomial to r^13 for |r| <= ln(2) / 2, 1e-16 off.
__device__ __forceinline__ float exact_exp(float v) {
  double x = v;
  x = x > 90 ? 90.0 : x < -110 ? -110.0 : x;  // infinity and 0 as float
  const double n = rint(x * 1.4426950408889634);
  const double r = fma(n, -2.3190468138462996e-17, fma(n, -0.6931471805599453, x));
  double sum = 1.0 / 6227020800;
  constexpr double kInverse[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                                 1.0 / 120,       1.0 / 24,       1.0 / 6,       1.0 / 2,      1.0,         1.0};
#pragma unroll
  for (double factor : kInverse) sum = fma(sum, r, factor);
  return static_cast<float>(sum * __longlong_as_double((static_cast<long long>(n) + 1023) << 52));
}

// The largest and the second of two lists' two largest.
__device__ __forceinline__ void merge_two(float& first, float& second, float other_first, float other_second) {
  second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
  first = fmaxf(first, other_first);
}

// kMost: most experts, a multiple of 32.
template <int kMost>
constexpr int kRouteTokens = kMost > 256 ? 1 : 4;  // of a CTA, at most

template <int kMost>
__global__ void __launch_bounds__(kRouteTokens<kMost> * 32) route_kernel(const RouteArgs a) {
  constexpr int kEach = kMost / 32, kTokens = kRouteTokens<kMost>;
  __shared__ __align__(16) float all_scores[kTokens][kMost];
  __shared__ float all_groups[kTokens][kMost];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, experts = a.experts;
  const int64_t t = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  float *const scores = all_scores[warp], *const groups = all_groups[warp];
  float bias[kEach];  // written at load
#pragma unroll
  for (int i = 0; i < kEach; i++) bias[i] = a.bias && i * 32 + lane < experts ? a.bias[i * 32 + lane] : 0.0f;
  wait_for_previous();
  start_next();
  if (t >= a.tokens) return;

  const float* x = a.logits + t * a.ld_logits;
  float score[kEach];
#pragma unroll
  for (int i = 0; i < kEach; i++) score[i] = i * 32 + lane < experts ? x[i * 32 + lane] : -INFINITY;
  if (a.sigmoid) {
#pragma unroll
    for (int i = 0; i < kEach; i++) score[i] = 1.0f / (1.0f + exact_exp(-score[i]));
  } else {
    float top = score[0];
#pragma unroll
    for (int i = 1; i < kEach; i++) top = fmaxf(top, score[i]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, step));
#pragma unroll
    for (int i = 0; i < kEach; i++) scores[i * 32 + lane] = score[i] = i * 32 + lane < experts ? exact_exp(score[i] - top) : 0.0f;
    __syncwarp();
    float total = 0;  // in index order, as the reference adds; every lane for itself. Zeros behind the last expert change nothing.
    for (int e = 0; e < experts; e += 16) {
      float4 part[4];
#pragma unroll
      for (int i = 0; i < 4; i++) part[i] = *reinterpret_cast<const float4*>(scores + e + 4 * i);
#pragma unroll
      for (int i = 0; i < 4; i++) total = (((total + part[i].x) + part[i].y) + part[i].z) + part[i].w;
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kEach; i++) score[i] /= total;
  }

  // NaN (a broken checkpoint) must not break the order: never chosen before a number.
  float choice[kEach];
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const float c = score[i] + bias[i];
    choice[i] = isnan(c) ? -INFINITY : c;
  }

  if (a.groups > 1) {
    const int per_group = experts / a.groups;
#pragma unroll
    for (int i = 0; i < kEach; i++) scores[i * 32 + lane] = choice[i];
    __syncwarp();
    // A power of two of lanes for each group.
    int lanes = 1;
    while (lanes * 2 * a.groups <= 32) lanes *= 2;
    for (int begin = 0; begin < a.groups; begin += 32 / lanes) {
      const int g = begin + lane / lanes;
      float first = -INFINITY, second = -INFINITY;
      if (g < a.groups)
        for (int e = lane % lanes; e < per_group; e += lanes) merge_two(first, second, scores[g * per_group + e], -INFINITY);
      for (int step = lanes / 2; step > 0; step /= 2) {
        const float other_first = __shfl_xor_sync(kAll, first, step), other_second = __shfl_xor_sync(kAll, second, step);
        merge_two(first, second, other_first, other_second);
      }
      if (g < a.groups && lane % lanes == 0) groups[g] = a.top_two_sum ? first + (per_group > 1 ? second : 0.0f) : first;
    }
    __syncwarp();
    // A group stays when fewer than top_groups are better.
    for (int begin = 0; begin < a.groups; begin += 32) {
      const int g = begin + lane;
      int better = 0;
      if (g < a.groups)
        for (int h = 0; h < a.groups; h++) better += groups[h] > groups[g] || (groups[h] == groups[g] && h < g);
      if (g < a.groups) scores[g] = better < a.top_groups ? 1.0f : 0.0f;  // the choices there are in registers
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kEach; i++) {
      const int e = i * 32 + lane;
      if (e < experts && scores[e / per_group] == 0) choice[i] = -INFINITY;
    }
    __syncwarp();
  }
#pragma unroll
  for (int i = 0; i < kEach; i++) scores[i * 32 + lane] = score[i];
  __syncwarp();

  uint32_t key[kEach], best = 0;
  int best_at = 0;
#pragma unroll
  for (int i = 0; i < kEach; i++) key[i] = i * 32 + lane < experts ? order_key(choice[i]) : 0;
  const auto find_best = [&] {
    best = key[0], best_at = 0;
#pragma unroll
    for (int i = 1; i < kEach; i++)
      if (key[i] > best) best = key[i], best_at = i;
  };
  find_best();
  float sum = 0;
  int mine = 0;
  for (int k = 0; k < a.top_k; k++) {
    const uint32_t top = __reduce_max_sync(kAll, best);
    const auto chosen = static_cast<int>(__reduce_min_sync(kAll, best == top ? static_cast<uint32_t>(best_at * 32 + lane) : kAll));
    if (chosen % 32 == lane) {
#pragma unroll
      for (int i = 0; i < kEach; i++)
        if (i == best_at) key[i] = 0;
      find_best();
    }
    if (a.normalise) sum += scores[chosen];
    if (k % 32 != lane) continue;
    mine = chosen;
    a.ids[t * a.ld_ids + k] = chosen;
  }
  for (int k = lane; k < a.top_k; k += 32) {
    float w = scores[k < 32 && a.top_k <= 32 ? mine : a.ids[t * a.ld_ids + k]];
    if (a.normalise) w /= sum + 1e-20f;
    a.weights[t * a.ld_weights + k] = w * a.routed_scale;
  }
}

template <int kMost>
void launch(const RouteArgs& a, cudaStream_t stream) {
  const int tokens = a.tokens > 132 ? kRouteTokens<kMost> : 1;
  launch_dependent(route_kernel<kMost>, dim3(static_cast<unsigned>((a.tokens + tokens - 1) / tokens)),
                   dim3(static_cast<unsigned>(tokens) * 32), 0, stream, a);
}

}  // namespace

void launch_route(const RouteArgs& args, cudaStream_t stream) {
  if (args.experts <= 64) launch<64>(args, stream);
  else if (args.experts <= 256) launch<256>(args, stream);
  else launch<kMostRouteExperts>(args, stream);
}

}  // namespace dg::cuda
