// Tile products with SVE2 for any vector length. Integers use the matrix product of int8 on codes zipped while they are
// unpacked: 128 bytes hold 8 columns of 16 outputs, and every 128-bit segment of a vector multiplies 2 outputs with 2 tokens.
// bf16 weights use NEON's products of bf16 (panel_dot_neon_bf16.h). Vectors have no arrays: sums are named by macros, s00 - s33.
#pragma once
#include <arm_sve.h>

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

#define DG_ROW4(f, p) f(p, 0) f(p, 1) f(p, 2) f(p, 3)
#define DG_GRID(f) DG_ROW4(f, 0) DG_ROW4(f, 1) DG_ROW4(f, 2) DG_ROW4(f, 3)

// P pairs of tokens, G vectors of codes per 8 columns; `at` is the first byte of each row of 128 that they cover.
template <int P, int G>
inline void dot_integer_pairs(const std::byte* x, const std::byte* b, int64_t width, int64_t at, int32_t* c) {
  const svbool_t all = svptrue_b8(), some = svwhilelt_b8_s64(at, 128);
  const int64_t vector = static_cast<int64_t>(svcntb());
#define DG_ZERO(p, g) svint32_t s##p##g = svdup_n_s32(0);
  DG_GRID(DG_ZERO)
#undef DG_ZERO
  const int8_t *codes = codes_of(b) + at, *xs = codes_of(x);
  for (int64_t k = 0; k < width; k += 16, codes += 256, xs += 16) {
    if (k % 64 == 0 && k > 0) xs += 1024 - 64;
      // 16 columns of two tokens -> columns 0 - 7 of both and columns 8 - 15 of both, in every segment.
#define DG_TOKENS(p)                                                                                \
  svint8_t x0##p = svdup_n_s8(0), x1##p = x0##p;                                                    \
  if constexpr (p < P) {                                                                            \
    const svint64_t a = svreinterpret_s64_s8(svld1rq_s8(all, xs + p * 128));                        \
    const svint64_t d = svreinterpret_s64_s8(svld1rq_s8(all, xs + p * 128 + 64));                   \
    x0##p = svreinterpret_s8_s64(svtrn1_s64(a, d)), x1##p = svreinterpret_s8_s64(svtrn2_s64(a, d)); \
  }
    DG_TOKENS(0)
    DG_TOKENS(1)
    DG_TOKENS(2)
    DG_TOKENS(3)
#undef DG_TOKENS
#define DG_PRODUCT(p, g) \
  if constexpr (p < P) s##p##g = svmmla_s32(s##p##g, xv##p, w);
#define DG_VECTOR(g, half)                                                                                          \
  if constexpr (g < G) {                                                                                            \
    const svint8_t w = svld1_s8(G == 1 ? some : all, codes + half * 128 + g * vector);                              \
    const svint8_t xv0 = x##half##0, xv1 = x##half##1, xv2 = x##half##2, xv3 = x##half##3;                          \
    DG_PRODUCT(0, g) DG_PRODUCT(1, g) DG_PRODUCT(2, g) DG_PRODUCT(3, g)(void) xv0, (void)xv1, (void)xv2, (void)xv3; \
  }
    DG_VECTOR(0, 0) DG_VECTOR(1, 0) DG_VECTOR(2, 0) DG_VECTOR(3, 0) DG_VECTOR(0, 1) DG_VECTOR(1, 1) DG_VECTOR(2, 1) DG_VECTOR(3, 1)
#undef DG_VECTOR
#undef DG_PRODUCT
  }
  // Segments hold token 0 x 2 outputs, token 1 x 2 outputs.
  const svbool_t outputs = svwhilelt_b32_s64(at / 8, 16);
#define DG_STORE(p, g, next)                                                                                         \
  if constexpr (p < P && g < G) {                                                                                    \
    const svint64_t a = svreinterpret_s64_s32(s##p##g), d = svreinterpret_s64_s32(g + 1 < G ? s##p##next : s##p##g); \
    int32_t* to = c + p * 32 + at / 8 + g * vector / 8;                                                              \
    svst1_s32(outputs, to, svreinterpret_s32_s64(svuzp1_s64(a, d)));                                                 \
    svst1_s32(outputs, to + 16, svreinterpret_s32_s64(svuzp2_s64(a, d)));                                            \
  }
#define DG_STORE_PAIR(p) DG_STORE(p, 0, 1) DG_STORE(p, 2, 3)
  DG_STORE_PAIR(0) DG_STORE_PAIR(1) DG_STORE_PAIR(2) DG_STORE_PAIR(3)
#undef DG_STORE_PAIR
#undef DG_STORE
}

// One token: the dot product on the same codes, 8 columns of the token in every pair of lanes.
template <int G>
inline void dot_integer_row(const std::byte* x, const std::byte* b, int64_t width, int64_t at, int32_t* c) {
  const svbool_t all = svptrue_b8(), some = svwhilelt_b8_s64(at, 128);
  const int64_t vector = static_cast<int64_t>(svcntb());
  svint32_t s0 = svdup_n_s32(0), s1 = s0, s2 = s0, s3 = s0;
  const int8_t *codes = codes_of(b) + at, *xs = codes_of(x);
  for (int64_t k = 0; k < width; k += 8, codes += 128, xs += 8) {
    if (k % 64 == 0 && k > 0) xs += 1024 - 64;
    int64_t eight;
    std::memcpy(&eight, xs, 8);
    const svint8_t xv = svreinterpret_s8_s64(svdup_n_s64(eight));
    s0 = svdot_s32(s0, svld1_s8(G == 1 ? some : all, codes), xv);
    if constexpr (G > 1) s1 = svdot_s32(s1, svld1_s8(all, codes + vector), xv);
    if constexpr (G > 2) {
      s2 = svdot_s32(s2, svld1_s8(all, codes + 2 * vector), xv);
      s3 = svdot_s32(s3, svld1_s8(all, codes + 3 * vector), xv);
    }
  }
  const svbool_t outputs = svwhilelt_b32_s64(at / 8, 16);
  int32_t* to = c + at / 8;
  if constexpr (G == 1) s1 = s0;
  svst1_s32(outputs, to, svadd_s32_x(outputs, svuzp1_s32(s0, s1), svuzp2_s32(s0, s1)));
  if constexpr (G > 2) svst1_s32(outputs, to + vector / 4, svadd_s32_x(outputs, svuzp1_s32(s2, s3), svuzp2_s32(s2, s3)));
}

template <int G>
inline void dot_integer_vectors(const std::byte* x, int64_t rows, const std::byte* b, int64_t width, int64_t at, int32_t* c) {
  for_row_groups<8>(rows, [&](auto count, int64_t t) {
    constexpr int kRows = decltype(count)::value;
    if constexpr (kRows == 1) dot_integer_row<G>(x + t * 64, b, width, at, c + t * 16);
    else dot_integer_pairs<kRows / 2, G>(x + t * 64, b, width, at, c + t * 16);
  });
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  const int64_t vector = static_cast<int64_t>(svcntb());
  if (vector <= 32)
    for (int64_t at = 0; at < 128; at += 4 * vector) dot_integer_vectors<4>(x, rows, b[0], width, at, c);
  else if (vector == 64) dot_integer_vectors<2>(x, rows, b[0], width, 0, c);
  else
    for (int64_t at = 0; at < 128; at += vector) dot_integer_vectors<1>(x, rows, b[0], width, at, c);
}

#undef DG_GRID
#undef DG_ROW4

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
