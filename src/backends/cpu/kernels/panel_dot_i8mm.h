// Integer tile products with the Armv8.6 matrix product: one instruction multiplies 2 outputs x 8 columns with 2 tokens x 8
// columns. All integer codes are zipped while they are unpacked (panel_unpack_neon.h), once for all tokens. A single row uses
// the dot product on the same codes, which wastes nothing.
#pragma once
#include "backends/cpu/kernels/panel_dot_neon_bf16.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kTilesAtATime = 1, kPanelsAtATime = 1, kPanelsOfOneTile = 1;

template <PanelKind kKind>
constexpr bool kNeedsUnpack = true;

template <PanelKind kKind>
inline void unpack_codes(const std::byte* from, int64_t width, const int8_t* table, std::byte* to) {
  unpack_neon<kKind, true>(from, width, table, to);
}

// P pairs of tokens: 8 P sums of 2 tokens x 2 outputs, P activations and codes: 32 registers with P = 3.
template <int P>
inline void dot_integer_pairs(const std::byte* x, const std::byte* b, int64_t width, int32_t* c) {
  int32x4_t sum[P][8];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) sum[p][j] = vdupq_n_s32(0);
  const int8_t *codes = codes_of(b), *xs = codes_of(x);
  for (int64_t block = 0; block < width; block += 64, xs += 1024 - 64)
    for (int i = 0; i < 64; i += 8, xs += 8, codes += 128) {
      int8x16_t xv[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) xv[p] = vcombine_s8(vld1_s8(xs + p * 128), vld1_s8(xs + p * 128 + 64));
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) {
        const int8x16_t w = vld1q_s8(codes + j * 16);
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) sum[p][j] = vmmlaq_s32(sum[p][j], xv[p], w);
      }
    }
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const int64x2_t a = vreinterpretq_s64_s32(sum[p][2 * j]), d = vreinterpretq_s64_s32(sum[p][2 * j + 1]);
      vst1q_s32(c + p * 32 + j * 4, vreinterpretq_s32_s64(vzip1q_s64(a, d)));
      vst1q_s32(c + p * 32 + 16 + j * 4, vreinterpretq_s32_s64(vzip2q_s64(a, d)));
    }
}

inline void dot_integer_row(const std::byte* x, const std::byte* b, int64_t width, int32_t* c) {
  int32x4_t sum[8];
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) sum[j] = vdupq_n_s32(0);
  const int8_t *codes = codes_of(b), *xs = codes_of(x);
  for (int64_t block = 0; block < width; block += 64, xs += 1024 - 64)
    for (int i = 0; i < 64; i += 8, xs += 8, codes += 128) {
      const int8x16_t xv = vreinterpretq_s8_s64(vld1q_dup_s64(reinterpret_cast<const int64_t*>(xs)));
#pragma GCC unroll 8
      for (int j = 0; j < 8; j++) sum[j] = vdotq_s32(sum[j], vld1q_s8(codes + j * 16), xv);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) vst1q_s32(c + j * 4, vpaddq_s32(sum[2 * j], sum[2 * j + 1]));
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  for_row_groups<6>(rows, [&](auto count, int64_t t) {
    constexpr int kRows = decltype(count)::value;
    if constexpr (kRows == 1) dot_integer_row(x + t * 64, b[0], width, c + t * 16);
    else dot_integer_pairs<kRows / 2>(x + t * 64, b[0], width, c + t * 16);
  });
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
