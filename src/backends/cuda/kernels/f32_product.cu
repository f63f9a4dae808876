// Products with f32 weights, exact to f32 rounding: a CTA makes one output column of up to 8 rows of x. For routers (256 x 7168: 7 MB, 1.5
// us at 4.8 TB/s) and small batches; larger ones go to cuBLASLt in f32 where columns are in order.
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/product_kernels.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 256;

struct Args {
  const float* weight;
  int64_t out, in;
  const int32_t* columns;
  const float* x;
  int64_t ldx, tokens;
  float* to;
  int64_t ld_to;
  const float* bias;
  bool early;  // launch.cuh: the weight is no kernel's result
};

// kVector: weight rows and rows of x at 16-byte addresses, in % 4 == 0, no columns.
template <int kTokens, bool kVector>
__global__ void __launch_bounds__(kThreads) f32_kernel(const Args a) {
  const int64_t o = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * kTokens;
  const int tokens = static_cast<int>(min(static_cast<int64_t>(kTokens), a.tokens - first));
  const float* w = a.weight + o * a.in;
  const float* x[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; t++) x[t] = a.x + (first + min(t, tokens - 1)) * a.ldx;
  float sum[kTokens] = {};
  if (!kVector || !a.early) wait_for_previous();
  if constexpr (kVector) {
    const auto add = [&](int64_t k, const float4& v) {
#pragma unroll
      for (int t = 0; t < kTokens; t++) {
        const float4 u = *reinterpret_cast<const float4*>(x[t] + k);
        sum[t] = fmaf(v.x, u.x, sum[t]), sum[t] = fmaf(v.y, u.y, sum[t]), sum[t] = fmaf(v.z, u.z, sum[t]), sum[t] = fmaf(v.w, u.w, sum[t]);
      }
    };
    // The first 8192 columns of the weight are on their way before x is there.
    constexpr int kHeld = 8;
    float4 held[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      const int64_t k = (i * kThreads + threadIdx.x) * 4;
      if (k < a.in) held[i] = __ldg(reinterpret_cast<const float4*>(w + k));
    }
    if (a.early) wait_for_previous();
#pragma unroll
    for (int i = 0; i < kHeld; i++) {
      const int64_t k = (i * kThreads + threadIdx.x) * 4;
      if (k < a.in) add(k, held[i]);
    }
    for (int64_t k = (kHeld * kThreads + threadIdx.x) * 4; k < a.in; k += kThreads * 4)
      add(k, __ldg(reinterpret_cast<const float4*>(w + k)));
  } else {
    for (int64_t k = threadIdx.x; k < a.in; k += kThreads) {
      const float v = w[k];
      const int64_t c = a.columns ? a.columns[k] : k;
#pragma unroll
      for (int t = 0; t < kTokens; t++) sum[t] = fmaf(v, x[t][c], sum[t]);
    }
  }
  start_next();
  __shared__ float shared[kThreads / 32][kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[t] += __shfl_xor_sync(0xffffffffu, sum[t], step);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32][t] = sum[t];
  }
  __syncthreads();
  if (threadIdx.x < tokens) {
    float v = 0;
#pragma unroll
    for (int i = 0; i < kThreads / 32; i++) v += shared[i][threadIdx.x];
    if (a.bias) v += a.bias[o];
    a.to[(first + threadIdx.x) * a.ld_to + o] = v;
  }
}

template <int kTokens>
void launch(const Args& a, cudaStream_t stream) {
  const bool vector = !a.columns && a.in % 4 == 0 && a.ldx % 4 == 0 && reinterpret_cast<uintptr_t>(a.weight) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(a.x) % 16 == 0;
  const dim3 grid(static_cast<unsigned>(a.out), static_cast<unsigned>((a.tokens + kTokens - 1) / kTokens));
  if (vector) launch_dependent(f32_kernel<kTokens, true>, dim3(grid), dim3(kThreads), 0, stream, a);
  else launch_dependent(f32_kernel<kTokens, false>, dim3(grid), dim3(kThreads), 0, stream, a);
}

}  // namespace

void launch_f32_product(const float* weight, int64_t out, int64_t in, const int32_t* columns, const float* x, int64_t ldx, int64_t tokens,
                        float* to, int64_t ld_to, const float* bias, bool early, cudaStream_t stream) {
  const Args a{weight, out, in, columns, x, ldx, tokens, to, ld_to, bias, early};
  if (tokens == 1) launch<1>(a, stream);
  else if (tokens <= 4) launch<4>(a, stream);
  else launch<8>(a, stream);
}

}  // namespace dg::cuda
