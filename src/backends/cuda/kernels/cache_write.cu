// Rows of f32 into the paged cache, in its element type (device/cache_format.h): 4 bytes read and 1 to 4 written for an element, so
// bound by memory in prefill and by latency in decode.
#include <algorithm>

#include "backends/cuda/kernels/row_convert.h"
#include "backends/cuda/kernels/row_kernels.h"

namespace dg::cuda {
namespace {

constexpr int kInt8Group = 64;  // kInt8CacheGroup

__device__ __forceinline__ unsigned char* cache_row(const CacheWriteArgs& a, int slot) {
  return static_cast<unsigned char*>(a.cache) + slot / a.block_tokens * a.block_bytes + slot % a.block_tokens * a.row_bytes;
}

template <Element kElement>
__device__ __forceinline__ auto encode(float v) {
  if constexpr (kElement == Element::kF32) return v;
  else if constexpr (kElement == Element::kBf16) return float_to_bf16_bits(v);
  else if constexpr (kElement == Element::kF16) return float_to_f16_bits(v);
  else return float_to_e4m3_bits(v);
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// kVector: four neighbours at a time; the width, the rows of `values` and those of the cache are multiples of four elements.
template <Element kElement, bool kVector>
__global__ void cache_write_kernel(const CacheWriteArgs a) {
  using Stored = decltype(encode<kElement>(0.0f));
  constexpr int kEach = kVector ? 4 : 1;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kEach;
  if (i >= a.width) return;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const int slot = a.slots[row];
    if (slot < 0) continue;
    const float* const from = a.values + row * a.values_stride + i;
    Stored* const to = reinterpret_cast<Stored*>(cache_row(a, slot)) + i;
    if constexpr (kVector) {
      const float4 v = *reinterpret_cast<const float4*>(from);
      *reinterpret_cast<Four<Stored>*>(to) = {{encode<kElement>(v.x), encode<kElement>(v.y), encode<kElement>(v.z), encode<kElement>(v.w)}};
    } else {
      *to = encode<kElement>(*from);
    }
  }
}

// A warp encodes a group of 64 columns: int8_cache_encode.
__global__ void cache_write_int8_kernel(const CacheWriteArgs a) {
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32, begin = group * kInt8Group;
  if (begin >= a.width) return;
  const int lane = threadIdx.x % 32, n = static_cast<int>(min(a.width - begin, int64_t{kInt8Group}));
  const int64_t scales = (a.width + 1) / 2 * 2;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const int slot = a.slots[row];
    if (slot < 0) continue;
    const float* const from = a.values + row * a.values_stride + begin;
    unsigned char* const to = cache_row(a, slot);
    float v[2];
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      v[k] = lane + 32 * k < n ? from[lane + 32 * k] : 0.0f;
      largest = max(largest, __float_as_uint(v[k]) & 0x7fffffffu);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    const bool finite = largest < 0x7f800000u;
    const uint16_t bits = int8_scale_bits(__uint_as_float(largest), finite);
    const float scale = f16_bits_to_float(bits), inverse = finite && scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
#pragma unroll
    for (int k = 0; k < 2; k++) {
      if (lane + 32 * k >= n) continue;
      float code = finite ? __fmul_rn(v[k], inverse) : 1.0f;
      code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
      to[begin + lane + 32 * k] = static_cast<unsigned char>(__float_as_uint(__fadd_rn(code, 12582912.0f)) - 0x4b400000u);
    }
    if (lane == 0) {  // bytes: a row may start at an odd address
      to[scales + group * 2] = static_cast<unsigned char>(bits);
      to[scales + group * 2 + 1] = static_cast<unsigned char>(bits >> 8);
      if (begin + n == a.width && a.width % 2 != 0) to[a.width] = 0;
    }
  }
}

template <Element kElement>
void launch_elements(const CacheWriteArgs& a, int bytes, cudaStream_t stream) {
  const auto address = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
  const bool vector = a.width % 4 == 0 && a.values_stride % 4 == 0 && address(a.values) % 16 == 0 && address(a.cache) % (4 * bytes) == 0 &&
                      a.block_bytes % (4 * bytes) == 0 && a.row_bytes % (4 * bytes) == 0;
  const int64_t threads = vector ? a.width / 4 : a.width;
  const dim3 grid(static_cast<unsigned>((threads + 127) / 128), static_cast<unsigned>(std::min<int64_t>(a.rows, 65535)));
  if (vector) cache_write_kernel<kElement, true><<<grid, 128, 0, stream>>>(a);
  else cache_write_kernel<kElement, false><<<grid, 128, 0, stream>>>(a);
}

}  // namespace

void launch_cache_write(const CacheWriteArgs& a, cudaStream_t stream) {
  switch (a.element) {
    case Element::kF32: return launch_elements<Element::kF32>(a, 4, stream);
    case Element::kBf16: return launch_elements<Element::kBf16>(a, 2, stream);
    case Element::kF16: return launch_elements<Element::kF16>(a, 2, stream);
    case Element::kE4m3: return launch_elements<Element::kE4m3>(a, 1, stream);
    case Element::kInt8: break;
  }
  const int64_t groups = (a.width + kInt8Group - 1) / kInt8Group;
  const dim3 grid(static_cast<unsigned>((groups + 3) / 4), static_cast<unsigned>(std::min<int64_t>(a.rows, 65535)));
  cache_write_int8_kernel<<<grid, 128, 0, stream>>>(a);
}

}  // namespace dg::cuda
