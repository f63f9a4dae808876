// Unpacking of panel codes with NEON: 4-bit codes to int8 (the arithmetic of panel_unpack_avx512.h), FP8 to bf16.
// The results stand as in the panels: rows of 64 bytes, 16 columns of 4 int8 or 2 bf16. Or they are zipped for the matrix products:
// rows of 128 bytes, 16 columns of 8 or 4, the quads or pairs 2j and 2j + 1 of a column side by side.
#pragma once
#include <arm_neon.h>

#include "quant/panel.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int64_t kPrefetchBytes = 4096;

inline const int8_t* codes_of(const std::byte* p) { return reinterpret_cast<const int8_t*>(p); }
inline void prefetch_codes(const std::byte* p) { __builtin_prefetch(p + kPrefetchBytes); }

// 4 quads of the even and 4 of the odd row of 64 bytes, to their place for column 4 * `part`.
template <bool kZipped>
inline void store_quads(int8x16_t even, int8x16_t odd, int part, int8_t* to) {
  if constexpr (kZipped) {
    const int32x4_t a = vreinterpretq_s32_s8(even), b = vreinterpretq_s32_s8(odd);
    vst1q_s8(to + part * 32, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
    vst1q_s8(to + part * 32 + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
  } else {
    vst1q_s8(to + part * 16, even);
    vst1q_s8(to + part * 16 + 64, odd);
  }
}

// 4 bytes, one per output -> 16-bit words, two per output.
inline int16x8_t widen_outputs(int8x16_t bytes, int part) {
  switch (part) {
    case 0: return vmovl_s8(vget_low_s8(vzip1q_s8(bytes, bytes)));
    case 1: return vmovl_high_s8(vzip1q_s8(bytes, bytes));
    case 2: return vmovl_s8(vget_low_s8(vzip2q_s8(bytes, bytes)));
    default: return vmovl_high_s8(vzip2q_s8(bytes, bytes));
  }
}

template <bool kOffset, bool kZipped>
inline void unpack_int4(const std::byte* from_bytes, int64_t width, std::byte* to_bytes) {
  const int16x8_t n3_bits = vdupq_n_s16(static_cast<int16_t>(0xf000)), n2_bits = vdupq_n_s16(0x0f00);
  const int16x8_t n1_bits = vdupq_n_s16(0x00f0), n0_bits = vdupq_n_s16(0x000f), round = vdupq_n_s16(0x0080);
  const uint8x16_t even_bytes = vreinterpretq_u8_u16(vdupq_n_u16(0x00ff));
  const int8_t* from = codes_of(from_bytes);
  auto* to = reinterpret_cast<int8_t*>(to_bytes);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const int8_t* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      const int8x16_t multipliers = vld1q_s8(side + group * 16), offsets = vld1q_s8(side + (kOffset ? 64 : 0) + group * 16);
#pragma GCC unroll 4
      for (int part = 0; part < 4; part++) {
        const int16x8_t m = widen_outputs(multipliers, part);
        const int16x8_t m2 = vshlq_n_s16(m, 1), m16 = vshlq_n_s16(m, 4), m32 = vshlq_n_s16(m, 5);
        const int16x8_t z = kOffset ? widen_outputs(offsets, part) : vnegq_s16(m);
        const int16x8_t z_high = vorrq_s16(vshlq_n_s16(z, 8), round), z_signed = vaddq_s16(z, m);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const int16x8_t w = vreinterpretq_s16_s8(vld1q_s8(from + i * 64 + part * 16));
          if (part == 0) prefetch_codes(reinterpret_cast<const std::byte*>(from) + i * 64);
          int16x8_t e0 = vqrdmulhq_s16(vandq_s16(w, n3_bits), m);
          if constexpr (kOffset) e0 = vaddq_s16(e0, z_signed);
          const int16x8_t e1 = vaddq_s16(vqrdmulhq_s16(vandq_s16(w, n2_bits), m16), z);
          const int16x8_t o0 = vmlaq_s16(z_high, vandq_s16(w, n0_bits), m32);
          const int16x8_t o1 = vmlaq_s16(z_high, vandq_s16(w, n1_bits), m2);
          store_quads<kZipped>(vbslq_s8(even_bytes, vreinterpretq_s8_s16(e0), vreinterpretq_s8_s16(o0)),
                               vbslq_s8(even_bytes, vreinterpretq_s8_s16(e1), vreinterpretq_s8_s16(o1)), part, to + i * 128);
        }
      }
      from += 256;
      to += 512;
    }
    from += kOffset ? 128 : 64;
  }
}

