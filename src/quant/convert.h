// Conversions of single elements between float and the small float types, written so that a loop over them vectorises
// (no tables, no denormal arithmetic). Rounding is to nearest, ties to even. Layouts: ../spec quant_formats section 1.
#pragma once
#include <cstdint>
#include <cstring>

namespace dg {

static inline float bits_to_float(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
static inline uint32_t float_to_bits(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

static inline float bf16_to_float(uint16_t v) { return bits_to_float(static_cast<uint32_t>(v) << 16); }
static inline uint16_t float_to_bf16(float f) {
  uint32_t bits = float_to_bits(f);
  uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  uint32_t nan = (bits >> 16) | 0x40;  // keeps a NaN a NaN
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

// Small float with `kExponentBits`/`kMantissaBits` and bias -> float, finite codes only. A subnormal code is decoded as
// (1.m - 1.0) * 2^(1 - bias), which needs no denormal float.
static inline float small_float_decode(uint32_t magnitude, uint32_t sign, int mantissa_bits, int bias) {
  uint32_t shifted = magnitude << (23 - mantissa_bits);
  uint32_t normal = shifted + (static_cast<uint32_t>(127 - bias) << 23);
  uint32_t one = static_cast<uint32_t>(128 - bias) << 23;
  float subnormal = bits_to_float(shifted + one) - bits_to_float(one);
  float value = (magnitude >> mantissa_bits) == 0 ? subnormal : bits_to_float(normal);
  return bits_to_float(float_to_bits(value) | sign);
}

static inline float f16_to_float(uint16_t v) {
  uint32_t magnitude = v & 0x7fffu, sign = static_cast<uint32_t>(v & 0x8000u) << 16;
  float finite = small_float_decode(magnitude, sign, 10, 15);
  uint32_t special = 0x7f800000u | (magnitude << 13) | sign;  // infinity and NaN keep their payload
  return magnitude >= 0x7c00u ? bits_to_float(special) : finite;
}
static inline uint16_t float_to_f16(float f) {
  uint32_t bits = float_to_bits(f), sign = (bits >> 16) & 0x8000u;
  uint32_t a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity from 65520
  if (a < 0x38800000u) {  // subnormal half: add 0.5 * 2^-23 scaled so that the FPU rounds at bit 2^-24
    float r = bits_to_float(a) + 0.5f;
    return static_cast<uint16_t>(sign | (float_to_bits(r) - 0x3f000000u));
  }
  uint32_t odd = (a >> 13) & 1u;
  a += 0xc8000fffu + odd;  // rebias (127 -> 15) and round to nearest even
  return static_cast<uint16_t>(sign | (a >> 13));
}

// E4M3 (float8_e4m3fn): max 448, no infinity. The NaN codes 0x7f / 0xff decode to +-480 here: the loader refuses them.
static inline float e4m3_to_float(uint8_t v) { return small_float_decode(v & 0x7fu, static_cast<uint32_t>(v & 0x80u) << 24, 3, 7); }
static inline uint8_t float_to_e4m3(float f) {  // saturates at 448; NaN -> 0x7f
  uint32_t bits = float_to_bits(f), sign = (bits >> 24) & 0x80u, a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint8_t>(sign | 0x7fu);
  if (a >= 0x43e80000u) return static_cast<uint8_t>(sign | 0x7eu);  // from 464 up: 448
  if (a < 0x3c800000u) {                                            // below 2^-6: subnormal step 2^-9
    float r = bits_to_float(a) + 16384.0f;                          // ulp of 2^14 is 2^-9
    return static_cast<uint8_t>(sign | (float_to_bits(r) - 0x46800000u));
  }
  uint32_t odd = (a >> 20) & 1u;
  a += 0x7ffffu + odd;
  return static_cast<uint8_t>(sign | ((a >> 20) - (120u << 3)));
}

}  // namespace dg
