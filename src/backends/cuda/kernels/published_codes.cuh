// Elements of weights as published (quant/*.h), one at a time and byte by byte: packs have odd sizes, and addresses any alignment.
#pragma once
#include "backends/cuda/kernels/weight_unpack.cuh"

namespace dg::cuda {

struct PublishedMatrix {
  const uint8_t* data;
  const uint8_t* scales;
  int64_t in;
};

__device__ __forceinline__ uint32_t byte_u16(const uint8_t* p) { return p[0] | static_cast<uint32_t>(p[1]) << 8; }
__device__ __forceinline__ uint32_t byte_u32(const uint8_t* p) { return byte_u16(p) | byte_u16(p + 2) << 16; }
__device__ __forceinline__ float byte_f16(const uint8_t* p) { return half_float(byte_u16(p)); }
__device__ __forceinline__ float byte_f32(const uint8_t* p) { return __uint_as_float(byte_u32(p)); }

__device__ __forceinline__ float e4m3_float(uint32_t v) {
  const uint32_t magnitude = v & 0x7fu;
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f : __uint_as_float((magnitude << 20) + (120u << 23));
  return __uint_as_float(__float_as_uint(value) | (v & 0x80u) << 24);
}

__device__ __forceinline__ int low_or_high(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }

__device__ __forceinline__ void k_scale(const uint8_t* b, int i, int& scale, int& minimum) {
  if (i < 4) {
    scale = b[i] & 63;
    minimum = b[i + 4] & 63;
  } else {
    scale = (b[i + 4] & 15) | (b[i - 4] >> 6) << 4;
    minimum = (b[i + 4] >> 4) | (b[i] >> 6) << 4;
  }
}

static __device__ const int8_t kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static __device__ const int8_t kFp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Element k of `row`, k < in.
template <Published kFormat>
__device__ __forceinline__ float published_value(const PublishedMatrix& m, int64_t row, int64_t k) {
  using enum Published;
  const int64_t element = row * m.in + k;
  if constexpr (kFormat == kF32) return byte_f32(m.data + element * 4);
  if constexpr (kFormat == kBf16) return __uint_as_float(byte_u16(m.data + element * 2) << 16);
  if constexpr (kFormat == kF16) return byte_f16(m.data + element * 2);
  if constexpr (kFormat == kFp8Block || kFormat == kFp8Block32) {
    constexpr int side = kFormat == kFp8Block ? 128 : 32;
    return e4m3_float(m.data[element]) * byte_f32(m.scales + (row / side * ((m.in + side - 1) / side) + k / side) * 4);
  }
  if constexpr (kFormat == kFp8Channel) return e4m3_float(m.data[element]) * byte_f32(m.scales + row * 4);
  if constexpr (kFormat == kInt8) return byte_f32(m.scales + row * 4) * static_cast<float>(static_cast<int8_t>(m.data[element]));

  // Packs of 32.
  const int64_t packs = (m.in + 31) / 32, pack = row * packs + k / 32;
  const int i = static_cast<int>(k % 32);
  if constexpr (kFormat == kInt4) return byte_f16(m.scales + pack * 2) * static_cast<float>(low_or_high(m.data + pack * 16, i) - 8);
  if constexpr (kFormat == kQ80) {
    const uint8_t* p = m.data + pack * 34;
    return byte_f16(p) * static_cast<float>(static_cast<int8_t>(p[2 + i]));
  }
  if constexpr (kFormat == kInt4Asym) {
    const uint8_t* p = m.data + pack * 20;
    return byte_f16(p) * static_cast<float>(low_or_high(p + 4, i) - static_cast<int>(byte_u16(p + 2)));
  }
  if constexpr (kFormat == kInt8Asym) {
    const uint8_t* p = m.data + pack * 36;
    return byte_f16(p) * static_cast<float>(static_cast<int>(p[4 + i]) - static_cast<int>(byte_u16(p + 2)));
  }
  if constexpr (kFormat == kQ40) {
    const uint8_t* p = m.data + pack * 18;
    return byte_f16(p) * static_cast<float>(low_or_high(p + 2, i) - 8);
  }
  if constexpr (kFormat == kQ41) {
    const uint8_t* p = m.data + pack * 20;
    return byte_f16(p) * static_cast<float>(low_or_high(p + 4, i)) + byte_f16(p + 2);
  }
  if constexpr (kFormat == kQ50) {
    const uint8_t* p = m.data + pack * 22;
    const int code = low_or_high(p + 6, i) | static_cast<int>(byte_u32(p + 2) >> i & 1) << 4;
    return byte_f16(p) * static_cast<float>(code - 16);
  }
  if constexpr (kFormat == kQ51) {
    const uint8_t* p = m.data + pack * 24;
    const int code = low_or_high(p + 8, i) | static_cast<int>(byte_u32(p + 4) >> i & 1) << 4;
    return byte_f16(p) * static_cast<float>(code) + byte_f16(p + 2);
  }
  if constexpr (kFormat == kIq4Nl) {
    const uint8_t* p = m.data + pack * 18;
    return byte_f16(p) * static_cast<float>(kIq4[low_or_high(p + 2, i)]);
  }
  if constexpr (kFormat == kMxfp4) {
    const uint8_t* p = m.data + pack * 17;
    const uint32_t e = p[0];
    const float half = __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23);
    return half * static_cast<float>(kFp4[low_or_high(p + 1, i)]);
  }

