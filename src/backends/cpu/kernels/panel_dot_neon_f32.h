// Tile products of bf16 weights with f32 multiply-add in NEON registers; activations stay f32. 64 bytes of pairs are four
// registers of 4 outputs.
#pragma once
#include <arm_neon.h>

#include "backends/cpu/kernels/panel_rows_f32.h"
#include "backends/cpu/kernels/panel_unpack_neon.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

// T * 4 sums, T activations of 4 columns and the even or odd columns of 4 outputs: at most 32 registers with T = 6.
template <bool kPrefetch, int T>
inline void dot_float_rows(const float* x, const std::byte* b, int64_t width, bool accumulate, float* c) {
  float32x4_t sum[T][4];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sum[t][j] = accumulate ? vld1q_f32(c + t * 16 + j * 4) : vdupq_n_f32(0);
  const auto* pairs = reinterpret_cast<const uint32_t*>(b);
  const uint32x4_t high = vdupq_n_u32(0xffff0000);
  for (int64_t k = 0; k < width; k += 4, pairs += 32, x += 4) {
    if (k % 16 == 0 && k > 0) x += 256 - 16;
    if constexpr (kPrefetch && T < 4) {
      prefetch_codes(reinterpret_cast<const std::byte*>(pairs));
      prefetch_codes(reinterpret_cast<const std::byte*>(pairs) + 64);
    }
    float32x4_t xv[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) xv[t] = vld1q_f32(x + t * 16);
#define DG_COLUMN(lane, expand)                                                                                   \
  do {                                                                                                            \
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {                                                         \
      const uint32x4_t p = vld1q_u32(pairs + lane / 2 * 16 + j * 4);                                              \
      const float32x4_t w = vreinterpretq_f32_u32(expand);                                                        \
      _Pragma("GCC unroll 8") for (int t = 0; t < T; t++) sum[t][j] = vfmaq_laneq_f32(sum[t][j], w, xv[t], lane); \
    }                                                                                                             \
  } while (0)
    DG_COLUMN(0, vshlq_n_u32(p, 16));
    DG_COLUMN(1, vandq_u32(p, high));
    DG_COLUMN(2, vshlq_n_u32(p, 16));
    DG_COLUMN(3, vandq_u32(p, high));
#undef DG_COLUMN
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) vst1q_f32(c + t * 16 + j * 4, sum[t][j]);
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
