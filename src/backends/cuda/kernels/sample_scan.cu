// adjust_logits, and the first half of pick_rows: largest logit and sums of every chunk of 256 logits.
//
// scan: 4 bytes a logit, once; 12 instructions a logit and sum (exp2 without multiply-add, so that the bits are those of the host's
// sampler). 64 rows of 152064: 39 MB, a part of them still in L2. A warp takes a chunk: lane l its logits l, l + 32, ..., in that order,
// which are the lanes of engine/sampler_kernels.cpp.
#include <algorithm>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/sample_exp2.cuh"
#include "backends/cuda/kernels/sample_kernels.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// A row's changed tokens are different ones, and what the mask forbids is written by the mask alone: no order among threads.
__global__ void __launch_bounds__(kThreads) adjust_kernel(const AdjustArgs a) {
  wait_for_previous();
  start_next();
  const int64_t row = blockIdx.y;
  const PickSpec& spec = a.specs[row];
  if (spec.candidates == 0) return;
  float* const logits = a.logits + row * a.stride;
  const uint32_t* const mask = spec.mask < 0 ? nullptr : a.masks + spec.mask * a.mask_words;
  const int first = static_cast<int>(blockIdx.x * kThreads + threadIdx.x), step = static_cast<int>(gridDim.x * kThreads);
  for (int i = first; i < spec.change_count; i += step) {
    const LogitChange change = a.changes[spec.first_change + i];
    const int column = change.id - a.first_id;
    if (column < 0 || column >= a.columns) continue;
    if (mask && !(mask[change.id / 32] >> (change.id % 32) & 1)) continue;
    float value = logits[column];
    if (change.outputs >= 0) {
      double logit = value;
      logit = logit > 0 ? __ddiv_rn(logit, spec.repetition) : __dmul_rn(logit, spec.repetition);
      if (change.outputs > 0)
        logit = __dsub_rn(logit, __dadd_rn(spec.presence, __dmul_rn(spec.frequency, static_cast<double>(change.outputs))));
      value = __double2float_rn(logit);
    }
    logits[column] = change.bias == -INFINITY ? -INFINITY : __fadd_rn(value, change.bias);
  }
  if (!mask) return;
  for (int column = first; column < a.columns; column += step) {
    const int id = a.first_id + column;
    if (!(mask[id / 32] >> (id % 32) & 1)) logits[column] = -INFINITY;
  }
}

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, width));
  return v;
}

// Halves are added to halves: in lane 0 the order of the host.
__device__ __forceinline__ float sum_of(const float (&logits)[kChunk / 32], float max, float scale) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < static_cast<int>(kChunk / 32); j++) sum = __fadd_rn(sum, exp2_exact(__fmul_rn(__fsub_rn(logits[j], max), scale)));
#pragma unroll
  for (int width = 16; width > 0; width /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, width));
  return sum;
}

__global__ void __launch_bounds__(kThreads) scan_kernel(const PickArgs a) {
  wait_for_previous();
  start_next();
  const int64_t row = blockIdx.y;
  const PickSpec& spec = a.specs[row];
  const int flags = spec.flags;
  const float scale = spec.scale;
  if (spec.candidates == 0) return;
  const int lane = threadIdx.x % 32;
  const float* const logits = a.logits + row * a.stride;
  for (int chunk = static_cast<int>(blockIdx.x * kWarps + threadIdx.x / 32); chunk < a.chunks;
       chunk += static_cast<int>(gridDim.x * kWarps)) {
    const int begin = chunk * static_cast<int>(kChunk) + lane;
    float values[kChunk / 32];
#pragma unroll
    for (int j = 0; j < static_cast<int>(kChunk / 32); j++) values[j] = begin + 32 * j < a.columns ? logits[begin + 32 * j] : -INFINITY;
    float max = -INFINITY;
#pragma unroll
    for (int j = 0; j < static_cast<int>(kChunk / 32); j++) max = fmaxf(max, values[j]);  // never a NaN
    max = warp_max(max);
    const float sum = flags & kPickSums ? sum_of(values, max, scale) : 0;
    const float sum_at_one = flags & kPickSumsAtOne ? sum_of(values, max, kLog2E) : 0;
    if (lane == 0) {
      const int64_t at = row * a.chunks + chunk;
      a.chunk_max[at] = max;
      a.chunk_sum[at] = sum;
      a.chunk_sum_at_one[at] = sum_at_one;
    }
  }
}

}  // namespace

void launch_adjust_logits(const AdjustArgs& a, cudaStream_t stream) {
  const auto across = static_cast<unsigned>(std::clamp<int64_t>(1024 / a.rows, 1, 32));
  launch_dependent(adjust_kernel, dim3(across, static_cast<unsigned>(a.rows)), dim3(kThreads), 0, stream, a);
}

void launch_scan_rows(const PickArgs& a, cudaStream_t stream) {
  const auto across = static_cast<unsigned>((a.chunks + kWarps - 1) / kWarps);
  launch_dependent(scan_kernel, dim3(across, static_cast<unsigned>(a.rows)), dim3(kThreads), 0, stream, a);
}

}  // namespace dg::cuda
