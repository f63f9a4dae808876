// Attention for every shape and cache type, in f32 throughout: the exact path (f32 caches) and what the fast kernels do not take. A block
// computes one row and head: 64 positions at a time, a warp for each score, then a thread for each column of the values. The cache is read
// once for each (row, head), so this is far from any roofline; it is meant to be right. Position by position the same order for every
// row, whatever stands beside it.
#include <algorithm>

#include "backends/cuda/kernels/cache_rows.h"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 256, kTokens = 64;

template <Element kElement>
__global__ void __launch_bounds__(kThreads) general_kernel(const GeneralArgs a) {
  extern __shared__ __align__(16) float memory[];  // k_dim, v_dim
  __shared__ float weights[kTokens];
  __shared__ const unsigned char *k_rows[kTokens], *v_rows[kTokens];
  float *const q = memory, *const acc = memory + a.k_dim;
  start_next();
  wait_for_previous();

  const int row = a.row_begin + static_cast<int>(blockIdx.x), head = blockIdx.y;
  const int sequence = a.sequences.row_sequence[row];
  if (sequence < 0) return;
  const int q_len = a.sequences.q_len[sequence], kv_len = a.sequences.kv_len[sequence];
  const int visible = kv_len - q_len + (row - a.sequences.q_begin[sequence]) + 1;
  const int32_t* const blocks = a.sequences.blocks + a.sequences.first_block[sequence];
  const int k_column = head / a.group * a.k_dim, v_column = head / a.group * a.v_dim;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  const float* const from = a.q + blockIdx.x * a.q_row + head * a.q_head;
  for (int i = threadIdx.x; i < a.k_dim; i += kThreads) q[i] = from[i];
  for (int i = threadIdx.x; i < a.v_dim; i += kThreads) acc[i] = 0;
  float top = -INFINITY, sum = 0;  // the same in every thread
  for (int at = 0; at < visible; at += kTokens) {
    const int n = min(kTokens, visible - at);
    __syncthreads();  // the tile before is used up
    if (threadIdx.x < n) {
      k_rows[threadIdx.x] = cache_row(a.k, blocks, at + threadIdx.x);
      v_rows[threadIdx.x] = cache_row(a.v, blocks, at + threadIdx.x);
    }
    __syncthreads();
    for (int j = warp; j < n; j += kThreads / 32) {
      float score = 0;
      for (int i = lane; i < a.k_dim; i += 32) score += q[i] * cache_element<kElement>(k_rows[j], a.k.width, k_column + i);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) score += __shfl_xor_sync(0xffffffffu, score, step);
      if (lane == 0) weights[j] = score * a.scale;
    }
    __syncthreads();
    float larger = top;
    bool number = true;
    for (int j = 0; j < n; j++) larger = fmaxf(larger, weights[j]), number = number && !isnan(weights[j]);
    __syncthreads();
    if (threadIdx.x < n) weights[threadIdx.x] = number ? expf(weights[threadIdx.x] - larger) : NAN;  // a NaN must stay visible
    __syncthreads();
    const float shrink = top == larger ? 1.0f : expf(top - larger);
    top = larger;
    sum *= shrink;
    for (int j = 0; j < n; j++) sum += weights[j];
    for (int i = threadIdx.x; i < a.v_dim; i += kThreads) {
      float value = acc[i] * shrink;
#pragma unroll 4
      for (int j = 0; j < n; j++) value += weights[j] * cache_element<kElement>(v_rows[j], a.v.width, v_column + i);
      acc[i] = value;
    }
  }
  float* const out = a.out + blockIdx.x * a.out_row + head * a.out_head;
  for (int i = threadIdx.x; i < a.v_dim; i += kThreads) out[i] = acc[i] / sum;
}

template <Element kElement>
void launch(const GeneralArgs& a, cudaStream_t stream) {
  const int bytes = (a.k_dim + a.v_dim) * 4;
  if (bytes > 40 << 10) allow_shared_memory<general_kernel<kElement>>(200 << 10);
  const dim3 grid(static_cast<unsigned>(a.row_end - a.row_begin), static_cast<unsigned>(a.heads));
  launch_dependent(general_kernel<kElement>, grid, kThreads, static_cast<size_t>(bytes), stream, a);
}

}  // namespace

void launch_attention_general(const GeneralArgs& a, cudaStream_t stream) {
  switch (a.k.element) {
    case Element::kF32: return launch<Element::kF32>(a, stream);
    case Element::kBf16: return launch<Element::kBf16>(a, stream);
    case Element::kF16: return launch<Element::kF16>(a, stream);
    case Element::kE4m3: return launch<Element::kE4m3>(a, stream);
    case Element::kInt8: return launch<Element::kInt8>(a, stream);
  }
}

}  // namespace dg::cuda
