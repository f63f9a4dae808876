// Conversions of single elements on the device, bit for bit those of quant/convert.h (NaN payloads too): what kv_write and copy store
// is what the CPU stores.
#pragma once
#include <cstdint>

namespace dg::cuda {

__device__ __forceinline__ float bf16_bits_to_float(uint32_t v) { return __uint_as_float(v << 16); }
__device__ __forceinline__ uint16_t float_to_bf16_bits(float f) {
  const uint32_t bits = __float_as_uint(f);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

__device__ __forceinline__ float f16_bits_to_float(uint32_t v) {
  const uint32_t magnitude = v & 0x7fffu, sign = (v & 0x8000u) << 16;
  if (magnitude >= 0x7c00u) return __uint_as_float(0x7f800000u | (magnitude << 13) | sign);
  // Exponent field of the half as it is, then 2^(127 - 15): exact, subnormals included.
  return __uint_as_float(__float_as_uint(__fmul_rn(__uint_as_float(magnitude << 13), __uint_as_float(0x77800000u))) | sign);
}
__device__ __forceinline__ uint16_t float_to_f16_bits(float f) {
  const uint32_t bits = __float_as_uint(f), sign = (bits >> 16) & 0x8000u;
  uint32_t a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (a < 0x38800000u) return static_cast<uint16_t>(sign | (__float_as_uint(__fadd_rn(__uint_as_float(a), 0.5f)) - 0x3f000000u));
  a += 0xc8000fffu + ((a >> 13) & 1u);
  return static_cast<uint16_t>(sign | (a >> 13));
}

__device__ __forceinline__ float e4m3_bits_to_float(uint32_t v) {
  const float finite = __fmul_rn(__uint_as_float((v & 0x7fu) << 20), __uint_as_float(0x7b800000u));  // times 2^(127 - 7)
  return __uint_as_float(__float_as_uint(finite) | ((v & 0x80u) << 24));
}
__device__ __forceinline__ uint8_t float_to_e4m3_bits(float f) {
  const uint32_t bits = __float_as_uint(f), sign = (bits >> 24) & 0x80u;
  uint32_t a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (a >= 0x43e80000u) return static_cast<uint8_t>(sign | 0x7eu);
  if (a < 0x3c800000u) return static_cast<uint8_t>(sign | (__float_as_uint(__fadd_rn(__uint_as_float(a), 16384.0f)) - 0x46800000u));
  a += 0x7ffffu + ((a >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((a >> 20) - (120u << 3)));
}

// The scale of an int8 cache group whose largest magnitude is `largest`: device/cache_format.h.
__device__ __forceinline__ uint16_t int8_scale_bits(float largest, bool finite) {
  if (!finite) return 0x7e00;
  const float scale = __fdiv_rn(largest, 127.0f);
  if (scale >= 65504.0f) return 0x7bff;
  const uint16_t bits = float_to_f16_bits(scale);
  return static_cast<uint16_t>(bits + (f16_bits_to_float(bits) < scale ? 1 : 0));
}

}  // namespace dg::cuda
