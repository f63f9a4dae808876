// Tile products with AMX: two tiles of tokens times two panels, so that four loads feed four products of 16 x 16 x 64 bytes, or
// one tile of tokens times four panels: a product waits some 50 cycles for the one before it on the same C.
// Tiles 0-3 are C; 4-5 are A and 6-7 B, or 4 is A and 5-7 are B (one tile of tokens, but not with 4-bit codes).
#pragma once
#include "backends/cpu/kernels/amx.h"
#include "backends/cpu/kernels/panel_unpack_avx512.h"
#include "quant/convert.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

typedef uint16_t PanelFloat;
constexpr bool kUnsignedCodes = false;
constexpr int kTilesAtATime = 2, kPanelsAtATime = 2, kPanelsOfOneTile = 4;

// With fewer than 16 tokens the tiles of A and C have that many rows: a product takes a cycle per row.
class DotScope {
 public:
  DotScope(int64_t rows, bool four_bits) {
    TileConfig config;
    for (int t = 0; t < (four_bits ? 6 : 5); t++) config.rows[t] = static_cast<uint8_t>(rows);
    asm volatile("ldtilecfg (%0)" ::"r"(&config) : "memory");
  }
  ~DotScope() { asm volatile("tilerelease" ::: "memory"); }
  DotScope(const DotScope&) = delete;
  DotScope& operator=(const DotScope&) = delete;
};

inline void pack_float_row(const float* x, int64_t in, int64_t padded, int64_t t, std::byte* to) {
  for (int64_t k = 0; k < padded; k += 32) {
    auto* row = reinterpret_cast<uint16_t*>(to + k / 32 * 1024 + t * 64);
    if (k + 32 <= in) {
      // The instruction rounds to nearest even like float_to_bf16, but takes denormals as zero: so do the tile products.
      const __m512bh v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16), _mm512_loadu_ps(x + k));
      std::memcpy(row, &v, 64);
    } else {
      for (int64_t i = k; i < k + 32; i++) row[i - k] = i < in ? float_to_bf16(x[i]) : 0;
    }
  }
}

inline void prefetch_tile(const std::byte* p) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) _mm_prefetch(reinterpret_cast<const char*>(p + kPrefetchBytes + i * 64), _MM_HINT_T0);
}

#define DG_DOT(c, a, b)                                \
  do {                                                 \
    if constexpr (kInteger) DG_TILE_DOT_INT8(c, a, b); \
    else DG_TILE_DOT_BF16(c, a, b);                    \
  } while (0)

// c tiles are `c_panel` = 256 elements apart along panels and c_tile along tiles of tokens.
template <bool kInteger, bool kPrefetch, int M, int N, class Between>
inline void dot_tiles(const std::byte* x, int64_t x_bytes, const std::byte* const* b, int64_t steps, bool accumulate, float* c,
                      int64_t c_tile, Between&& between) {
  if (accumulate) {
    DG_TILE_LOAD(0, c, 64);
    if constexpr (N == 2) DG_TILE_LOAD(1, c + 256, 64);
    if constexpr (M == 2) DG_TILE_LOAD(2, c + c_tile, 64);
    if constexpr (M == 2 && N == 2) DG_TILE_LOAD(3, c + c_tile + 256, 64);
  } else {
    DG_TILE_ZERO(0);
    if constexpr (N == 2) DG_TILE_ZERO(1);
    if constexpr (M == 2) DG_TILE_ZERO(2);
    if constexpr (M == 2 && N == 2) DG_TILE_ZERO(3);
  }
  const std::byte *x0 = x, *x1 = x + x_bytes, *b0 = b[0], *b1 = b[N - 1];
  for (int64_t i = 0; i < steps; i++) {
    DG_TILE_LOAD(6, b0, 64);
    DG_TILE_LOAD(4, x0, 64);
    DG_DOT(0, 4, 6);
    if constexpr (N == 2) {
      DG_TILE_LOAD(7, b1, 64);
      DG_DOT(1, 4, 7);
    }
    if constexpr (M == 2) {
      DG_TILE_LOAD(5, x1, 64);
      DG_DOT(2, 5, 6);
      if constexpr (N == 2) DG_DOT(3, 5, 7);
    }
    if constexpr (M == 1 && kPrefetch) {
      prefetch_tile(b0);
      if constexpr (N == 2) prefetch_tile(b1);
    }
    between();
    x0 += 1024, x1 += 1024, b0 += 1024, b1 += 1024;
  }
  DG_TILE_STORE(0, c, 64);
  if constexpr (N == 2) DG_TILE_STORE(1, c + 256, 64);
  if constexpr (M == 2) DG_TILE_STORE(2, c + c_tile, 64);
  if constexpr (M == 2 && N == 2) DG_TILE_STORE(3, c + c_tile + 256, 64);
}

