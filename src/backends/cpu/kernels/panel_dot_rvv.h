// Tile products with RVV 1.0 for vectors of 128 bits and more. It has no dot product: two byte products are added up in int16
// (|sum| <= 2 * 128 * 127), then to int32: three instructions per 2 x 16 multiply-adds and token. 16 int32 fill four registers
// of 128 bits, two of 256 or one of 512: the functions exist for these three groupings, so that a step never uses more
// registers than it fills. Integer codes are unpacked to int8 [k][16], floats to bf16 pairs.
#pragma once
#include <riscv_vector.h>

#include "backends/cpu/kernels/panel_rows_f32.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kTilesAtATime = 1, kPanelsAtATime = 1, kPanelsOfOneTile = 1;

template <PanelKind kKind>
constexpr bool kNeedsUnpack = kKind != PanelKind::kBf16;

// ((n * m + 4) >> 3) + z as (n * m + (8 z + 4)) >> 3, narrowed modulo 256.
template <bool kOffset>
inline void unpack_int4(const std::byte* from, int64_t width, std::byte* to) {
  auto* out = reinterpret_cast<int8_t*>(to);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const auto* side = reinterpret_cast<const int8_t*>(from) + 1024;
    for (int group = 0; group < 4; group++) {
      const vint16m2_t m = __riscv_vsext_vf2_i16m2(__riscv_vle8_v_i8m1(side + group * 16, 16), 16), m8 = __riscv_vsll_vx_i16m2(m, 3, 16);
      vint16m2_t plain, centred;  // 8 z + 4, for codes stored as they are and for those stored minus 8
      if constexpr (kOffset) {
        const vint16m2_t z = __riscv_vsext_vf2_i16m2(__riscv_vle8_v_i8m1(side + 64 + group * 16, 16), 16);
        plain = __riscv_vadd_vx_i16m2(__riscv_vsll_vx_i16m2(z, 3, 16), 4, 16);
        centred = __riscv_vadd_vv_i16m2(plain, m8, 16);
      } else {
        plain = __riscv_vrsub_vx_i16m2(m8, 4, 16);
        centred = __riscv_vmv_v_x_i16m2(4, 16);
      }
      for (int i = 0; i < 4; i++, out += 128) {  // 8 columns
        const vint16m2x2_t words = __riscv_vlseg2e16_v_i16m2x2(reinterpret_cast<const int16_t*>(from) + i * 32, 16);
        const auto put = [&](vint16m2_t n, vint16m2_t add, int column) __attribute__((always_inline)) {
          __riscv_vse8_v_i8m1(out + column * 16, __riscv_vnsra_wx_i8m1(__riscv_vmadd_vv_i16m2(n, m, add, 16), 3, 16), 16);
        };
        const auto word = [&](vint16m2_t w, int column) __attribute__((always_inline)) {
          put(__riscv_vsra_vx_i16m2(w, 12, 16), centred, column);
          put(__riscv_vand_vx_i16m2(w, 15, 16), plain, column + 1);
          put(__riscv_vand_vx_i16m2(__riscv_vsra_vx_i16m2(w, 8, 16), 15, 16), plain, column + 4);
          put(__riscv_vand_vx_i16m2(__riscv_vsra_vx_i16m2(w, 4, 16), 15, 16), plain, column + 5);
        };
        word(__riscv_vget_v_i16m2x2_i16m2(words, 0), 0);
        word(__riscv_vget_v_i16m2x2_i16m2(words, 1), 2);
      }
      from += 256;
    }
    from += kOffset ? 128 : 64;
  }
}

