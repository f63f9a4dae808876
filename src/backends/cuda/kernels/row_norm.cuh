// What kernels over rows of floats share: groups of four columns, sums over warps and blocks, and the root of RMSNorm.
// A thread owns the same elements whether it loads them four at a time or singly, so alignment never shows in a result.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace dg::cuda {

// p[0 .. 3] of a row that ends after n elements; zeros behind its end. kVector: p is aligned to 16 bytes.
template <bool kVector>
__device__ __forceinline__ float4 load4(const float* p, int64_t n) {
  if constexpr (kVector) {
    if (n >= 4) return *reinterpret_cast<const float4*>(p);
  }
  return {n > 0 ? p[0] : 0.0f, n > 1 ? p[1] : 0.0f, n > 2 ? p[2] : 0.0f, n > 3 ? p[3] : 0.0f};
}
template <bool kVector>
__device__ __forceinline__ void store4(float* p, int64_t n, float4 v) {
  if constexpr (kVector) {
    if (n >= 4) {
      *reinterpret_cast<float4*>(p) = v;
      return;
    }
  }
  if (n > 0) p[0] = v.x;
  if (n > 1) p[1] = v.y;
  if (n > 2) p[2] = v.z;
  if (n > 3) p[3] = v.w;
}

__device__ __forceinline__ float add_squares(float sum, float4 v) {
  return __fmaf_rn(v.w, v.w, __fmaf_rn(v.z, v.z, __fmaf_rn(v.y, v.y, __fmaf_rn(v.x, v.x, sum))));
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

// The sum over the `warps` whole warps of a block, in every thread. One barrier; `sums` holds 32 floats of shared memory, for one call.
__device__ __forceinline__ float block_sum(float v, float* sums, int warps) {
  v = warp_sum(v);
  if (warps == 1) return v;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (lane == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_sum(lane < warps ? sums[lane] : 0.0f);
}

__device__ __forceinline__ float inverse_root(float squares, int64_t dim, float eps) {
  return 1.0f / sqrtf(squares / static_cast<float>(dim) + eps);
}

// What an element is multiplied by, in this order: the value of RmsNorm.
__device__ __forceinline__ float4 scaled(float4 v, float inverse, float4 weight) {
  return {v.x * inverse * weight.x, v.y * inverse * weight.y, v.z * inverse * weight.z, v.w * inverse * weight.w};
}

// Threads of a row of `dim` elements, and groups of four that each keeps in registers (1, 2 or 4; what lies behind them is read twice).
// They depend on `dim` alone, and with them the order of the sum: a row is the same in every batch.
constexpr int kMostNormThreads = 1024;
constexpr int norm_threads(int64_t dim) {
  const int64_t groups = (dim + 3) / 4;
  return groups <= 64 ? 32 : static_cast<int>(groups < kMostNormThreads ? (groups + 31) / 32 * 32 : kMostNormThreads);
}
constexpr int norm_kept(int64_t dim) {
  const int64_t each = ((dim + 3) / 4 + norm_threads(dim) - 1) / norm_threads(dim);
  return each <= 1 ? 1 : each <= 2 ? 2 : 4;
}

}  // namespace dg::cuda