// (table[nibble] * m + 64) >> 7, formed in the wanted byte: for even bytes from the value in the high byte, for odd ones from 128 + value
// in the low byte.
template <bool kZipped>
inline void unpack_table(const std::byte* from_bytes, int64_t width, const int8_t* table, std::byte* to_bytes) {
  const uint8x16_t nibbles = vdupq_n_u8(0x0f), values = vreinterpretq_u8_s8(vld1q_s8(table)), plus_128 = veorq_u8(values, vdupq_n_u8(0x80));
  const uint8x16_t even_bytes = vreinterpretq_u8_u16(vdupq_n_u16(0x00ff));
  const int16x8_t high_byte = vdupq_n_s16(static_cast<int16_t>(0xff00)), low_byte = vdupq_n_s16(0x00ff);
  const int8_t* from = codes_of(from_bytes);
  auto* to = reinterpret_cast<int8_t*>(to_bytes);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const int8_t* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      const int8x16_t multipliers = vld1q_s8(side + group * 16);
#pragma GCC unroll 4
      for (int part = 0; part < 4; part++) {
        const int16x8_t m = widen_outputs(multipliers, part), m2 = vshlq_n_s16(m, 1);
        const int16x8_t z = vsubq_s16(vdupq_n_s16(0x0080), vshlq_n_s16(m, 8));  // the rounding, less 128 m
        const auto even = [&](uint8x16_t index) __attribute__((always_inline)) {
          return vreinterpretq_s8_s16(vqrdmulhq_s16(vandq_s16(vreinterpretq_s16_u8(vqtbl1q_u8(values, index)), high_byte), m));
        };
        const auto odd = [&](uint8x16_t index) __attribute__((always_inline)) {
          return vreinterpretq_s8_s16(vmlaq_s16(z, vandq_s16(vreinterpretq_s16_u8(vqtbl1q_u8(plus_128, index)), low_byte), m2));
        };
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const uint8x16_t w = vreinterpretq_u8_s8(vld1q_s8(from + i * 64 + part * 16));
          if (part == 0) prefetch_codes(reinterpret_cast<const std::byte*>(from) + i * 64);
          const uint8x16_t low = vandq_u8(w, nibbles), high = vshrq_n_u8(w, 4);
          store_quads<kZipped>(vbslq_s8(even_bytes, even(high), odd(low)), vbslq_s8(even_bytes, even(low), odd(high)), part, to + i * 128);
        }
      }
      from += 256;
      to += 512;
    }
    from += 64;
  }
}

inline void zip_rows(const std::byte* from_bytes, int64_t bytes, std::byte* to_bytes) {
  const int8_t* from = codes_of(from_bytes);
  auto* to = reinterpret_cast<int8_t*>(to_bytes);
  for (int64_t i = 0; i < bytes; i += 128) {
    prefetch_codes(from_bytes + i);
    prefetch_codes(from_bytes + i + 64);
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++)
      store_quads<true>(vld1q_s8(from + i + part * 16), vld1q_s8(from + i + 64 + part * 16), part, to + i);
  }
}

// bf16 of E4M3: magnitude * 16 + 120 * 128, but for the codes below 16 (of which 8 are subnormal) bytes from a table.
template <bool kZipped>
inline void unpack_fp8(const std::byte* from, int64_t width, std::byte* to) {
  static constexpr uint8_t kLow[16] = {0, 0, 0x80, 0xc0, 0, 0x20, 0x40, 0x60, 0x80, 0x90, 0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0};
  static constexpr uint8_t kHigh[16] = {0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c};
  const uint8x16_t low_table = vld1q_u8(kLow), high_table = vld1q_u8(kHigh), exponent = vdupq_n_u8(0x70), bias = vdupq_n_u8(0x3c);
  const uint8x16_t magnitude_bits = vdupq_n_u8(0x7f), nibble = vdupq_n_u8(0x0f);
  // 16 bytes hold a pair of 4 columns, then the next pair of these columns.
  static constexpr uint8_t kPairs[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  const uint8x16_t pairs = vld1q_u8(kPairs);
  constexpr int64_t kSecond = kZipped ? 16 : 64;
  const auto* codes = reinterpret_cast<const uint8_t*>(from);
  auto* out = reinterpret_cast<uint8_t*>(to);
  for (int64_t i = 0; i < width * kPanelRows; i += 64) {
    prefetch_codes(from + i);
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) {
      uint8x16_t b = vld1q_u8(codes + i + part * 16);
      if constexpr (kZipped) b = vqtbl1q_u8(b, pairs);
      const uint8x16_t n = vandq_u8(b, nibble), top = vandq_u8(b, exponent);
      const uint8x16_t small = vceqzq_u8(top);
      const uint8x16_t low = vbslq_u8(small, vqtbl1q_u8(low_table, n), vshlq_n_u8(b, 4));
      const uint8x16_t magnitude = vbslq_u8(small, vqtbl1q_u8(high_table, n), vsraq_n_u8(bias, top, 4));
      const uint8x16_t high = vbslq_u8(magnitude_bits, magnitude, b);
      uint8_t* const columns = out + i * 2 + part * (kZipped ? 32 : 16);
      vst1q_u8(columns, vzip1q_u8(low, high));
      vst1q_u8(columns + kSecond, vzip2q_u8(low, high));
    }
  }
}

template <PanelKind kKind, bool kZipped>
inline void unpack_neon(const std::byte* from, int64_t width, [[maybe_unused]] const int8_t* table, std::byte* to) {
  if constexpr (kKind == PanelKind::kInt4) unpack_int4<false, kZipped>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Offset) unpack_int4<true, kZipped>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Table) unpack_table<kZipped>(from, width, table, to);
  if constexpr (kKind == PanelKind::kInt8 && kZipped) zip_rows(from, width * kPanelRows, to);
  if constexpr (kKind == PanelKind::kBf16 && kZipped) zip_rows(from, width * kPanelRows * 2, to);
  if constexpr (kKind == PanelKind::kFp8) unpack_fp8<kZipped>(from, width, to);
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
