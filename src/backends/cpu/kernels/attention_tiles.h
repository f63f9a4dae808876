// Attention with AMX tiles in bf16: the products of one tile of 64 cache positions with 16 query vectors at a time.
//
// Scores are made transposed, S^T = K Q^T, which has three merits: K is the left operand and is read as it lies in a bf16
// cache (16 rows of 64 bytes per tile, no packing), the 16 queries are the 16 lanes of a vector, so that the softmax needs no
// horizontal step, and masked positions are compared lane by lane. Weights are rounded to bf16 in pairs of positions, and a
// transposition of 16 x 16 pairs makes them the left operand of P V; of V only neighbouring rows are interleaved.
//
// A row depends on its own sequence alone: every lane performs the same operations in the same order whoever shares its
// group; masked positions get the weight 0, their rows of V are finite or zeroed, and a factor of 1 or a sum of zeros changes
// no bit (the last step turns -0 into +0).
//
// Per group of 16 and tile: 8 k_width / 32 + v_width / 4 products of 16 cycles, 64 exponentials of 16 lanes (some 6 cycles
// each), v_width KiB / 8 of sums through L1.
#pragma once
#include <immintrin.h>

#include "backends/cpu/kernels/amx.h"
#include "backends/cpu/kernels/attention_cache.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int64_t kTilePairs = 16;  // query vectors of a group

// 16 query vectors and what has been summed for them.
struct TileGroup {
  uint16_t* q;  // (k_width / 32 padded) tiles: element [k / 2][query][k % 2]
  float* sums;  // (v_width / 16 padded) tiles of (query, 16 columns), columns in the order of tile_columns
  float *max, *sum;
  int32_t* visible;
  int32_t least, most;  // of visible
};

inline TileGroup tile_group(float* scratch, int64_t index, int64_t k_width, int64_t v_width) {
  const int64_t q = 8 * pad32(k_width), sums = 16 * pad32(v_width);
  float* at = scratch + index * (q + sums + 48);
  TileGroup g = {.q = reinterpret_cast<uint16_t*>(at),
                 .sums = at + q,
                 .max = at + q + sums,
                 .sum = at + q + sums + 16,
                 .visible = reinterpret_cast<int32_t*>(at + q + sums + 32),
                 .least = 0,
                 .most = 0};
  const __m512i visible = _mm512_load_si512(g.visible);
  g.least = _mm512_reduce_min_epi32(visible), g.most = _mm512_reduce_max_epi32(visible);
  return g;
}

// The 16 x 16 matrix of 32-bit elements whose rows are r, transposed.
inline void transpose16(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

inline __mmask16 first_lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// 32 floats, `n` of them present, times `scale` as bf16.
inline __m512i floats_to_bf16(const float* x, int64_t n, __m512 scale) {
  const __m512 low = _mm512_maskz_loadu_ps(first_lanes(n), x);
  const __m512 high = n > 16 ? _mm512_maskz_loadu_ps(first_lanes(n - 16), x + 16) : _mm512_setzero_ps();
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale)));
}

// 16 vectors of n floats (null: zeros) as right operand: tile k of `to` holds elements [32 k, 32 k + 32).
inline void pack_columns(const float* const* from, int64_t n, float scale, uint16_t* to) {
  for (int64_t k = 0; k < n; k += 32) {
    __m512i r[16];
    for (int i = 0; i < 16; i++) r[i] = from[i] ? floats_to_bf16(from[i] + k, n - k, _mm512_set1_ps(scale)) : _mm512_setzero_si512();
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(to + k / 32 * 512 + i * 32, r[i]);
  }
}

