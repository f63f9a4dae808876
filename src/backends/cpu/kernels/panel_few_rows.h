// 4-bit weights times a few tokens with AVX-512 VNNI, on the machines with AMX too: the codes go straight into the dot products.
// A machine with AMX spends 16 instructions on unpacking 64 bytes of nibbles to int8; for few tokens there are two better ways.
//
// few_rows: the int8 codes of the other paths, without their detour over memory: the same bits. Slower than
// exact_rows: the nibbles themselves are multiplied, and each group's sum then with its multiplier,
//   8 code = (n - 8) m  (+ 8 (z + m))        sum of the group: m (x . n - 8 sum(x))  (+ (z + m) 8 sum(x))
// which all fits 16 bits, so one vpdpwssd adds a group. With a table its values are multiplied, and a group's sum needs 32 bits. The codes
// are not rounded to int8, so a result differs from that of a large batch in the last bits of the weights (to the better).
// PanelProduct::batch_invariant chooses.
#pragma once
#include "backends/cpu/kernels/panel_unpack_avx512.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int64_t kFewRows = 4;

// Part of the instruction that uses it; an 8-byte load shared by two of them would go through a general register.
inline __m512i broadcast_quad(const void* p) {
  int32_t quad;
  std::memcpy(&quad, p, 4);
  return _mm512_set1_epi32(quad);
}

// sums[t * 16 ...] (+)= product of one block of k; `activation` are the scales and corrections of the block.
template <PanelKind kKind, int T>
inline void few_rows_block(const std::byte* from, int64_t width, const int8_t* table, const std::byte* x, const float* activation,
                           bool first, float* sums) {
  constexpr bool kOffset = kKind == PanelKind::kInt4Offset, kTable = kKind == PanelKind::kInt4Table;
  const __m512i n3_bits = _mm512_set1_epi16(static_cast<short>(0xf000)), n2_bits = _mm512_set1_epi16(0x0f00);
  const __m512i n1_bits = _mm512_set1_epi16(0x00f0), n0_bits = _mm512_set1_epi16(0x000f);
  const __m512i even_bytes = _mm512_set1_epi16(0x00ff), round = _mm512_set1_epi16(0x0080), plus_128 = _mm512_set1_epi16(128);
  NibbleTable values;
  if constexpr (kTable) values = NibbleTable(table);
  __m512i even_quads[T], odd_quads[T];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) even_quads[t] = odd_quads[t] = _mm512_setzero_si512();
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const std::byte* side = from + 1024;
    for (int group = 0; group < 4; group++) {
      const __m512i m = widen_outputs(side + group * 16);
      const __m512i m2 = _mm512_add_epi16(m, m), m16 = _mm512_slli_epi16(m, 4), m32 = _mm512_slli_epi16(m, 5);
      // As unpack_int4, with 128 added to every code: the instruction takes unsigned ones.
      const __m512i z =
          _mm512_add_epi16(kOffset ? widen_outputs(side + 64 + group * 16) : _mm512_sub_epi16(_mm512_setzero_si512(), m), plus_128);
      const __m512i z_high = _mm512_or_si512(_mm512_slli_epi16(z, 8), round), z_signed = _mm512_add_epi16(z, m);
      const TableMultiplier by(m);
      const std::byte* xs = x + (k + group * 32) / 64 * 1024 + (group & 1) * 32;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const __m512i w = load512(from + i * 64);
        _mm_prefetch(reinterpret_cast<const char*>(from + i * 64 + kPrefetchBytes), _MM_HINT_T0);
        __m512i r0, r1;
        if constexpr (kTable) {
          const __m512i low = nibble_index(w), high = nibble_index(_mm512_srli_epi16(w, 4)),
                        sign = _mm512_set1_epi8(static_cast<char>(0x80));
          r0 = _mm512_xor_si512(by.codes(values, high, low), sign);
          r1 = _mm512_xor_si512(by.codes(values, low, high), sign);
        } else {
          const __m512i e0 = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_and_si512(w, n3_bits), m), z_signed);
          const __m512i e1 = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_and_si512(w, n2_bits), m16), z);
          const __m512i o0 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(w, n0_bits), m32), z_high);
          const __m512i o1 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(w, n1_bits), m2), z_high);
          r0 = _mm512_ternarylogic_epi32(even_bytes, e0, o0, 0xca), r1 = _mm512_ternarylogic_epi32(even_bytes, e1, o1, 0xca);
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const std::byte* const codes = xs + t * 64 + i * 8;
          even_quads[t] = _mm512_dpbusd_epi32(even_quads[t], r0, broadcast_quad(codes));
          odd_quads[t] = _mm512_dpbusd_epi32(odd_quads[t], r1, broadcast_quad(codes + 4));
        }
      }
      from += 256;
    }
    from += kOffset ? 128 : 64;
  }
  const __m512 weight_scale = _mm512_loadu_ps(from);
  const auto* corrections = reinterpret_cast<const int32_t*>(activation + 16);
