// Writing rows of the paged cache on the device, byte for byte as quant/convert.h and device/cache_format.h do on the host.
#pragma once
#include "backends/cuda/kernels/row_convert.h"
#include "backends/cuda/kernels/row_kernels.h"

namespace dg::cuda {

constexpr int kInt8Group = 64;  // kInt8CacheGroup

__device__ __forceinline__ unsigned char* cache_row(const CacheRows& c, int slot) {
  return static_cast<unsigned char*>(c.data) + slot / c.block_tokens * c.block_bytes + slot % c.block_tokens * c.row_bytes;
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

// Columns [column, column + 4) of a row, not int8. `vector`: four elements at a time.
template <Element kElement>
__device__ __forceinline__ void store_four(unsigned char* row, int64_t column, float4 v, bool vector) {
  using Stored = decltype(encode<kElement>(0.0f));
  Stored* const to = reinterpret_cast<Stored*>(row) + column;
  const Four<Stored> four = {{encode<kElement>(v.x), encode<kElement>(v.y), encode<kElement>(v.z), encode<kElement>(v.w)}};
  if (vector) {
    *reinterpret_cast<Four<Stored>*>(to) = four;
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) to[i] = four.v[i];
  }
}

// How the int8 codes of a group follow from the largest magnitude in it (its bits, which order like the magnitudes).
struct Int8Scale {
  uint16_t bits;
  bool finite;
  float inverse;
  __device__ __forceinline__ explicit Int8Scale(uint32_t largest) : finite(largest < 0x7f800000u) {
    bits = int8_scale_bits(__uint_as_float(largest), finite);
    const float scale = f16_bits_to_float(bits);
    inverse = finite && scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
  }
  __device__ __forceinline__ unsigned char code(float v) const {
    float code = finite ? __fmul_rn(v, inverse) : 1.0f;
    code = code > 127.0f ? 127.0f : code < -127.0f ? -127.0f : code;
    return static_cast<unsigned char>(__float_as_uint(__fadd_rn(code, 12582912.0f)) - 0x4b400000u);
  }
  // Bytes: a row may start at an odd address.
  __device__ __forceinline__ void store(unsigned char* row, int64_t width, int64_t group) const {
    unsigned char* const to = row + (width + 1) / 2 * 2 + group * 2;
    to[0] = static_cast<unsigned char>(bits), to[1] = static_cast<unsigned char>(bits >> 8);
  }
};
__device__ __forceinline__ uint32_t magnitude_bits(float v) { return __float_as_uint(v) & 0x7fffffffu; }

}  // namespace dg::cuda