// (table[nibble] * m + 64) >> 7.
inline void unpack_table(const std::byte* from, int64_t width, const int8_t* table, std::byte* to) {
  auto* out = reinterpret_cast<int8_t*>(to);
  const vint8m1_t values = __riscv_vle8_v_i8m1(table, 16);
  for (int64_t k = 0; k < width; k += kInt4Chunk) {
    const auto* side = reinterpret_cast<const int8_t*>(from) + 1024;
    for (int group = 0; group < 4; group++) {
      const vint8m1_t m = __riscv_vle8_v_i8m1(side + group * 16, 16);
      for (int i = 0; i < 4; i++, out += 128) {  // 8 columns
        const vuint16m2x2_t words = __riscv_vlseg2e16_v_u16m2x2(reinterpret_cast<const uint16_t*>(from) + i * 32, 16);
        const auto put = [&](vuint8m1_t n, int column) __attribute__((always_inline)) {
          const vint8m1_t value = __riscv_vrgather_vv_i8m1(values, n, 16);
          const vint16m2_t product = __riscv_vwmacc_vv_i16m2(__riscv_vmv_v_x_i16m2(64, 16), value, m, 16);
          __riscv_vse8_v_i8m1(out + column * 16, __riscv_vnsra_wx_i8m1(product, 7, 16), 16);
        };
        const auto word = [&](vuint16m2_t w, int column) __attribute__((always_inline)) {
          const vuint8m1_t low = __riscv_vnsrl_wx_u8m1(w, 0, 16), high = __riscv_vnsrl_wx_u8m1(w, 8, 16);
          put(__riscv_vsrl_vx_u8m1(high, 4, 16), column);
          put(__riscv_vand_vx_u8m1(low, 15, 16), column + 1);
          put(__riscv_vand_vx_u8m1(high, 15, 16), column + 4);
          put(__riscv_vsrl_vx_u8m1(low, 4, 16), column + 5);
        };
        word(__riscv_vget_v_u16m2x2_u16m2(words, 0), 0);
        word(__riscv_vget_v_u16m2x2_u16m2(words, 1), 2);
      }
      from += 256;
    }
    from += 64;
  }
}

inline void transpose_int8(const std::byte* from, int64_t width, std::byte* to) {
  const auto* codes = reinterpret_cast<const int8_t*>(from);
  auto* out = reinterpret_cast<int8_t*>(to);
  for (int64_t i = 0; i < width * kPanelRows; i += 64) {
    const vint8m1x4_t columns = __riscv_vlseg4e8_v_i8m1x4(codes + i, 16);
    __riscv_vse8_v_i8m1(out + i, __riscv_vget_v_i8m1x4_i8m1(columns, 0), 16);
    __riscv_vse8_v_i8m1(out + i + 16, __riscv_vget_v_i8m1x4_i8m1(columns, 1), 16);
    __riscv_vse8_v_i8m1(out + i + 32, __riscv_vget_v_i8m1x4_i8m1(columns, 2), 16);
    __riscv_vse8_v_i8m1(out + i + 48, __riscv_vget_v_i8m1x4_i8m1(columns, 3), 16);
  }
}

// E4M3 -> bf16 by f32: the magnitude at the exponent of f32, times 2^120; subnormal codes are subnormal floats on the way.
inline void unpack_fp8(const std::byte* from, int64_t width, std::byte* to) {
  for (int64_t i = 0; i < width * kPanelRows; i += 64)
    for (int pair = 0; pair < 2; pair++) {
      const auto* eights = reinterpret_cast<const int64_t*>(from + i + pair * 8);
      const vint8m2_t codes = __riscv_vreinterpret_v_i64m2_i8m2(__riscv_vlse64_v_i64m2(eights, 16, 4));
      const vint32m8_t bits =
          __riscv_vand_vx_i32m8(__riscv_vsll_vx_i32m8(__riscv_vsext_vf4_i32m8(codes, 32), 20, 32), static_cast<int32_t>(0x87f00000), 32);
      const vfloat32m8_t value = __riscv_vfmul_vf_f32m8(__riscv_vreinterpret_v_i32m8_f32m8(bits), 0x1p120f, 32);
      __riscv_vse16_v_u16m4(reinterpret_cast<uint16_t*>(to + i * 2 + pair * 64),
                            __riscv_vnsrl_wx_u16m4(__riscv_vreinterpret_v_f32m8_u32m8(value), 16, 32), 32);
    }
}

