// Unpacking of panel codes with AVX-512 BW: 4-bit codes to int8 (13 instructions per 64 bytes, which give 128), FP8
// to bf16. The results stand as AMX and VNNI want them: rows of 64 bytes, 16 columns of 4 int8 or 2 bf16.
#pragma once
#include <immintrin.h>

#include "quant/panel.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

template <PanelKind kKind>
constexpr bool kNeedsUnpack = has_nibbles(kKind) || kKind == PanelKind::kFp8;

constexpr int64_t kPrefetchBytes = 2176;  // two chunks: measured best of 1 to 8 KiB, far enough ahead for one core's share of DRAM

inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

// 16 bytes, one per output -> 16-bit words, two per output.
inline __m512i widen_outputs(const void* p) {
  const __m512i dwords = _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  return _mm512_or_si512(_mm512_and_si512(dwords, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(dwords, 16));
}

// Each product n * m is formed where its bits (n * m + 4) >> 3 fall into the wanted byte: even bytes by a multiplication that
// keeps the rounded high half, odd bytes by one that keeps the low half.
template <bool kOffset>
inline void unpack_int4(const std::byte* from, int64_t width, std::byte* to) {
  const __m512i n3_bits = _mm512_set1_epi16(static_cast<short>(0xf000)), n2_bits = _mm512_set1_epi16(0x0f00);
  const __m512i n1_bits = _mm512_set1_epi16(0x00f0), n0_bits = _mm512_set1_epi16(0x000f);
  const __m512i even_bytes = _mm512_set1_epi16(0x00ff), round = _mm512_set1_epi16(0x0080);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const std::byte* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      const __m512i m = widen_outputs(side + group * 16);
      const __m512i m2 = _mm512_add_epi16(m, m), m16 = _mm512_slli_epi16(m, 4), m32 = _mm512_slli_epi16(m, 5);
      const __m512i z = kOffset ? widen_outputs(side + 64 + group * 16) : _mm512_sub_epi16(_mm512_setzero_si512(), m);
      const __m512i z_high = _mm512_or_si512(_mm512_slli_epi16(z, 8), round), z_signed = _mm512_add_epi16(z, m);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const __m512i w = load512(from + i * 64);
        _mm_prefetch(reinterpret_cast<const char*>(from + i * 64 + kPrefetchBytes), _MM_HINT_T0);
        __m512i e0 = _mm512_mulhrs_epi16(_mm512_and_si512(w, n3_bits), m);
        if constexpr (kOffset) e0 = _mm512_add_epi16(e0, z_signed);
        const __m512i e1 = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_and_si512(w, n2_bits), m16), z);
        const __m512i o0 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(w, n0_bits), m32), z_high);
        const __m512i o1 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(w, n1_bits), m2), z_high);
        _mm512_storeu_si512(to + i * 128, _mm512_ternarylogic_epi32(even_bytes, e0, o0, 0xca));  // even ? e : o
        _mm512_storeu_si512(to + i * 128 + 64, _mm512_ternarylogic_epi32(even_bytes, e1, o1, 0xca));
      }
      from += 256;
      to += 512;
    }
    from += kOffset ? 128 : 64;
  }
}

// Values of nibbles by Format::table4: of the low nibbles of `index` bytes, all others and the bytes that are not in the mask are 0.
#if defined(__AVX512VBMI__)
inline __m512i nibble_index(__m512i w) { return w; }
inline __m512i look_up(__mmask64 bytes, __m512i index, __m512i table) { return _mm512_maskz_permutexvar_epi8(bytes, index, table); }
#else
inline __m512i nibble_index(__m512i w) { return _mm512_and_si512(w, _mm512_set1_epi8(0x0f)); }
inline __m512i look_up(__mmask64 bytes, __m512i index, __m512i table) { return _mm512_maskz_shuffle_epi8(bytes, table, index); }
#endif

struct NibbleTable {
  __m512i values, plus_128;
  NibbleTable() = default;
  explicit NibbleTable(const int8_t* table)
      : values(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)))),
        plus_128(_mm512_xor_si512(values, _mm512_set1_epi8(static_cast<char>(0x80)))) {}
};

// (table[nibble] * m + 64) >> 7, formed in the wanted byte as above: for even bytes from the value in the high byte, for odd ones from
// 128 + value in the low byte. 13 instructions per 64 bytes, with VBMI.
struct TableMultiplier {
  __m512i m, m2, z;
  explicit TableMultiplier(__m512i by)
      : m(by), m2(_mm512_add_epi16(m, m)), z(_mm512_sub_epi16(_mm512_set1_epi16(0x0080), _mm512_slli_epi16(m, 8))) {}  // less 128 m
  __m512i codes(const NibbleTable& t, __m512i even_index, __m512i odd_index) const {
    constexpr __mmask64 kEvenBytes = 0x5555555555555555, kOddBytes = ~kEvenBytes;
    const __m512i even = _mm512_mulhrs_epi16(look_up(kOddBytes, even_index, t.values), m);
    const __m512i odd = _mm512_add_epi16(_mm512_mullo_epi16(look_up(kEvenBytes, odd_index, t.plus_128), m2), z);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16(0x00ff), even, odd, 0xca);
  }
};

