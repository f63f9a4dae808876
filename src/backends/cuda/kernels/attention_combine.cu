// Merge of the splits of decode rows, in the order of their positions: splits x dim floats in, dim out for a row and head. Small beside
// the attention before it; several heads to a block, four columns to a thread.
#include "backends/cuda/kernels/cache_rows.h"
#include "backends/cuda/kernels/launch.cuh"

namespace dg::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) combine_kernel(const CombineArgs a) {
  start_next();
  wait_for_previous();
  const int sequence = blockIdx.z, row = blockIdx.y;
  if (!a.sequences.decode[sequence] || row >= a.sequences.q_len[sequence]) return;
  const int batch_row = a.sequences.q_begin[sequence] + row;
  if (batch_row < a.row_begin || batch_row >= a.row_end) return;
  const int threads = a.dim / 4, head = blockIdx.x * (kThreads / threads) + threadIdx.x / threads, column = threadIdx.x % threads * 4;
  if (head >= a.heads) return;
  const int kv_len = a.sequences.kv_len[sequence], length = split_length(a.plan, kv_len);
  if (kv_len <= length) return;  // written by the only split
  const int visible = kv_len - a.sequences.q_len[sequence] + row + 1, splits = (visible + length - 1) / length;
  const int64_t index = ((static_cast<int64_t>(sequence) * a.sequences.longest_decode_q + row) * a.heads + head) * a.plan.splits;
  const float2* const sums = a.sums + index;
  const float* const from = a.partials + index * a.dim + column;
  float top = -INFINITY;
  for (int s = 0; s < splits; s++) top = fmaxf(top, sums[s].x);
  const float base = softmax_base(top);
  float4 value = {0, 0, 0, 0};
  float sum = 0;
#pragma unroll 4
  for (int s = 0; s < splits; s++) {
    const float2 part = sums[s];
    const float4 v = *reinterpret_cast<const float4*>(from + static_cast<int64_t>(s) * a.dim);
    const float weight = exp2f(part.x - base);
    sum += weight * part.y;
    value.x += weight * v.x, value.y += weight * v.y, value.z += weight * v.z, value.w += weight * v.w;
  }
  const float inverse = 1.0f / sum;
  const int64_t at = (batch_row - a.row_begin) * a.out_row + head * a.out_head + column;
  if (a.bf16) {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(a.out) + at) = {pack_bf16(value.x * inverse, value.y * inverse),
                                                                     pack_bf16(value.z * inverse, value.w * inverse)};
  } else {
    float* const out = static_cast<float*>(a.out) + at;
    out[0] = value.x * inverse, out[1] = value.y * inverse, out[2] = value.z * inverse, out[3] = value.w * inverse;
  }
}

}  // namespace

void launch_attention_combine(const CombineArgs& a, cudaStream_t stream) {
  const int heads = kThreads / (a.dim / 4);
  const dim3 grid(static_cast<unsigned>((a.heads + heads - 1) / heads), static_cast<unsigned>(a.sequences.longest_decode_q),
                  static_cast<unsigned>(a.sequences.count));
  launch_dependent(combine_kernel, grid, kThreads, 0, stream, a);
}

}  // namespace dg::cuda