template <PanelKind kKind>
inline void unpack_codes(const std::byte* from, int64_t width, [[maybe_unused]] const int8_t* table, std::byte* to) {
  if constexpr (kKind == PanelKind::kInt4) unpack_int4<false>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Offset) unpack_int4<true>(from, width, to);
  if constexpr (kKind == PanelKind::kInt4Table) unpack_table(from, width, table, to);
  if constexpr (kKind == PanelKind::kInt8) transpose_int8(from, width, to);
  if constexpr (kKind == PanelKind::kFp8) unpack_fp8(from, width, to);
}

// The products of T <= 4 tokens with registers grouped for f32 / int32 (L), int16 (H) and int8 (Q) elements.
#define DG_RVV_PRODUCTS(name, L, H, Q)                                                                                        \
  template <int T>                                                                                                            \
  inline void integer_rows_##name(const std::byte* x, const std::byte* b, int64_t width, int32_t* c) {                        \
    const auto *codes = reinterpret_cast<const int8_t*>(b), *xs = reinterpret_cast<const int8_t*>(x);                         \
    vint32##L##_t s0 = __riscv_vmv_v_x_i32##L(0, 16), s1 = s0, s2 = s0, s3 = s0;                                              \
    for (int64_t k0 = 0; k0 < width; k0 += 64, xs += 1024)                                                                    \
      for (int64_t k = 0; k < 64; k += 2, codes += 32) {                                                                      \
        const vint8##Q##_t w0 = __riscv_vle8_v_i8##Q(codes, 16), w1 = __riscv_vle8_v_i8##Q(codes + 16, 16);                   \
        vint16##H##_t n0, n1, n2, n3; /* all of int16 before all of int32: a change of the element width is an instruction */ \
        if constexpr (T > 0) n0 = DG_RVV_PAIR(0, H);                                                                          \
        if constexpr (T > 1) n1 = DG_RVV_PAIR(1, H);                                                                          \
        if constexpr (T > 2) n2 = DG_RVV_PAIR(2, H);                                                                          \
        if constexpr (T > 3) n3 = DG_RVV_PAIR(3, H);                                                                          \
        if constexpr (T > 0) s0 = __riscv_vwadd_wv_i32##L(s0, n0, 16);                                                        \
        if constexpr (T > 1) s1 = __riscv_vwadd_wv_i32##L(s1, n1, 16);                                                        \
        if constexpr (T > 2) s2 = __riscv_vwadd_wv_i32##L(s2, n2, 16);                                                        \
        if constexpr (T > 3) s3 = __riscv_vwadd_wv_i32##L(s3, n3, 16);                                                        \
      }                                                                                                                       \
    if constexpr (T > 0) __riscv_vse32_v_i32##L(c, s0, 16);                                                                   \
    if constexpr (T > 1) __riscv_vse32_v_i32##L(c + 16, s1, 16);                                                              \
    if constexpr (T > 2) __riscv_vse32_v_i32##L(c + 32, s2, 16);                                                              \
    if constexpr (T > 3) __riscv_vse32_v_i32##L(c + 48, s3, 16);                                                              \
  }                                                                                                                           \
  template <int T>                                                                                                            \
  inline void float_rows_##name(const float* x, const std::byte* b, int64_t width, bool accumulate, float* c) {               \
    const auto* pairs = reinterpret_cast<const uint32_t*>(b);                                                                 \
    vfloat32##L##_t s0 = __riscv_vfmv_v_f_f32##L(0, 16), s1 = s0, s2 = s0, s3 = s0;                                           \
    if (accumulate) {                                                                                                         \
      if constexpr (T > 0) s0 = __riscv_vle32_v_f32##L(c, 16);                                                                \
      if constexpr (T > 1) s1 = __riscv_vle32_v_f32##L(c + 16, 16);                                                           \
      if constexpr (T > 2) s2 = __riscv_vle32_v_f32##L(c + 32, 16);                                                           \
      if constexpr (T > 3) s3 = __riscv_vle32_v_f32##L(c + 48, 16);                                                           \
    }                                                                                                                         \
    for (int64_t k = 0; k < width; k += 2, pairs += 16) {                                                                     \
      const float* xs = x + k / 16 * 256 + k % 16;                                                                            \
      const vuint32##L##_t p = __riscv_vle32_v_u32##L(pairs, 16);                                                             \
      const vfloat32##L##_t even = __riscv_vreinterpret_v_u32##L##_f32##L(__riscv_vsll_vx_u32##L(p, 16, 16));                 \
      const vfloat32##L##_t odd = __riscv_vreinterpret_v_u32##L##_f32##L(__riscv_vand_vx_u32##L(p, 0xffff0000u, 16));         \
      if constexpr (T > 0) s0 = __riscv_vfmacc_vf_f32##L(__riscv_vfmacc_vf_f32##L(s0, xs[0], even, 16), xs[1], odd, 16);      \
      if constexpr (T > 1) s1 = __riscv_vfmacc_vf_f32##L(__riscv_vfmacc_vf_f32##L(s1, xs[16], even, 16), xs[17], odd, 16);    \
      if constexpr (T > 2) s2 = __riscv_vfmacc_vf_f32##L(__riscv_vfmacc_vf_f32##L(s2, xs[32], even, 16), xs[33], odd, 16);    \
      if constexpr (T > 3) s3 = __riscv_vfmacc_vf_f32##L(__riscv_vfmacc_vf_f32##L(s3, xs[48], even, 16), xs[49], odd, 16);    \
    }                                                                                                                         \
    if constexpr (T > 0) __riscv_vse32_v_f32##L(c, s0, 16);                                                                   \
    if constexpr (T > 1) __riscv_vse32_v_f32##L(c + 16, s1, 16);                                                              \
    if constexpr (T > 2) __riscv_vse32_v_f32##L(c + 32, s2, 16);                                                              \
    if constexpr (T > 3) __riscv_vse32_v_f32##L(c + 48, s3, 16);                                                              \
  }

