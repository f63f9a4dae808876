// 4-bit weights times one to four tokens with AVX-512 VNNI, on the machines with AMX too: the codes go from the unpacking straight
// into the dot products, without a detour over memory and tiles. 16 instructions per 64 bytes of nibbles and one token, so one core
// keeps up with its share of DRAM. The integers are those of the other paths, so the results are the same bits.
#pragma once
#include "backends/cpu/kernels/panel_unpack_avx512.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int64_t kFewRows = 4;

// sums[t * 16 ...] (+)= product of one block of k; `activation` are the scales and corrections of the block.
template <bool kOffset, int T>
inline void few_rows_block(const std::byte* from, int64_t width, const std::byte* x, const float* activation, bool first, float* sums) {
  const __m512i n3_bits = _mm512_set1_epi16(static_cast<short>(0xf000)), n2_bits = _mm512_set1_epi16(0x0f00);
  const __m512i n1_bits = _mm512_set1_epi16(0x00f0), n0_bits = _mm512_set1_epi16(0x000f);
  const __m512i even_bytes = _mm512_set1_epi16(0x00ff), round = _mm512_set1_epi16(0x0080), plus_128 = _mm512_set1_epi16(128);
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
      const std::byte* xs = x + (k + group * 32) / 64 * 1024 + (group & 1) * 32;
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const __m512i w = load512(from + i * 64);
        _mm_prefetch(reinterpret_cast<const char*>(from + i * 64 + kPrefetchBytes), _MM_HINT_T0);
        const __m512i e0 = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_and_si512(w, n3_bits), m), z_signed);
        const __m512i e1 = _mm512_add_epi16(_mm512_mulhrs_epi16(_mm512_and_si512(w, n2_bits), m16), z);
        const __m512i o0 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(w, n0_bits), m32), z_high);
        const __m512i o1 = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(w, n1_bits), m2), z_high);
        const __m512i r0 = _mm512_ternarylogic_epi32(even_bytes, e0, o0, 0xca), r1 = _mm512_ternarylogic_epi32(even_bytes, e1, o1, 0xca);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          int32_t quad[2];
          std::memcpy(quad, xs + t * 64 + i * 8, 8);
          even_quads[t] = _mm512_dpbusd_epi32(even_quads[t], r0, _mm512_set1_epi32(quad[0]));
          odd_quads[t] = _mm512_dpbusd_epi32(odd_quads[t], r1, _mm512_set1_epi32(quad[1]));
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
    _mm512_storeu_ps(sum, first ? _mm512_mul_ps(value, weight_scale) : _mm512_fmadd_ps(value, weight_scale, _mm512_loadu_ps(sum)));
  }
}

template <bool kOffset>
inline void few_rows_panel(const std::byte* panel, int64_t in, const std::byte* x, const float* activation, int64_t tokens, float* sums) {
  constexpr PanelKind kKind = kOffset ? PanelKind::kInt4Offset : PanelKind::kInt4;
  const int64_t padded = panel_padded(kKind, in);
  for (int64_t k = 0; k < padded; k += kPanelBlock) {
    const int64_t width = padded - k < kPanelBlock ? padded - k : kPanelBlock;
    const std::byte* at = x + k / 64 * 1024;
    switch (tokens) {
      case 1: few_rows_block<kOffset, 1>(panel, width, at, activation, k == 0, sums); break;
      case 2: few_rows_block<kOffset, 2>(panel, width, at, activation, k == 0, sums); break;
      case 3: few_rows_block<kOffset, 3>(panel, width, at, activation, k == 0, sums); break;
      default: few_rows_block<kOffset, 4>(panel, width, at, activation, k == 0, sums); break;
    }
    panel += panel_code_bytes(kKind, width) + 64;
    activation += 32;
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
