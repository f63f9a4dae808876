// Rows of f32 into the paged cache, in its element type (device/cache_format.h): 4 bytes read and 1 to 4 written for an element, so
// bound by memory in prefill and by latency in decode.
#include <algorithm>

#include "backends/cuda/kernels/cache_store.cuh"
#include "backends/cuda/kernels/launch.cuh"

namespace dg::cuda {
namespace {

// kVector: four neighbours at a time; the width, the rows of `values` and those of the cache are multiples of four elements.
template <Element kElement, bool kVector>
__global__ void cache_write_kernel(const CacheWriteArgs a) {
  using Stored = decltype(encode<kElement>(0.0f));
  constexpr int kEach = kVector ? 4 : 1;
  start_next();
  wait_for_previous();
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kEach;
  if (i >= a.cache.width) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const int slot = a.slots[row];
    if (slot < 0) continue;
    const float* const from = a.values + row * a.values_stride + i;
    unsigned char* const to = cache_row(a.cache, slot);
    if constexpr (kVector) store_four<kElement>(to, i, *reinterpret_cast<const float4*>(from), true);
    else reinterpret_cast<Stored*>(to)[i] = encode<kElement>(*from);
  }
}

// A warp encodes a group of 64 columns: int8_cache_encode.
__global__ void cache_write_int8_kernel(const CacheWriteArgs a) {
  start_next();
  wait_for_previous();
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, begin = group * kInt8Group;
  const int64_t width = a.cache.width;
  if (begin >= width) return;
  const int lane = threadIdx.x % 32, n = static_cast<int>(min(width - begin, int64_t{kInt8Group}));
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const int slot = a.slots[row];
    if (slot < 0) continue;
    const float* const from = a.values + row * a.values_stride + begin;
    unsigned char* const to = cache_row(a.cache, slot);
    float v[2];
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      v[k] = lane + 32 * k < n ? from[lane + 32 * k] : 0.0f;
      largest = max(largest, magnitude_bits(v[k]));
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    const Int8Scale scale(largest);
#pragma unroll
    for (int k = 0; k < 2; k++)
      if (lane + 32 * k < n) to[begin + lane + 32 * k] = scale.code(v[k]);
    if (lane == 0) {
      scale.store(to, width, group);
      if (begin + n == width && width % 2 != 0) to[width] = 0;
    }
  }
}

template <Element kElement>
void launch_elements(const CacheWriteArgs& a, int bytes, cudaStream_t stream) {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const bool vector = a.cache.width % 4 == 0 && a.values_stride % 4 == 0 && address(a.values) % 16 == 0 && by_four(a.cache, bytes);
  const int64_t threads = vector ? a.cache.width / 4 : a.cache.width;
  const dim3 grid(static_cast<unsigned>((threads + 127) / 128), static_cast<unsigned>(std::min<int64_t>(a.rows, 65535)));
  launch_dependent(vector ? cache_write_kernel<kElement, true> : cache_write_kernel<kElement, false>, grid, 128, 0, stream, a);
}

}  // namespace

void launch_cache_write(const CacheWriteArgs& a, cudaStream_t stream) {
  switch (a.cache.element) {
    case Element::kF32: return launch_elements<Element::kF32>(a, 4, stream);
    case Element::kBf16: return launch_elements<Element::kBf16>(a, 2, stream);
    case Element::kF16: return launch_elements<Element::kF16>(a, 2, stream);
    case Element::kE4m3: return launch_elements<Element::kE4m3>(a, 1, stream);
    case Element::kInt8: break;
  }
  const int64_t groups = (a.cache.width + kInt8Group - 1) / kInt8Group;
  const dim3 grid(static_cast<unsigned>((groups + 3) / 4), static_cast<unsigned>(std::min<int64_t>(a.rows, 65535)));
  launch_dependent(cache_write_int8_kernel, grid, 128, 0, stream, a);
}

}  // namespace dg::cuda
