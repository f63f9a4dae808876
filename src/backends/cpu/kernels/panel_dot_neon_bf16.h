// Tile products of bf16 weights with bf16 activations (FEAT_BF16). BFMMLA multiplies 2 tokens x 4 columns with 2 outputs x 4 columns; it
// is defined as one BFDOT per pair of columns, in order, each rounded in the same way. So a few tokens use BFDOT on the panels as they
// lie, many use BFMMLA on zipped ones (panel_unpack_neon.h), and both give the same bits. Denormals count as zero in both.
#pragma once
#include <arm_neon.h>

#include "backends/cpu/kernels/panel_dot_common.h"
#include "backends/cpu/kernels/panel_unpack_neon.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

typedef uint16_t PanelFloat;

// bf16 activations: per 4 columns, 16 tokens x 4 columns, so that a register holds two tokens.
inline void pack_float_row(const float* x, int64_t in, int64_t padded, int64_t t, std::byte* to) {
  auto* out = reinterpret_cast<uint16_t*>(to) + t * 4;
  int64_t k = 0;
  for (; k + 4 <= in; k += 4) vst1_u16(out + k * 16, vreinterpret_u16_bf16(vcvt_bf16_f32(vld1q_f32(x + k))));
  if (k == padded) return;
  float rest[4] = {};
  for (int64_t i = k; i < in; i++) rest[i - k] = x[i];
  for (float32x4_t v = vld1q_f32(rest); k < padded; k += 4, v = vdupq_n_f32(0))
    vst1_u16(out + k * 16, vreinterpret_u16_bf16(vcvt_bf16_f32(v)));
}

inline bfloat16x8_t load_bf16(const uint16_t* p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }

// P pairs of tokens on zipped codes: 8 P sums of 2 tokens x 2 outputs, P activations, codes: 32 registers with P = 3. The last pair may
// hold one token only: what stands in the tile behind it is multiplied too, into a row of c that nobody reads.
template <int P>
inline void dot_float_pairs(const uint16_t* x, const std::byte* b, int64_t width, bool accumulate, float* c) {
  float32x4_t sum[P][8];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const float32x4_t none = vdupq_n_f32(0);
      const float64x2_t r = vreinterpretq_f64_f32(accumulate ? vld1q_f32(c + p * 32 + j * 4) : none);
      const float64x2_t s = vreinterpretq_f64_f32(accumulate ? vld1q_f32(c + p * 32 + 16 + j * 4) : none);
      sum[p][2 * j] = vreinterpretq_f32_f64(vzip1q_f64(r, s));
      sum[p][2 * j + 1] = vreinterpretq_f32_f64(vzip2q_f64(r, s));
    }
  const auto* codes = reinterpret_cast<const uint16_t*>(b);
  const uint16_t* const end = codes + width * 16;
  do {
    bfloat16x8_t xv[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) xv[p] = load_bf16(x + p * 8);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j += 2) {  // two loads make one LDP
      const bfloat16x8_t w0 = load_bf16(codes + j * 8), w1 = load_bf16(codes + j * 8 + 8);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) sum[p][j] = vbfmmlaq_f32(sum[p][j], xv[p], w0);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) sum[p][j + 1] = vbfmmlaq_f32(sum[p][j + 1], xv[p], w1);
    }
    codes += 64, x += 64;
  } while (codes < end);
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const float64x2_t r = vreinterpretq_f64_f32(sum[p][2 * j]), s = vreinterpretq_f64_f32(sum[p][2 * j + 1]);
      vst1q_f32(c + p * 32 + j * 4, vreinterpretq_f32_f64(vzip1q_f64(r, s)));
      vst1q_f32(c + p * 32 + 16 + j * 4, vreinterpretq_f32_f64(vzip2q_f64(r, s)));
    }
}

// T tokens on the codes of a panel: 4 T sums.
template <int T>
inline void dot_float_in_place(const uint16_t* x, const std::byte* b, int64_t width, bool accumulate, float* c) {
  float32x4_t sum[T][4];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sum[t][j] = accumulate ? vld1q_f32(c + t * 16 + j * 4) : vdupq_n_f32(0);
  const auto* codes = reinterpret_cast<const uint16_t*>(b);
  const uint16_t* const end = codes + width * 16;
  do {
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      prefetch_codes(reinterpret_cast<const std::byte*>(codes + i * 64));
      prefetch_codes(reinterpret_cast<const std::byte*>(codes + i * 64 + 32));
      bfloat16x4_t xv[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) xv[t] = vreinterpret_bf16_u16(vld1_u16(x + i * 64 + t * 4));
#pragma GCC unroll 4
      for (int j = 0; j < 4; j += 2) {
        const bfloat16x8_t w0 = load_bf16(codes + i * 64 + j * 8), w1 = load_bf16(codes + i * 64 + j * 8 + 8);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sum[t][j] = vbfdotq_lane_f32(sum[t][j], w0, xv[t], 0);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sum[t][j + 1] = vbfdotq_lane_f32(sum[t][j + 1], w1, xv[t], 0);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; j += 2) {
        const bfloat16x8_t w0 = load_bf16(codes + i * 64 + 32 + j * 8), w1 = load_bf16(codes + i * 64 + 32 + j * 8 + 8);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sum[t][j] = vbfdotq_lane_f32(sum[t][j], w0, xv[t], 1);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) sum[t][j + 1] = vbfdotq_lane_f32(sum[t][j + 1], w1, xv[t], 1);
      }
    }
    codes += 128, x += 128;
  } while (codes < end);
#pragma GCC unroll 4
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) vst1q_f32(c + t * 16 + j * 4, sum[t][j]);
}

// c (+)= x b over `width` columns (a multiple of 8, at least 8). kInPlace: the codes are the panel's, and prefetched; else zipped.
template <bool kInPlace>
inline void dot_float(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/, int64_t width,
                      bool accumulate, float* c, int64_t /*c_tile*/) {
  const auto* xs = reinterpret_cast<const uint16_t*>(x);
  if constexpr (kInPlace)
    for_row_groups<4>(
        rows, [&](auto count, int64_t t) { dot_float_in_place<decltype(count)::value>(xs + t * 4, b[0], width, accumulate, c + t * 16); });
  else
    for_row_groups<3>((rows + 1) / 2, [&](auto count, int64_t p) {
      dot_float_pairs<decltype(count)::value>(xs + p * 8, b[0], width, accumulate, c + p * 32);
    });
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
