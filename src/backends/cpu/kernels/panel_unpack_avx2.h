// Unpacking of panel codes with AVX2: 4-bit codes to int8 (the arithmetic of panel_unpack_avx512.h), FP8 to bf16. The results
// stand as in the panels of int8 and bf16: rows of 64 bytes, 16 columns of 4 int8 or 2 bf16.
#pragma once
#include <immintrin.h>

#include "quant/panel.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

template <PanelKind kKind>
constexpr bool kNeedsUnpack = has_nibbles(kKind) || kKind == PanelKind::kFp8;

constexpr int64_t kPrefetchBytes = 4096;

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store256(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
inline void prefetch_codes(const std::byte* p) { _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes), _MM_HINT_T0); }

// 8 bytes, one per output -> 16-bit words, two per output.
inline __m256i widen_outputs(const void* p) {
  const __m256i dwords = _mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
  return _mm256_or_si256(_mm256_and_si256(dwords, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(dwords, 16));
}

template <bool kOffset>
inline void unpack_int4(const std::byte* from, int64_t width, std::byte* to) {
  const __m256i n3_bits = _mm256_set1_epi16(static_cast<short>(0xf000)), n2_bits = _mm256_set1_epi16(0x0f00);
  const __m256i n1_bits = _mm256_set1_epi16(0x00f0), n0_bits = _mm256_set1_epi16(0x000f);
  const __m256i odd_bytes = _mm256_set1_epi16(static_cast<short>(0xff00)), round = _mm256_set1_epi16(0x0080);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const std::byte* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      for (int half = 0; half < 2; half++) {
        const __m256i m = widen_outputs(side + group * 16 + half * 8);
        const __m256i m2 = _mm256_add_epi16(m, m), m16 = _mm256_slli_epi16(m, 4), m32 = _mm256_slli_epi16(m, 5);
        const __m256i z = kOffset ? widen_outputs(side + 64 + group * 16 + half * 8) : _mm256_sub_epi16(_mm256_setzero_si256(), m);
        const __m256i z_high = _mm256_or_si256(_mm256_slli_epi16(z, 8), round), z_signed = _mm256_add_epi16(z, m);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const __m256i w = load256(from + i * 64 + half * 32);
          if (half == 0) prefetch_codes(from + i * 64);
          __m256i e0 = _mm256_mulhrs_epi16(_mm256_and_si256(w, n3_bits), m);
          if constexpr (kOffset) e0 = _mm256_add_epi16(e0, z_signed);
          const __m256i e1 = _mm256_add_epi16(_mm256_mulhrs_epi16(_mm256_and_si256(w, n2_bits), m16), z);
          const __m256i o0 = _mm256_add_epi16(_mm256_mullo_epi16(_mm256_and_si256(w, n0_bits), m32), z_high);
          const __m256i o1 = _mm256_add_epi16(_mm256_mullo_epi16(_mm256_and_si256(w, n1_bits), m2), z_high);
          store256(to + i * 128 + half * 32, _mm256_blendv_epi8(e0, o0, odd_bytes));
          store256(to + i * 128 + half * 32 + 64, _mm256_blendv_epi8(e1, o1, odd_bytes));
        }
      }
      from += 256;
      to += 512;
    }
    from += kOffset ? 128 : 64;
  }
}

// (table[nibble] * m + 64) >> 7, formed in the wanted byte as in unpack_int4: for even bytes from the value in the high byte, for odd ones
// from 128 + value in the low byte.
inline void unpack_table(const std::byte* from, int64_t width, const int8_t* table, std::byte* to) {
  const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  const __m256i plus_128 = _mm256_xor_si256(values, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i nibbles = _mm256_set1_epi8(0x0f), odd_bytes = _mm256_set1_epi16(static_cast<short>(0xff00));
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const std::byte* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      for (int half = 0; half < 2; half++) {
        const __m256i m = widen_outputs(side + group * 16 + half * 8), m2 = _mm256_add_epi16(m, m);
        const __m256i z = _mm256_sub_epi16(_mm256_set1_epi16(0x0080), _mm256_slli_epi16(m, 8));  // the rounding, less 128 m
        const auto even = [&](__m256i index) {
          return _mm256_mulhrs_epi16(_mm256_and_si256(_mm256_shuffle_epi8(values, index), odd_bytes), m);
        };
        const auto odd = [&](__m256i index) {
          return _mm256_add_epi16(_mm256_mullo_epi16(_mm256_andnot_si256(odd_bytes, _mm256_shuffle_epi8(plus_128, index)), m2), z);
        };
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const __m256i w = load256(from + i * 64 + half * 32);
          if (half == 0) prefetch_codes(from + i * 64);
          const __m256i low = _mm256_and_si256(w, nibbles), high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibbles);
          store256(to + i * 128 + half * 32, _mm256_blendv_epi8(even(high), odd(low), odd_bytes));
          store256(to + i * 128 + half * 32 + 64, _mm256_blendv_epi8(even(low), odd(high), odd_bytes));
        }
      }
      from += 256;
      to += 512;
    }
    from += 64;
  }
}

// bf16 of E4M3: magnitude * 16 + 120 * 128, but for the codes below 16 (of which 8 are subnormal) bytes from a table.
inline void unpack_fp8(const std::byte* from, int64_t width, std::byte* to) {
  const __m256i low_table =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, -128, -64, 0, 0x20, 0x40, 0x60, -128, -112, -96, -80, -64, -48, -32, -16));
  const __m256i high_table = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c));
  const __m256i nibble = _mm256_set1_epi8(0x0f), exponent = _mm256_set1_epi8(0x07), bias = _mm256_set1_epi8(0x3c);
  const __m256i sign = _mm256_set1_epi8(static_cast<char>(0x80)), zero = _mm256_setzero_si256();
  for (int64_t i = 0; i < width * kPanelRows; i += 64) {
    prefetch_codes(from + i);
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      const __m256i b = load256(from + i + half * 32);
      const __m256i n = _mm256_and_si256(b, nibble), top = _mm256_and_si256(_mm256_srli_epi16(b, 4), exponent);
      const __m256i small = _mm256_cmpeq_epi8(top, zero);
      const __m256i low = _mm256_blendv_epi8(_mm256_slli_epi16(n, 4), _mm256_shuffle_epi8(low_table, n), small);
      const __m256i magnitude = _mm256_blendv_epi8(_mm256_add_epi8(top, bias), _mm256_shuffle_epi8(high_table, n), small);
      const __m256i high = _mm256_or_si256(magnitude, _mm256_and_si256(b, sign));
      store256(to + i * 2 + half * 32, _mm256_unpacklo_epi8(low, high));
      store256(to + i * 2 + half * 32 + 64, _mm256_unpackhi_epi8(low, high));
    }
  }
}

template <PanelKind kKind>
inline void unpack_codes(const std::byte* from, int64_t width, [[maybe_unused]] const int8_t* table, std::byte* to) {
  if constexpr (kKind == PanelKind::kInt4) unpack_int4<false>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Offset) unpack_int4<true>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Table) unpack_table(from, width, table, to);
  if constexpr (kKind == PanelKind::kFp8) unpack_fp8(from, width, to);
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
