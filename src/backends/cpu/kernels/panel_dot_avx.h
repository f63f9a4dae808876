// Tile products in 256-bit registers, for panel_dot_avx2.h and panel_dot_avx_vnni.h: integers through their DotCodes, bf16
// weights with f32 multiply-add (activations stay f32). A row of 64 bytes of codes is two registers of 8 outputs.
#pragma once
#include "backends/cpu/kernels/panel_rows_f32.h"
#include "backends/cpu/kernels/panel_unpack_avx2.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int kTilesAtATime = 1, kPanelsAtATime = 1, kPanelsOfOneTile = 1;

template <bool kPrefetch, int T>
inline void dot_integer_rows(const std::byte* x, const std::byte* b, int64_t width, int32_t* c) {
  __m256i sum[T][2];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) sum[t][0] = sum[t][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < width; k += 64) {
    const std::byte *xs = x + k * 16, *codes = b + k * 16;
#pragma GCC unroll 2
    for (int quad = 0; quad < 16; quad++) {
      if constexpr (kPrefetch && T < 4) prefetch_codes(codes + quad * 64);
      const DotCodes w0(load256(codes + quad * 64)), w1(load256(codes + quad * 64 + 32));
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        int32_t four;
        std::memcpy(&four, xs + t * 64 + quad * 4, 4);
        const __m256i xv = _mm256_set1_epi32(four);
        sum[t][0] = w0.add(sum[t][0], xv);
        sum[t][1] = w1.add(sum[t][1], xv);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++) {
    store256(c + t * 16, sum[t][0]);
    store256(c + t * 16 + 8, sum[t][1]);
  }
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  for_row_groups<kIntegerRows>(
      rows, [&](auto count, int64_t t) { dot_integer_rows<kPrefetch, decltype(count)::value>(x + t * 64, b[0], width, c + t * 16); });
}

// 12 sums, the even or odd columns of 16 outputs, one activation and a constant: 16 registers.
template <bool kPrefetch, int T>
inline void dot_float_rows(const float* x, const std::byte* b, int64_t width, bool accumulate, float* c) {
  __m256 sum[T][2];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) sum[t][j] = accumulate ? _mm256_loadu_ps(c + t * 16 + j * 8) : _mm256_setzero_ps();
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  for (int64_t k = 0; k < width; k += 16) {
    const float* xs = x + k * 16;
#pragma GCC unroll 2
    for (int i = 0; i < 16; i += 2) {
      const std::byte* pairs = b + (k + i) * 32;
      if constexpr (kPrefetch && T < 4) prefetch_codes(pairs);
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; odd++) {
        const __m256i p0 = load256(pairs), p1 = load256(pairs + 32);
        const __m256 w0 = _mm256_castsi256_ps(odd ? _mm256_and_si256(p0, high) : _mm256_slli_epi32(p0, 16));
        const __m256 w1 = _mm256_castsi256_ps(odd ? _mm256_and_si256(p1, high) : _mm256_slli_epi32(p1, 16));
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const __m256 xv = _mm256_broadcast_ss(xs + t * 16 + i + odd);
          sum[t][0] = _mm256_fmadd_ps(w0, xv, sum[t][0]);
          sum[t][1] = _mm256_fmadd_ps(w1, xv, sum[t][1]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) _mm256_storeu_ps(c + t * 16 + j * 8, sum[t][j]);
}

template <bool kPrefetch>
inline void dot_float(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/, int64_t width,
                      bool accumulate, float* c, int64_t /*c_tile*/) {
  for_row_groups<6>(rows, [&](auto count, int64_t t) {
    dot_float_rows<kPrefetch, decltype(count)::value>(reinterpret_cast<const float*>(x) + t * 16, b[0], width, accumulate, c + t * 16);
  });
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