// E4M3 codes to bf16, exactly: two look-ups in tables of the 128 magnitudes. The codes of NaN decode to 480 as everywhere.
struct alignas(64) E4m3Table {
  uint8_t low[128], high[128];
};
constexpr E4m3Table make_e4m3_table() {
  E4m3Table table{};
  for (int code = 0; code < 128; code++) {
    int exponent = code >> 3, mantissa = code & 7;
    unsigned bits = 0;
    if (exponent > 0) bits = static_cast<unsigned>((exponent + 120) << 7 | mantissa << 4);
    else if (mantissa > 0) {  // mantissa * 2^-9
      int shift = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;
      bits = static_cast<unsigned>((127 - 9 + shift) << 7 | (((mantissa << (7 - shift)) & 127)));
    }
    table.low[code] = static_cast<uint8_t>(bits & 255);
    table.high[code] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
constexpr E4m3Table kE4m3Table = make_e4m3_table();

// 32 codes -> 32 bf16.
inline __m512i e4m3_to_bf16(__m256i codes) {
  const __m512i wide = _mm512_cvtepu8_epi16(codes);
  const __m512i index = _mm512_or_si512(wide, _mm512_slli_epi16(wide, 8));  // the code in both bytes
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Table.low), index, _mm512_load_si512(kE4m3Table.low + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(kE4m3Table.high), index, _mm512_load_si512(kE4m3Table.high + 64));
  const __m512i value = _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaaull, low, high);
  return _mm512_or_si512(value, _mm512_and_si512(_mm512_slli_epi16(wide, 8), _mm512_set1_epi16(static_cast<short>(0x8000))));
}

// to[0, n) = columns of a bf16, fp8 or int8 cache row in bf16, zeros up to the next multiple of 32. int8 values are rounded.
void cache_row_bf16(const CacheView& c, const char* row, int64_t column, int64_t n, uint16_t* to) {
  column += c.column;
  if (c.element == CacheElement::kBf16) {
    const auto* from = reinterpret_cast<const uint16_t*>(row) + column;
    for (int64_t i = 0; i < n; i += 32) {
      const auto mask = static_cast<__mmask32>(n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1);
      _mm512_storeu_si512(to + i, _mm512_maskz_loadu_epi16(mask, from + i));
    }
    return;
  }
  for (int64_t i = 0; i < n; i += 32) {
    const auto mask = static_cast<__mmask32>(n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1);
    const __m256i codes = _mm256_maskz_loadu_epi8(mask, row + column + i);
    if (c.element == CacheElement::kFp8) {
      _mm512_storeu_si512(to + i, e4m3_to_bf16(codes));
      continue;
    }
    const int64_t at = column + i, rest = n - i > 32 ? 32 : n - i, in_group = kInt8CacheGroup - at % kInt8CacheGroup;
    const __m512 first = _mm512_set1_ps(int8_cache_scale(row, c.width, at));
    const __m512 second = in_group < rest ? _mm512_set1_ps(int8_cache_scale(row, c.width, at + in_group)) : first;
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1)));
    const __m512 low_scale = _mm512_mask_blend_ps(first_lanes(in_group), second, first);
    const __m512 high_scale = _mm512_mask_blend_ps(first_lanes(in_group - 16), second, first);
    _mm512_storeu_si512(to + i,
                        reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, high_scale), _mm512_mul_ps(low, low_scale))));
  }
}

// 2^t within 3e-7 for t up to 127; 0 below -126 (denormal results would cost a microcode assist each) and for -infinity; NaN
// stays NaN. 2^r = 1 + r p(r), p interpolated at Chebyshev points, so that 2^0 is 1 exactly.
inline __m512 exp2_lanes(__m512 t) {
  const __m512 n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(t, n);
  __m512 p = _mm512_set1_ps(1.338130254e-03f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.666368515e-03f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550381014e-02f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402234904e-01f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931471806e-01f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(t, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ), p, n);
}

// Reads ahead what the next tile needs, a few lines at a time between the steps of this one, so that memory and arithmetic
// overlap. Prefill does without.
struct ReadAhead {
  const char* rows[2 * kTile];
  int64_t count = 0, bytes = 0, row = 0, offset = 0;  // rows; bytes of each; the next line

  void lines(int64_t n) {
    for (; n > 0 && row < count; n--) {
      _mm_prefetch(rows[row] + offset, _MM_HINT_T1);
      offset += 64;
      if (offset >= bytes) offset = 0, row++;
    }
  }
};
struct NoReadAhead {
  void lines(int64_t) {}
};

