// How a row of the paged cache is stored: the one place that knows it. f32, bf16, f16 and fp8 (E4M3, scale 1, saturating at
// 448) rows are their `width` elements. An int8 row is `width` codes, a byte of padding if the width is odd, and one f16 scale
// for each 64 columns (the last group may be shorter): value = code * scale, codes in [-127, 127]. Latents and keys differ in
// size between channels, hence the groups; scales that stand behind their row cost 1/32 and arrive with it.
//
// A cache tensor has the shape (blocks, block_tokens, width) in all cases; stride[1] is the row's length in elements of its
// dtype, which for int8 counts the scales. Functions are static inline because the CPU kernels compile them per instruction set.
#pragma once
#include <cstdint>

#include "quant/convert.h"

namespace dg {

enum class Dtype : uint8_t;

constexpr int64_t kInt8CacheGroup = 64;

static inline constexpr int64_t int8_cache_groups(int64_t width) { return (width + kInt8CacheGroup - 1) / kInt8CacheGroup; }
static inline constexpr int64_t int8_cache_scales_offset(int64_t width) { return (width + 1) / 2 * 2; }
static inline constexpr int64_t int8_cache_row_bytes(int64_t width) {
  return int8_cache_scales_offset(width) + 2 * int8_cache_groups(width);
}

// Whether a cache may have this dtype, and the bytes of a row of `width` elements; a multiple of dtype_bytes(dtype).
bool is_cache_dtype(Dtype dtype);
int64_t cache_row_bytes(Dtype dtype, int64_t width);

static inline float int8_cache_scale(const void* row, int64_t width, int64_t column) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(row) + int8_cache_scales_offset(width) + column / kInt8CacheGroup * 2, 2);
  return f16_to_float(bits);
}

// The scale of a group whose largest magnitude is `largest`, rounded up so that no code leaves [-127, 127]. Values beyond
// 127 * 65504 saturate; a group with an infinity or a NaN gets the scale NaN, so that the fault stays visible.
static inline uint16_t int8_cache_scale_bits(float largest, bool finite) {
  if (!finite) return 0x7e00;
  const float scale = largest / 127.0f;
  if (scale >= 65504.0f) return 0x7bff;
  const uint16_t bits = float_to_f16(scale);
  return static_cast<uint16_t>(bits + (f16_to_float(bits) < scale ? 1 : 0));
}

// Encodes `width` floats to one row of int8_cache_row_bytes(width).
static inline void int8_cache_encode(const float* from, int64_t width, void* row) {
  auto* codes = static_cast<int8_t*>(row);
  char* scales = static_cast<char*>(row) + int8_cache_scales_offset(width);
  if (width % 2 != 0) codes[width] = 0;
  for (int64_t begin = 0; begin < width; begin += kInt8CacheGroup, scales += 2) {
    const int64_t n = width - begin < kInt8CacheGroup ? width - begin : kInt8CacheGroup;
    uint32_t largest = 0;  // of the magnitudes' bits, which order like the magnitudes
    for (int64_t i = 0; i < n; i++) {
      const uint32_t bits = float_to_bits(from[begin + i]) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    const bool finite = largest < 0x7f800000u;
    const uint16_t bits = int8_cache_scale_bits(bits_to_float(largest), finite);
    std::memcpy(scales, &bits, 2);
    const float scale = f16_to_float(bits), inverse = finite && scale > 0 ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < n; i++) {
      float v = finite ? from[begin + i] * inverse : 1.0f;
      v = v > 127.0f ? 127.0f : v < -127.0f ? -127.0f : v;
      // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
      codes[begin + i] = static_cast<int8_t>(static_cast<int32_t>(float_to_bits(v + 12582912.0f)) - 0x4b400000);
    }
  }
}

}  // namespace dg