inline void unpack_table(const std::byte* from, int64_t width, const int8_t* table, std::byte* to) {
  const NibbleTable t(table);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const std::byte* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      const TableMultiplier by(widen_outputs(side + group * 16));
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const __m512i w = load512(from + i * 64);
        _mm_prefetch(reinterpret_cast<const char*>(from + i * 64 + kPrefetchBytes), _MM_HINT_T0);
        const __m512i low = nibble_index(w), high = nibble_index(_mm512_srli_epi16(w, 4));
        _mm512_storeu_si512(to + i * 128, by.codes(t, high, low));
        _mm512_storeu_si512(to + i * 128 + 64, by.codes(t, low, high));
      }
      from += 256;
      to += 512;
    }
    from += 64;
  }
}

#if defined(__AVX512VBMI__)
// bf16 of every E4M3 magnitude, as tables of low and high bytes.
struct Fp8Tables {
  alignas(64) uint8_t low[128], high[128];
};
constexpr Fp8Tables make_fp8_tables() {
  Fp8Tables t{};
  constexpr uint16_t kSubnormal[8] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};  // n * 2^-9
  for (int i = 0; i < 128; i++) {
    const int bits = i < 8 ? kSubnormal[i] : (i << 4) + (120 << 7);
    t.low[i] = static_cast<uint8_t>(bits & 255);
    t.high[i] = static_cast<uint8_t>(bits >> 8);
  }
  return t;
}
alignas(64) constexpr Fp8Tables kFp8Tables = make_fp8_tables();

inline void unpack_fp8(const std::byte* from, int64_t width, std::byte* to) {
  const __m512i low0 = load512(kFp8Tables.low), low1 = load512(kFp8Tables.low + 64);
  const __m512i high0 = load512(kFp8Tables.high), high1 = load512(kFp8Tables.high + 64), sign = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t i = 0; i < width * kPanelRows; i += 64) {
    const __m512i b = load512(from + i);
    _mm_prefetch(reinterpret_cast<const char*>(from + i + kPrefetchBytes), _MM_HINT_T0);
    const __m512i low = _mm512_permutex2var_epi8(low0, b, low1), magnitude = _mm512_permutex2var_epi8(high0, b, high1);
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, b, sign, 0xf8);  // magnitude | (b & sign)
    _mm512_storeu_si512(to + i * 2, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + i * 2 + 64, _mm512_unpackhi_epi8(low, high));
  }
}

#else
// Without VBMI: magnitude * 16 + 120 * 128, but for the codes below 16 (of which 8 are subnormal) bytes from a table.
inline void unpack_fp8(const std::byte* from, int64_t width, std::byte* to) {
  const __m512i low_table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, -128, -64, 0, 0x20, 0x40, 0x60, -128, -112, -96, -80, -64, -48, -32, -16));
  const __m512i high_table =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c, 0x3c));
  const __m512i nibble = _mm512_set1_epi8(0x0f), exponent = _mm512_set1_epi8(0x70), bias = _mm512_set1_epi8(0x3c);
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t i = 0; i < width * kPanelRows; i += 64) {
    const __m512i b = load512(from + i);
    _mm_prefetch(reinterpret_cast<const char*>(from + i + kPrefetchBytes), _MM_HINT_T0);
    const __m512i n = _mm512_and_si512(b, nibble), top = _mm512_srli_epi16(_mm512_and_si512(b, exponent), 4);
    const __mmask64 small = _mm512_testn_epi8_mask(b, exponent);
    const __m512i low = _mm512_mask_shuffle_epi8(_mm512_slli_epi16(n, 4), small, low_table, n);
    const __m512i magnitude = _mm512_mask_shuffle_epi8(_mm512_add_epi8(top, bias), small, high_table, n);
    const __m512i high = _mm512_ternarylogic_epi32(magnitude, b, sign, 0xf8);  // magnitude | (b & sign)
    _mm512_storeu_si512(to + i * 2, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + i * 2 + 64, _mm512_unpackhi_epi8(low, high));
  }
}
#endif

template <PanelKind kKind>
inline void unpack_codes(const std::byte* from, int64_t width, [[maybe_unused]] const int8_t* table, std::byte* to) {
  if constexpr (kKind == PanelKind::kInt4) unpack_int4<false>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Offset) unpack_int4<true>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Table) unpack_table(from, width, table, to);
  if constexpr (kKind == PanelKind::kFp8) unpack_fp8(from, width, to);
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