// s (position, query): K Q^T for four blocks of 16 positions.
template <class Ahead>
inline void tile_scores(const char* const* k, int64_t k_stride_bytes, const uint16_t* q, int64_t steps, float* s, Ahead& ahead) {
  DG_TILE_ZERO(0);
  DG_TILE_ZERO(1);
  DG_TILE_ZERO(2);
  DG_TILE_ZERO(3);
  for (int64_t i = 0; i < steps; i++) {
    DG_TILE_LOAD(4, q + i * 512, 64);
    DG_TILE_LOAD(5, k[0] + i * 64, k_stride_bytes);
    DG_TILE_DOT_BF16(0, 5, 4);
    DG_TILE_LOAD(6, k[1] + i * 64, k_stride_bytes);
    DG_TILE_DOT_BF16(1, 6, 4);
    DG_TILE_LOAD(7, k[2] + i * 64, k_stride_bytes);
    DG_TILE_DOT_BF16(2, 7, 4);
    DG_TILE_LOAD(5, k[3] + i * 64, k_stride_bytes);
    DG_TILE_DOT_BF16(3, 5, 4);
    ahead.lines(20);
  }
  DG_TILE_STORE(0, s, 64);
  DG_TILE_STORE(1, s + 256, 64);
  DG_TILE_STORE(2, s + 512, 64);
  DG_TILE_STORE(3, s + 768, 64);
}

constexpr float kLog2e = 1.44269504f;

// Scores of positions base.. -> weights p, two tiles of (query, 32 positions); takes the group's sums to the new maximum.
template <class Ahead>
inline void tile_softmax16(TileGroup& g, float* s, int64_t base, int64_t v_tiles, uint16_t* p, Ahead& ahead) {
  const __m512 none = _mm512_set1_ps(-__builtin_inff()), old = _mm512_load_ps(g.max);
  __m512 tops[4] = {none, none, none, none};
  if (g.least - base >= kTile) {
    for (int j = 0; j < kTile; j += 4)
      for (int i = 0; i < 4; i++) tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(s + (j + i) * 16));
  } else {
    const __m512i seen = _mm512_sub_epi32(_mm512_load_si512(g.visible), _mm512_set1_epi32(static_cast<int>(base)));
    for (int j = 0; j < kTile; j++) {
      const __mmask16 mask = _mm512_cmpgt_epi32_mask(seen, _mm512_set1_epi32(j));
      const __m512 v = _mm512_mask_blend_ps(mask, none, _mm512_load_ps(s + j * 16));
      _mm512_store_ps(s + j * 16, v);
      tops[j & 3] = _mm512_max_ps(tops[j & 3], v);
    }
  }
  const __m512 top = _mm512_max_ps(_mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3])), old);
  // A lane that has seen nothing yet keeps the maximum -infinity and gets the weights 2^-infinity = 0. The factor of an
  // unchanged maximum is 1 exactly, because the difference is taken first.
  const __mmask16 seen_any = _mm512_cmp_ps_mask(top, none, _CMP_NEQ_UQ);
  const __m512 log2e = _mm512_set1_ps(kLog2e), shift = _mm512_maskz_mul_ps(seen_any, top, log2e);
  const __m512 factor = exp2_lanes(_mm512_mul_ps(_mm512_maskz_sub_ps(seen_any, old, top), log2e));
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                         18, 2, 17, 1, 16, 0);
  __m512 sum[2] = {};
  for (int half = 0; half < 2; half++) {
    __m512i r[16];
    for (int j = 0; j < 16; j++) {
      const float* at = s + (half * 32 + j * 2) * 16;
      const __m512 even = exp2_lanes(_mm512_fmsub_ps(_mm512_load_ps(at), log2e, shift));
      const __m512 odd = exp2_lanes(_mm512_fmsub_ps(_mm512_load_ps(at + 16), log2e, shift));
      sum[0] = _mm512_add_ps(sum[0], even);
      sum[1] = _mm512_add_ps(sum[1], odd);
      r[j] = _mm512_permutexvar_epi16(pairs, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even)));
      ahead.lines(4);
    }
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(p + half * 512 + i * 32, r[i]);
  }
  _mm512_store_ps(g.max, top);
  _mm512_store_ps(g.sum, _mm512_fmadd_ps(_mm512_load_ps(g.sum), factor, _mm512_add_ps(sum[0], sum[1])));
  if (_mm512_cmp_ps_mask(factor, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ) != 0) {
    alignas(64) float factors[16];
    _mm512_store_ps(factors, factor);
    for (int64_t c = 0; c < v_tiles; c++)
      for (int i = 0; i < 16; i++) {
        float* at = g.sums + c * 256 + i * 16;
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), _mm512_set1_ps(factors[i])));
      }
  }
}

