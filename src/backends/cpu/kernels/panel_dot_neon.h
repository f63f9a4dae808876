// Integer tile products with plain NEON (Armv8.0): a byte product fills an int16 lane, a second one of the next quad is added
// to it (|sum| <= 2 * 128 * 127, within int16), and neighbours are then added in pairs to int32: three instructions per 16
// multiply-adds. A sum register holds two halves of 2 outputs, added at the end.
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

// T * 8 sums, 2 T activations, two registers of codes, T products: 26 registers with T = 2.
template <bool kPrefetch, int T>
inline void dot_integer_rows(const std::byte* x, const std::byte* b, int64_t width, int32_t* c) {
  int32x4_t sum[T][8];
#pragma GCC unroll 4
  for (int t = 0; t < T; t++)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) sum[t][j] = vdupq_n_s32(0);
  const int8_t *codes = codes_of(b), *xs = codes_of(x);
  for (int64_t block = 0; block < width; block += 64, xs += 1024 - 64)
    for (int i = 0; i < 64; i += 8, xs += 8, codes += 128) {
      if constexpr (kPrefetch && T == 1) {
        prefetch_codes(reinterpret_cast<const std::byte*>(codes));
        prefetch_codes(reinterpret_cast<const std::byte*>(codes) + 64);
      }
      int8x16_t even[T], odd[T];  // a quad in all lanes
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        even[t] = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(xs + t * 64)));
        odd[t] = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(xs + t * 64 + 4)));
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const int8x16_t w0 = vld1q_s8(codes + j * 16), w1 = vld1q_s8(codes + 64 + j * 16);
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const int16x8_t low = vmlal_s8(vmull_s8(vget_low_s8(w0), vget_low_s8(even[t])), vget_low_s8(w1), vget_low_s8(odd[t]));
          const int16x8_t high = vmlal_high_s8(vmull_high_s8(w0, even[t]), w1, odd[t]);
          sum[t][2 * j] = vpadalq_s16(sum[t][2 * j], low);
          sum[t][2 * j + 1] = vpadalq_s16(sum[t][2 * j + 1], high);
        }
      }
    }
#pragma GCC unroll 4
  for (int t = 0; t < T; t++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) vst1q_s32(c + t * 16 + j * 4, vpaddq_s32(sum[t][2 * j], sum[t][2 * j + 1]));
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  for_row_groups<2>(
      rows, [&](auto count, int64_t t) { dot_integer_rows<kPrefetch, decltype(count)::value>(x + t * 64, b[0], width, c + t * 16); });
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
