// Integer tile products with the Armv8.2 dot product: one instruction multiplies the quads of 4 outputs with one quad of a
// token, taken by lane from a register of 16 columns.
#pragma once
#include "backends/cpu/kernels/panel_dot_neon_f32.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kTilesAtATime = 1, kPanelsAtATime = 1, kPanelsOfOneTile = 1;

template <PanelKind kKind>
constexpr bool kNeedsUnpack = has_nibbles(kKind) || kKind == PanelKind::kFp8;

template <PanelKind kKind>
inline void unpack_codes(const std::byte* from, int64_t width, const int8_t* table, std::byte* to) {
  unpack_neon<kKind, false>(from, width, table, to);
}

// T * 4 sums, T activations and two registers of codes: 32 registers with T = 6.
template <bool kPrefetch, int T>
inline void dot_integer_rows(const std::byte* x, const std::byte* b, int64_t width, int32_t* c) {
  int32x4_t sum[T][4];
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) sum[t][j] = vdupq_n_s32(0);
  const int8_t *codes = codes_of(b), *xs = codes_of(x);
  for (int64_t block = 0; block < width; block += 64, xs += 1024 - 64)
    for (int i = 0; i < 64; i += 16, xs += 16, codes += 256) {
      int8x16_t xv[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) xv[t] = vld1q_s8(xs + t * 64);
#define DG_QUAD(lane)                                                                                             \
  do {                                                                                                            \
    if constexpr (kPrefetch && T < 4) prefetch_codes(reinterpret_cast<const std::byte*>(codes) + lane * 64);      \
    _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {                                                         \
      const int8x16_t w = vld1q_s8(codes + lane * 64 + j * 16);                                                   \
      _Pragma("GCC unroll 8") for (int t = 0; t < T; t++) sum[t][j] = vdotq_laneq_s32(sum[t][j], w, xv[t], lane); \
    }                                                                                                             \
  } while (0)
      DG_QUAD(0);
      DG_QUAD(1);
      DG_QUAD(2);
      DG_QUAD(3);
#undef DG_QUAD
    }
#pragma GCC unroll 8
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) vst1q_s32(c + t * 16 + j * 4, sum[t][j]);
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  for_row_groups<6>(
      rows, [&](auto count, int64_t t) { dot_integer_rows<kPrefetch, decltype(count)::value>(x + t * 64, b[0], width, c + t * 16); });
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
