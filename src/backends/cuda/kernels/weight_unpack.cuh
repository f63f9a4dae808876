// Codes of the block layouts (weight_layout.h) to pairs of bf16 in registers, and their scales. Every code is exact in bf16: the products
// lose nothing but the rounding of x.
//
// Instructions per 8 codes: int8 14, e4m3 18, 4 bits 15 (11 with the offset kept), e2m1 20, iq4 29.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "backends/cuda/weight_layout.h"

namespace dg::cuda {

__device__ __forceinline__ __nv_bfloat162 as_bf162(uint32_t v) {
  __nv_bfloat162 r;
  memcpy(&r, &v, sizeof(r));
  return r;
}
__device__ __forceinline__ uint32_t bits_of(__nv_bfloat162 v) {
  uint32_t r;
  memcpy(&r, &v, sizeof(r));
  return r;
}
__device__ __forceinline__ uint32_t sub_bf162(uint32_t a, uint32_t b) { return bits_of(__hsub2(as_bf162(a), as_bf162(b))); }
__device__ __forceinline__ uint32_t mul_bf162(uint32_t a, uint32_t b) { return bits_of(__hmul2(as_bf162(a), as_bf162(b))); }
__device__ __forceinline__ float low_float(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_float(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ uint32_t pack_bf162(float low, float high) { return bits_of(__floats2bfloat162_rn(low, high)); }

// Bytes of a word are columns 0, 2, 1, 3. int8: (128 + low 7 bits) - (128 or 256).
__device__ __forceinline__ void unpack_int8(uint32_t w, uint32_t& p0, uint32_t& p1) {
  const uint32_t v = w >> 8;
  p0 = sub_bf162((w & 0x007f007fu) | 0x43004300u, (w & 0x00800080u) | 0x43004300u);
  p1 = sub_bf162((v & 0x007f007fu) | 0x43004300u, (v & 0x00800080u) | 0x43004300u);
}

// e4m3 with its exponent in bf16's place is 2^-120 of the value; the product handles subnormals.
__device__ __forceinline__ void unpack_e4m3(uint32_t w, uint32_t& p0, uint32_t& p1) {
  const uint32_t v = w << 8;
  p0 = mul_bf162((v & 0x80008000u) | ((v >> 4) & 0x07f007f0u), 0x7b807b80u);
  p1 = mul_bf162((w & 0x80008000u) | ((w >> 4) & 0x07f007f0u), 0x7b807b80u);
}

// Nibbles p and p + 4 are columns 2 p and 2 p + 1. Codes minus 8 when `centred`, else 128 more than the codes.
template <bool centred>
__device__ __forceinline__ void unpack_int4(uint32_t w, uint32_t (&p)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    p[i] = ((w >> (4 * i)) & 0x000f000fu) | 0x43004300u;
    if (centred) p[i] = sub_bf162(p[i], 0x43084308u);
  }
}

// e2m1: sign to bit 15, exponent and mantissa to bits 8..6: 2^-126 of the value.
__device__ __forceinline__ void unpack_fp4(uint32_t w, uint32_t (&p)[4]) {
  const uint32_t at[4] = {w << 6, w << 2, w >> 2, w >> 6};
  const uint32_t sign[4] = {w << 12, w << 8, w << 4, w};
#pragma unroll
  for (int i = 0; i < 4; i++) p[i] = mul_bf162((sign[i] & 0x80008000u) | (at[i] & 0x01c001c0u), 0x7e807e80u);
}

// kIq4Values by byte permutation: the lower and the upper 8 entries, then the one that bit 3 says.
__device__ __forceinline__ void unpack_iq4(uint32_t w, uint32_t (&p)[4]) {
  constexpr uint32_t t0 = 0xbfad9881u, t1 = 0xf6eaddcfu, t2 = 0x26190d01u, t3 = 0x71594535u;
  const uint32_t index = w & 0x77777777u, half = ((w & 0x88888888u) >> 1) | 0x32103210u;
  const uint32_t even = __byte_perm(__byte_perm(t0, t1, index), __byte_perm(t2, t3, index), half);  // columns 0, 2, 4, 6
  const uint32_t odd = __byte_perm(__byte_perm(t0, t1, index >> 16), __byte_perm(t2, t3, index >> 16), half >> 16);
  unpack_int8(__byte_perm(even, odd, 0x5410), p[0], p[1]);
  unpack_int8(__byte_perm(even, odd, 0x7632), p[2], p[3]);
}

// The 8 columns of a lane in one group: `w0`, `w1` are the two words of 8 bits, `w0` the word of 4 bits. kCode4Offset: 128 too much.
template <WeightKind kKind>
__device__ __forceinline__ void unpack_codes(uint32_t w0, uint32_t w1, uint32_t (&p)[4]) {
  if constexpr (kKind == WeightKind::kFp8Block128 || kKind == WeightKind::kFp8Block32 || kKind == WeightKind::kFp8Row) {
    unpack_e4m3(w0, p[0], p[1]);
    unpack_e4m3(w1, p[2], p[3]);
  } else if constexpr (kKind == WeightKind::kInt8Row || kKind == WeightKind::kCode8 || kKind == WeightKind::kCode8Offset) {
    unpack_int8(w0, p[0], p[1]);
    unpack_int8(w1, p[2], p[3]);
  } else if constexpr (kKind == WeightKind::kCode4) {
    unpack_int4<true>(w0, p);
  } else if constexpr (kKind == WeightKind::kCode4Offset) {
    unpack_int4<false>(w0, p);
  } else if constexpr (kKind == WeightKind::kFp4) {
    unpack_fp4(w0, p);
  } else {
    unpack_iq4(w0, p);
  }
}

__device__ __forceinline__ float half_float(uint32_t bits) { return __half2float(__ushort_as_half(static_cast<unsigned short>(bits))); }

// Words of scales of one row in a block.
template <WeightKind kKind>
constexpr int kScaleWords = chunk_groups(kKind) * group_scale_bytes(kKind) / 4;

template <WeightKind kKind>
__device__ __forceinline__ float group_scale(const uint32_t* words, int j) {
  if constexpr (kKind == WeightKind::kCode8Offset) return __uint_as_float(words[2 * j]);
  if constexpr (kKind == WeightKind::kCode4Offset) return half_float(words[j] & 0xffffu);
  if constexpr (kKind == WeightKind::kFp4) return __uint_as_float((words[0] >> (8 * j) & 0xffu) << 23);
  return half_float(words[j / 2] >> (16 * (j % 2)));
}
// For kCode4Offset times the row's factor, as the scale.
template <WeightKind kKind>
__device__ __forceinline__ float group_offset(const uint32_t* words, int j) {
  if constexpr (kKind == WeightKind::kCode8Offset) return __uint_as_float(words[2 * j + 1]);
  if constexpr (kKind == WeightKind::kCode4Offset) return half_float(words[j] >> 16);
  return 0;
}

}  // namespace dg::cuda