#pragma GCC unroll 4
  for (int t = 0; t < T; t++) {
    const __m512i raw = _mm512_sub_epi32(_mm512_add_epi32(even_quads[t], odd_quads[t]), _mm512_set1_epi32(corrections[t]));
    const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(raw), _mm512_set1_ps(activation[t]));
    float* sum = sums + t * 16;
    _mm512_storeu_ps(sum, _mm512_fmadd_ps(value, weight_scale, first ? _mm512_setzero_ps() : _mm512_loadu_ps(sum)));
  }
}

template <PanelKind kKind>
inline void few_rows_panel(const std::byte* panel, int64_t in, const int8_t* table, const std::byte* x, const float* activation,
                           int64_t tokens, float* sums) {
  const int64_t padded = panel_padded(kKind, in);
  for (int64_t k = 0; k < padded; k += kPanelBlock) {
    const int64_t width = padded - k < kPanelBlock ? padded - k : kPanelBlock;
    const std::byte* at = x + k / 64 * 1024;
    switch (tokens) {
      case 1: few_rows_block<kKind, 1>(panel, width, table, at, activation, k == 0, sums); break;
      case 2: few_rows_block<kKind, 2>(panel, width, table, at, activation, k == 0, sums); break;
      case 3: few_rows_block<kKind, 3>(panel, width, table, at, activation, k == 0, sums); break;
      default: few_rows_block<kKind, 4>(panel, width, table, at, activation, k == 0, sums); break;
    }
    panel += panel_code_bytes(kKind, width) + 64;
    activation += 32;
  }
}

// Rows of activations for exact_rows, of all of k: bytes in the order of the nibbles, and -8 times the sum of every group of 32.
struct ExactRows {
  const int8_t* codes;   // (tokens, padded)
  const int32_t* minus;  // (tokens, padded / 32)
  int64_t padded;
};

constexpr int64_t exact_rows_bytes(int64_t padded, int64_t tokens) { return tokens * (padded + padded / 32 * 4); }

// x: the first `tokens` rows of a tile of packed activations.
inline ExactRows order_exact_rows(const std::byte* x, int64_t padded, int64_t tokens, std::byte* to) {
  // Of 8 columns those whose nibbles a 32-bit word holds low in its bytes, then those it holds high (nibble_place).
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(1, 4, 3, 6, 5, 0, 7, 2, 9, 12, 11, 14, 13, 8, 15, 10));
  auto* codes = reinterpret_cast<int8_t*>(to);
  auto* minus = reinterpret_cast<int32_t*>(to + tokens * padded);
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t k = 0; k < padded; k += 64) {
      const __m512i v = load512(x + k * 16 + t * 64);
      _mm512_storeu_si512(codes + t * padded + k, _mm512_shuffle_epi8(v, order));
      const __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(8), v);
      int32_t* const at = minus + (t * padded + k) / 32;
      at[0] = -_mm512_mask_reduce_add_epi32(0x00ff, sums);
      at[1] = -_mm512_mask_reduce_add_epi32(0xff00, sums);
    }
  return {codes, minus, padded};
}