// One tile of tokens, N = 3 or 4 panels, in three parts so that the sums stay in the tiles while more of k is unpacked.
template <int N>
inline void one_tile_zero() {
  DG_TILE_ZERO(0);
  DG_TILE_ZERO(1);
  DG_TILE_ZERO(2);
  if constexpr (N == 4) DG_TILE_ZERO(3);
}
template <int N>
inline void one_tile_load(const float* c) {
  DG_TILE_LOAD(0, c, 64);
  DG_TILE_LOAD(1, c + 256, 64);
  DG_TILE_LOAD(2, c + 512, 64);
  if constexpr (N == 4) DG_TILE_LOAD(3, c + 768, 64);
}
template <int N>
inline void one_tile_store(float* c) {
  DG_TILE_STORE(0, c, 64);
  DG_TILE_STORE(1, c + 256, 64);
  DG_TILE_STORE(2, c + 512, 64);
  if constexpr (N == 4) DG_TILE_STORE(3, c + 768, 64);
}
template <bool kInteger, int N, bool kPrefetch>
inline void one_tile_steps(const std::byte* x, const std::byte* const* b, int64_t steps) {
  for (int64_t i = 0; i < steps; i++) {
    DG_TILE_LOAD(4, x + i * 1024, 64);
    DG_TILE_LOAD(5, b[0] + i * 1024, 64);
    if constexpr (kPrefetch) prefetch_tile(b[0] + i * 1024);
    DG_DOT(0, 4, 5);
    DG_TILE_LOAD(6, b[1] + i * 1024, 64);
    if constexpr (kPrefetch) prefetch_tile(b[1] + i * 1024);
    DG_DOT(1, 4, 6);
    DG_TILE_LOAD(7, b[2] + i * 1024, 64);
    if constexpr (kPrefetch) prefetch_tile(b[2] + i * 1024);
    DG_DOT(2, 4, 7);
    if constexpr (N == 4) {
      DG_TILE_LOAD(5, b[3] + i * 1024, 64);
      if constexpr (kPrefetch) prefetch_tile(b[3] + i * 1024);
      DG_DOT(3, 4, 5);
    }
  }
}
// A chunk of 128 columns of 4-bit codes: the rows of activations, then each panel p.
inline void load_chunk_rows(const std::byte* x) {
  DG_TILE_LOAD(4, x, 64);
  DG_TILE_LOAD(5, x + 1024, 64);
}
inline void multiply_chunk(int p, const std::byte* b) {
  DG_TILE_LOAD(6, b, 64);
  DG_TILE_LOAD(7, b + 1024, 64);
  switch (p) {
    case 0:
      DG_TILE_DOT_INT8(0, 4, 6);
      DG_TILE_DOT_INT8(0, 5, 7);
      break;
    case 1:
      DG_TILE_DOT_INT8(1, 4, 6);
      DG_TILE_DOT_INT8(1, 5, 7);
      break;
    case 2:
      DG_TILE_DOT_INT8(2, 4, 6);
      DG_TILE_DOT_INT8(2, 5, 7);
      break;
    default:
      DG_TILE_DOT_INT8(3, 4, 6);
      DG_TILE_DOT_INT8(3, 5, 7);
      break;
  }
}

template <bool kInteger, int N, bool kPrefetch>
inline void dot_one_tile(const std::byte* x, const std::byte* const* b, int64_t steps, bool accumulate, float* c) {
  if (accumulate) one_tile_load<N>(c);
  else one_tile_zero<N>();
  one_tile_steps<kInteger, N, kPrefetch>(x, b, steps);
  one_tile_store<N>(c);
}

template <bool kInteger, bool kPrefetch, class Between>
inline void dot_any(const std::byte* x, int64_t x_bytes, int m, const std::byte* const* b, int n, int64_t steps, bool accumulate, float* c,
                    int64_t c_tile, Between&& between) {
  if (n == 4) return dot_one_tile<kInteger, 4, kPrefetch>(x, b, steps, accumulate, c);
  if (n == 3) return dot_one_tile<kInteger, 3, kPrefetch>(x, b, steps, accumulate, c);
  if (m == 2 && n == 2) dot_tiles<kInteger, kPrefetch, 2, 2>(x, x_bytes, b, steps, accumulate, c, c_tile, between);
  else if (m == 2) dot_tiles<kInteger, kPrefetch, 2, 1>(x, x_bytes, b, steps, accumulate, c, c_tile, between);
  else if (n == 2) dot_tiles<kInteger, kPrefetch, 1, 2>(x, x_bytes, b, steps, accumulate, c, c_tile, between);
  else dot_tiles<kInteger, kPrefetch, 1, 1>(x, x_bytes, b, steps, accumulate, c, c_tile, between);
}

#undef DG_DOT

// c = x b over `width` columns of k (a multiple of 64), as integers, for m tiles of tokens and n panels. The vector units add
// the previous tiles to their sums while the tile unit works.
template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t x_bytes, int m, int64_t /*rows*/, const std::byte* const* b, int n, int64_t width,
                        int32_t* c, int64_t c_tile, Pending& pending) {
  if (pending.c)
    dot_any<true, kPrefetch>(x, x_bytes, m, b, n, width / 64, false, reinterpret_cast<float*>(c), c_tile, [&] { pending.step(8); });
  else dot_any<true, kPrefetch>(x, x_bytes, m, b, n, width / 64, false, reinterpret_cast<float*>(c), c_tile, [] {});
}

// c (+)= x b over `width` columns (a multiple of 32) of bf16.
template <bool kPrefetch>
inline void dot_float(const std::byte* x, int64_t x_bytes, int m, int64_t /*rows*/, const std::byte* const* b, int n, int64_t width,
                      bool accumulate, float* c, int64_t c_tile) {
  dot_any<false, kPrefetch>(x, x_bytes, m, b, n, width / 32, accumulate, c, c_tile, [] {});
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
