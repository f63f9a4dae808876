// Integer tile products with AVX2. The byte product takes one unsigned factor, so |w| is multiplied with x carrying the sign of
// w. |x| <= 127 and |w| <= 128: a pair sums to 32512 at most, within int16, and nothing saturates.
#pragma once
#include <immintrin.h>

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kIntegerRows = 4;  // 8 sums, 4 registers of codes, the activations, ones and two temporaries

// 32 codes: the quads of 8 outputs.
struct DotCodes {
  __m256i w, size;
  explicit DotCodes(__m256i codes) : w(codes), size(_mm256_abs_epi8(codes)) {}
  // sum + the products with one quad of activations in all lanes
  __m256i add(__m256i sum, __m256i x) const {
    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE

#include "backends/cpu/kernels/panel_dot_avx.h"