// sums[p * 256 + t * 16 ...] (+)= product of P panels with columns [k0, k0 + width). Per 64 bytes of nibbles 5.5 instructions that are
// no loads with one token, 2.25 more with each further one. Several panels in turn: the hardware fetches several streams ahead, and
// starts anew at every 4 KiB.
template <PanelKind kKind, int T, int P>
inline void exact_rows_block(const std::byte* const* panels, int64_t k0, int64_t width, const int8_t* table, const ExactRows& x,
                             const float* activation, float* sums) {
  constexpr bool kOffset = kKind == PanelKind::kInt4Offset, kTable = kKind == PanelKind::kInt4Table;
  constexpr int64_t kChunkBytes = panel_code_bytes(kKind, kInt4Chunk);
  constexpr int kUnsigned = kTable ? 16 : 1;  // 128 is added to values, 8 to codes
  NibbleTable values;
  if constexpr (kTable) values = NibbleTable(table);
  const __m512i nibbles = _mm512_set1_epi8(0x0f), centre = _mm512_set1_epi16(0x0800), low_words = _mm512_set1_epi32(0xffff);
  const std::byte* from[P];
  __m512i total[P][T];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) {
    from[p] = panels[p];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) total[p][t] = _mm512_setzero_si512();
  }
  for (int64_t k = k0; k < k0 + width; k += kInt4Chunk) {
    for (int64_t group = 0; group < 4; group++) {
      const int64_t at = k + group * 32;
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        const std::byte *line = from[p] + group * 256, *side = from[p] + 1024 + group * 16;
        const __m512i signed_m = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(side)));
        __m512i m = _mm512_and_si512(signed_m, low_words);
        if constexpr (kOffset) {
          const __m512i z = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(side + 64)));
          m = _mm512_or_si512(m, _mm512_slli_epi32(_mm512_add_epi32(z, signed_m), 16));
        }
        __m512i sum[T];
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sum[t] = _mm512_set1_epi32(x.minus[(t * x.padded + at) / 32] * kUnsigned);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          const __m512i w = load512(line + i * 64);
          _mm_prefetch(reinterpret_cast<const char*>(line + i * 64 + kPrefetchBytes), _MM_HINT_T0);
          __m512i low, high;
          if constexpr (kTable) {
            low = look_up(~__mmask64{0}, nibble_index(w), values.plus_128);
            high = look_up(~__mmask64{0}, nibble_index(_mm512_srli_epi16(w, 4)), values.plus_128);
          } else {
            low = _mm512_and_si512(w, nibbles);
            high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(w, 4), nibbles, centre, 0x6a);  // (w >> 4 & nibbles) ^ centre
          }
#pragma GCC unroll 4
          for (int t = 0; t < T; t++) {
            const int8_t* const codes = x.codes + t * x.padded + at + i * 8;
            sum[t] = _mm512_dpbusd_epi32(sum[t], low, broadcast_quad(codes));
            sum[t] = _mm512_dpbusd_epi32(sum[t], high, broadcast_quad(codes + 4));
          }
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          if constexpr (kOffset) {
            const __m512i plus = _mm512_set1_epi32(-x.minus[(t * x.padded + at) / 32] << 16);
            sum[t] = _mm512_ternarylogic_epi32(low_words, sum[t], plus, 0xca);  // the low half of sum, the high one of plus
          }
          if constexpr (kTable) total[p][t] = _mm512_add_epi32(total[p][t], _mm512_mullo_epi32(sum[t], signed_m));  // 2^30 at most
          else total[p][t] = _mm512_dpwssd_epi32(total[p][t], sum[t], m);
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) from[p] += kChunkBytes;
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) {
    const __m512 weight_scale = _mm512_mul_ps(_mm512_loadu_ps(from[p]), _mm512_set1_ps(kTable ? 1.0f / 128 : 1.0f / 8));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(total[p][t]), _mm512_set1_ps(activation[t]));
      float* sum = sums + p * 256 + t * 16;
      _mm512_storeu_ps(sum, _mm512_fmadd_ps(value, weight_scale, k0 == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(sum)));
    }
  }
}

// Sums of `count` panels with `tokens` (1 to kFewRows) rows, all of k.
template <PanelKind kKind, int T>
inline void exact_rows_panels(const std::byte* const* panels, int count, const int8_t* table, const ExactRows& x, const float* activation,
                              float* sums) {
  for (int p = 0; p < count;) {
    const int group = count - p >= 4 ? 4 : count - p >= 2 ? 2 : 1;
    const std::byte* at[4];
    for (int i = 0; i < group; i++) at[i] = panels[p + i];
    for (int64_t k = 0; k < x.padded; k += kPanelBlock) {
      const int64_t width = x.padded - k < kPanelBlock ? x.padded - k : kPanelBlock;
      const float* scales = activation + k / kPanelBlock * 32;
      if (group == 4) exact_rows_block<kKind, T, 4>(at, k, width, table, x, scales, sums + p * 256);
      else if (group == 2) exact_rows_block<kKind, T, 2>(at, k, width, table, x, scales, sums + p * 256);
      else exact_rows_block<kKind, T, 1>(at, k, width, table, x, scales, sums + p * 256);
      for (int i = 0; i < group; i++) at[i] += panel_code_bytes(kKind, width) + 64;
    }
    p += group;
  }
}
template <PanelKind kKind>
inline void exact_rows_panels(const std::byte* const* panels, int count, const int8_t* table, const ExactRows& x, const float* activation,
                              int64_t tokens, float* sums) {
  switch (tokens) {
    case 1: return exact_rows_panels<kKind, 1>(panels, count, table, x, activation, sums);
    case 2: return exact_rows_panels<kKind, 2>(panels, count, table, x, activation, sums);
    case 3: return exact_rows_panels<kKind, 3>(panels, count, table, x, activation, sums);
    default: return exact_rows_panels<kKind, 4>(panels, count, table, x, activation, sums);
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