// sums += P V. V is packed as tiles (column tile, half of the positions).
template <class Ahead>
inline void tile_values(const uint16_t* p, const uint16_t* v, int64_t v_tiles, float* sums, Ahead& ahead) {
  DG_TILE_LOAD(6, p, 64);
  DG_TILE_LOAD(7, p + 512, 64);
  int64_t c = 0;
  for (; c + 4 <= v_tiles; c += 4) {
    const uint16_t* at = v + c * 1024;
    float* to = sums + c * 256;
    DG_TILE_LOAD(0, to, 64);
    DG_TILE_LOAD(4, at, 64);
    DG_TILE_DOT_BF16(0, 6, 4);
    DG_TILE_LOAD(1, to + 256, 64);
    DG_TILE_LOAD(5, at + 1024, 64);
    DG_TILE_DOT_BF16(1, 6, 5);
    DG_TILE_LOAD(2, to + 512, 64);
    DG_TILE_LOAD(4, at + 2048, 64);
    DG_TILE_DOT_BF16(2, 6, 4);
    DG_TILE_LOAD(3, to + 768, 64);
    DG_TILE_LOAD(5, at + 3072, 64);
    DG_TILE_DOT_BF16(3, 6, 5);
    DG_TILE_LOAD(4, at + 512, 64);
    DG_TILE_DOT_BF16(0, 7, 4);
    DG_TILE_LOAD(5, at + 1536, 64);
    DG_TILE_DOT_BF16(1, 7, 5);
    DG_TILE_LOAD(4, at + 2560, 64);
    DG_TILE_DOT_BF16(2, 7, 4);
    DG_TILE_LOAD(5, at + 3584, 64);
    DG_TILE_DOT_BF16(3, 7, 5);
    ahead.lines(20);
    DG_TILE_STORE(0, to, 64);
    DG_TILE_STORE(1, to + 256, 64);
    DG_TILE_STORE(2, to + 512, 64);
    DG_TILE_STORE(3, to + 768, 64);
  }
  for (; c < v_tiles; c++) {
    DG_TILE_LOAD(0, sums + c * 256, 64);
    DG_TILE_LOAD(4, v + c * 1024, 64);
    DG_TILE_DOT_BF16(0, 6, 4);
    DG_TILE_LOAD(5, v + c * 1024 + 512, 64);
    DG_TILE_DOT_BF16(0, 7, 5);
    DG_TILE_STORE(0, sums + c * 256, 64);
  }
}

// Rows a and b (bf16, `n` columns present of 32) interleaved to row `pair` of two column tiles. The unpack instructions work
// within 128 bits: column 8 i + j (j < 4) of the 32 stands in the first tile at 4 i + j, column 8 i + 4 + j in the second.
inline void interleave_rows(__m512i a, __m512i b, uint16_t* first_tile, int64_t tile_stride, int64_t pair) {
  _mm512_store_si512(first_tile + pair * 32, _mm512_unpacklo_epi16(a, b));
  _mm512_store_si512(first_tile + tile_stride + pair * 32, _mm512_unpackhi_epi16(a, b));
}

// The 32 columns of one query in their order, from the rows of two tiles.
inline void tile_columns(__m512 first, __m512 second, __m512* low, __m512* high) {
  const __m512i low_order = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i high_order = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
  *low = _mm512_permutex2var_ps(first, low_order, second);
  *high = _mm512_permutex2var_ps(first, high_order, second);
}

// to[0, n) = sums of one query of a group * factor + 0.
inline void tile_row(const float* sums, int query, int64_t n, float factor, float* to) {
  const __m512 f = _mm512_set1_ps(factor), zero = _mm512_setzero_ps();
  for (int64_t c = 0; c < n; c += 32) {
    const float* at = sums + c * 16 + query * 16;
    __m512 low, high;
    tile_columns(_mm512_load_ps(at), _mm512_load_ps(at + 256), &low, &high);
    _mm512_mask_storeu_ps(to + c, first_lanes(n - c), _mm512_fmadd_ps(low, f, zero));
    if (n - c > 16) _mm512_mask_storeu_ps(to + c + 16, first_lanes(n - c - 16), _mm512_fmadd_ps(high, f, zero));
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
