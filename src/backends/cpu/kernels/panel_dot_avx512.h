// Tile products with AVX-512: integers with VNNI, or without it with byte products and their sums in int16 (as in
// panel_dot_avx2.h, nothing saturates), bf16 weights with f32 multiply-add (activations stay f32).
// One step of k for 16 outputs is one register of codes: 64 bytes are the quads (or 32 bytes the pairs) of 16 columns.
#pragma once
#include "backends/cpu/kernels/panel_rows_f32.h"
#include "backends/cpu/kernels/panel_unpack_avx512.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int kTilesAtATime = 1, kPanelsAtATime = 2, kPanelsOfOneTile = 2;

// 64 codes: the quads of 16 outputs. add: sum + the products with one quad of activations in all lanes.
#if defined(__AVX512VNNI__)
constexpr bool kUnsignedCodes = true;  // codes + 128 are the unsigned factor
struct DotCodes {
  __m512i w;
  void set(__m512i codes) { w = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80))); }
  __m512i add(__m512i sum, __m512i x) const { return _mm512_dpbusd_epi32(sum, w, x); }
};
#else
constexpr bool kUnsignedCodes = false;  // |w| times x with the sign of w
struct DotCodes {
  __m512i size;
  __mmask64 negative;
  void set(__m512i codes) { size = _mm512_abs_epi8(codes), negative = _mm512_movepi8_mask(codes); }
  __m512i add(__m512i sum, __m512i x) const {
    const __m512i pairs = _mm512_maddubs_epi16(size, _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
  }
};
#endif

template <bool kPrefetch, int T, int N>
inline void dot_integer_rows(const std::byte* x, const std::byte* const* b, int64_t width, int32_t* c) {
  __m512i sum[T][N];
#pragma GCC unroll 16
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) sum[t][j] = _mm512_setzero_si512();
  for (int64_t tile = 0; tile < width / 64; tile++) {
    const std::byte* xs = x + tile * 1024;
    for (int quad = 0; quad < 16; quad++) {
      DotCodes w[N];
#pragma GCC unroll 2
      for (int j = 0; j < N; j++) {
        w[j].set(load512(b[j] + tile * 1024 + quad * 64));
        if constexpr (kPrefetch && T < 8)
          _mm_prefetch(reinterpret_cast<const char*>(b[j] + tile * 1024 + quad * 64 + kPrefetchBytes), _MM_HINT_T0);
      }
#pragma GCC unroll 16
      for (int t = 0; t < T; t++) {
        int32_t four;
        std::memcpy(&four, xs + t * 64 + quad * 4, 4);
        const __m512i xv = _mm512_set1_epi32(four);
#pragma GCC unroll 2
        for (int j = 0; j < N; j++) sum[t][j] = w[j].add(sum[t][j], xv);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) _mm512_storeu_si512(c + j * 256 + t * 16, sum[t][j]);
}

// Rows in groups of 12, 4 and 1: 24 sums, two registers of codes and one of activations fit the 32 registers.
template <bool kPrefetch, int N>
inline void dot_integer_tile(const std::byte* x, int64_t rows, const std::byte* const* b, int64_t width, int32_t* c) {
  int64_t t = 0;
  for (; t + 12 <= rows; t += 12) dot_integer_rows<kPrefetch, 12, N>(x + t * 64, b, width, c + t * 16);
  for (; t + 4 <= rows; t += 4) dot_integer_rows<kPrefetch, 4, N>(x + t * 64, b, width, c + t * 16);
  for (; t < rows; t++) dot_integer_rows<kPrefetch, 1, N>(x + t * 64, b, width, c + t * 16);
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int n, int64_t width,
                        int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  if (n == 2) dot_integer_tile<kPrefetch, 2>(x, rows, b, width, c);
  else dot_integer_tile<kPrefetch, 1>(x, rows, b, width, c);
}

template <bool kPrefetch, int T, int N>
inline void dot_float_rows(const std::byte* x, const std::byte* const* b, int64_t width, bool accumulate, float* c) {
  __m512 sum[T][N];
#pragma GCC unroll 16
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) sum[t][j] = accumulate ? _mm512_loadu_ps(c + j * 256 + t * 16) : _mm512_setzero_ps();
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int64_t k = 0; k < width; k += 2) {
    const float* xs = reinterpret_cast<const float*>(x) + k / 16 * 256 + k % 16;
    __m512 even[N], odd[N];
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) {
      const __m512i pairs = load512(b[j] + k * 32);
      if constexpr (kPrefetch && T < 8) _mm_prefetch(reinterpret_cast<const char*>(b[j] + k * 32 + kPrefetchBytes), _MM_HINT_T0);
      even[j] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
      odd[j] = _mm512_castsi512_ps(_mm512_and_si512(pairs, high));
    }
#pragma GCC unroll 16
    for (int t = 0; t < T; t++)
#pragma GCC unroll 2
      for (int j = 0; j < N; j++) {
        sum[t][j] = _mm512_fmadd_ps(even[j], _mm512_set1_ps(xs[t * 16]), sum[t][j]);
        sum[t][j] = _mm512_fmadd_ps(odd[j], _mm512_set1_ps(xs[t * 16 + 1]), sum[t][j]);
      }
  }
#pragma GCC unroll 16
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int j = 0; j < N; j++) _mm512_storeu_ps(c + j * 256 + t * 16, sum[t][j]);
}

template <bool kPrefetch, int N>
inline void dot_float_tile(const std::byte* x, int64_t rows, const std::byte* const* b, int64_t width, bool accumulate, float* c) {
  int64_t t = 0;
  for (; t + 12 <= rows; t += 12) dot_float_rows<kPrefetch, 12, N>(x + t * 64, b, width, accumulate, c + t * 16);
  for (; t + 4 <= rows; t += 4) dot_float_rows<kPrefetch, 4, N>(x + t * 64, b, width, accumulate, c + t * 16);
  for (; t < rows; t++) dot_float_rows<kPrefetch, 1, N>(x + t * 64, b, width, accumulate, c + t * 16);
}

template <bool kPrefetch>
inline void dot_float(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int n, int64_t width,
                      bool accumulate, float* c, int64_t /*c_tile*/) {
  if (n == 2) dot_float_tile<kPrefetch, 2>(x, rows, b, width, accumulate, c);
  else dot_float_tile<kPrefetch, 1>(x, rows, b, width, accumulate, c);
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