#define DG_RVV_PAIR(t, H) __riscv_vwmacc_vx_i16##H(__riscv_vwmul_vx_i16##H(w0, xs[t * 64 + k], 16), xs[t * 64 + k + 1], w1, 16)

DG_RVV_PRODUCTS(128, m4, m2, m1)
DG_RVV_PRODUCTS(256, m2, m1, mf2)
DG_RVV_PRODUCTS(512, m1, mf2, mf4)
#undef DG_RVV_PAIR
#undef DG_RVV_PRODUCTS

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  const size_t vector = __riscv_vlenb();
  for_row_groups<4>(rows, [&](auto count, int64_t t) {
    constexpr int kRows = decltype(count)::value;
    if (vector >= 64) integer_rows_512<kRows>(x + t * 64, b[0], width, c + t * 16);
    else if (vector >= 32) integer_rows_256<kRows>(x + t * 64, b[0], width, c + t * 16);
    else integer_rows_128<kRows>(x + t * 64, b[0], width, c + t * 16);
  });
}

template <bool kPrefetch>
inline void dot_float(const std::byte* x_bytes_at, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                      int64_t width, bool accumulate, float* c, int64_t /*c_tile*/) {
  const auto* x = reinterpret_cast<const float*>(x_bytes_at);
  const size_t vector = __riscv_vlenb();
  for_row_groups<4>(rows, [&](auto count, int64_t t) {
    constexpr int kRows = decltype(count)::value;
    if (vector >= 64) float_rows_512<kRows>(x + t * 16, b[0], width, accumulate, c + t * 16);
    else if (vector >= 32) float_rows_256<kRows>(x + t * 16, b[0], width, accumulate, c + t * 16);
    else float_rows_128<kRows>(x + t * 16, b[0], width, accumulate, c + t * 16);
  });
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