  // Blocks of 256.
  const int64_t blocks = (m.in + 255) / 256, block = row * blocks + k / 256;
  const int b = static_cast<int>(k % 256), sub32 = b / 32, l = b % 32, sub16 = b / 16;
  if constexpr (kFormat == kQ2K) {
    const uint8_t* p = m.data + block * 84;
    const int code = p[16 + 32 * (sub16 / 8) + 16 * (sub16 % 2) + b % 16] >> (2 * (sub16 % 8 / 2)) & 3;
    const float scale = byte_f16(p + 80) * static_cast<float>(p[sub16] & 15),
                minimum = byte_f16(p + 82) * static_cast<float>(p[sub16] >> 4);
    return scale * static_cast<float>(code) - minimum;
  }
  if constexpr (kFormat == kQ3K) {
    const uint8_t* p = m.data + block * 110;
    const int low = p[32 + 32 * (sub16 / 8) + 16 * (sub16 % 2) + b % 16] >> (2 * (sub16 % 8 / 2)) & 3;
    const int high = p[16 * (sub16 % 2) + b % 16] >> (4 * (sub16 / 8) + sub16 % 8 / 2) & 1;
    const uint8_t* s = p + 96;
    const int low_scale = sub16 < 8 ? s[sub16] & 15 : s[sub16 - 8] >> 4;
    const int scale = (low_scale | (s[8 + sub16 % 4] >> (2 * (sub16 / 4)) & 3) << 4) - 32;
    return byte_f16(p + 108) * static_cast<float>(scale) * static_cast<float>(low + high * 4 - 4);
  }
  if constexpr (kFormat == kQ4K || kFormat == kQ5K) {
    const uint8_t* p = m.data + block * (kFormat == kQ4K ? 144 : 176);
    int scale, minimum;
    k_scale(p + 4, sub32, scale, minimum);
    int code = p[(kFormat == kQ4K ? 16 : 48) + 32 * (sub32 / 2) + l] >> (4 * (sub32 % 2)) & 15;
    if constexpr (kFormat == kQ5K) code |= (p[16 + l] >> sub32 & 1) << 4;
    return byte_f16(p) * static_cast<float>(scale) * static_cast<float>(code) - byte_f16(p + 2) * static_cast<float>(minimum);
  }
  if constexpr (kFormat == kQ6K) {
    const uint8_t* p = m.data + block * 210;
    const int half = sub32 / 4, q = sub32 % 4;
    const int low = p[64 * half + 32 * (q % 2) + l] >> (4 * (q / 2)) & 15, high = p[128 + 32 * half + l] >> (2 * q) & 3;
    const float scale = byte_f16(p + 208) * static_cast<float>(static_cast<int8_t>(p[192 + sub16]));
    return scale * static_cast<float>((low | high << 4) - 32);
  }
  if constexpr (kFormat == kIq4Xs) {
    const uint8_t* p = m.data + block * 136;
    const int scale = (p[4 + sub32 / 2] >> (4 * (sub32 % 2)) & 15) | (static_cast<int>(byte_u16(p + 2)) >> (2 * sub32) & 3) << 4;
    return byte_f16(p) * static_cast<float>(scale - 32) * static_cast<float>(kIq4[low_or_high(p + 8 + 16 * sub32, l)]);
  }
}

}  // namespace dg::cuda
