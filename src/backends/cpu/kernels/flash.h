// The portable path of attention, in f32, with an online softmax over tiles of 64 cache positions (FlashAttention, Dao et
// al. 2022). The tiles start at position 0 whatever the query rows are, every row performs the same operations on its own
// positions in the same order whichever rows share the tile with it, and masked positions are never touched: chunked
// prefill equals whole prefill bit for bit.
//
// Both products are gemm_rows: C[r] (+)= A[r] B with B row-major, so K is transposed when a tile is loaded (one 4 x 4
// shuffle per 16 elements; for a single query row that costs about as much as reading the tile from memory).
// Per row and tile: 64 * (k_width + v_width) multiply-adds.
#pragma once
#include "backends/cpu/kernels/attention_cache.h"
#include "backends/cpu/kernels/rows.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int kColumnVectors = kLanes == 4 && kManyRegisters ? 4 : kLanes == 16 ? 4 : 2;

template <int R, int V>
inline void gemm_block(const float* const* a, int64_t k, const float* b, int64_t ldb, float* const* c, int64_t column, bool accumulate) {
  vf sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[r][v] = accumulate ? load(c[r] + column + v * kLanes) : vf{};
  for (int64_t i = 0; i < k; i++) {
    const float* row = b + i * ldb + column;
    vf bv[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) bv[v] = load(row + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      vf av = splat(a[r][i]);
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sum[r][v] += av * bv[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(c[r] + column + v * kLanes, sum[r][v]);
}

// c[r][0, n) = (accumulate ? c[r] : 0) + sum over i < k of a[r][i] * b[i][0, n), i in order.
template <int R>
void gemm_rows(const float* const* a, int64_t k, const float* b, int64_t ldb, int64_t n, float* const* c, bool accumulate) {
  int64_t column = 0;
  for (; column + kColumnVectors * kLanes <= n; column += kColumnVectors * kLanes)
    gemm_block<R, kColumnVectors>(a, k, b, ldb, c, column, accumulate);
  for (; column + kLanes <= n; column += kLanes) gemm_block<R, 1>(a, k, b, ldb, c, column, accumulate);
  // The last columns in a vector too: the compiler may cut a scalar sum into fused and separate steps, whose rounding would
  // depend on k.
  if (column == n) return;
  vf sum[R];
  for (int r = 0; r < R; r++) sum[r] = accumulate ? load_first(c[r] + column, n - column) : vf{};
  for (int64_t i = 0; i < k; i++) {
    const vf bv = load_first(b + i * ldb + column, n - column);
    for (int r = 0; r < R; r++) sum[r] += splat(a[r][i]) * bv;
  }
  for (int r = 0; r < R; r++) store_first(c[r] + column, sum[r], n - column);
}

// rows[j] = columns of cache row base + j as floats, j < count.
void load_tile(const CacheView& c, int64_t base, int64_t count, int64_t column, int64_t width, float* rows) {
  for (int64_t j = 0; j < count; j++) cache_row_floats(c, base + j, column, width, rows + j * width);
}

typedef float v4 __attribute__((vector_size(16)));
typedef float v4_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
#define DG_LOAD4(p) (*reinterpret_cast<const v4_unaligned*>(p))
#define DG_STORE4(p, v) (*reinterpret_cast<v4_unaligned*>(p) = (v))

// to[d][column + j] = from[j][d] for j < 4; `from` are four rows of `width` floats.
void transpose4(const float* const* from, int64_t width, float* to) {
  int64_t d = 0;
  for (; d + 4 <= width; d += 4) {
    v4 a = DG_LOAD4(from[0] + d), b = DG_LOAD4(from[1] + d), c = DG_LOAD4(from[2] + d), e = DG_LOAD4(from[3] + d);
    v4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    v4 ce_low = __builtin_shufflevector(c, e, 0, 4, 1, 5), ce_high = __builtin_shufflevector(c, e, 2, 6, 3, 7);
    DG_STORE4(to + d * kTile, __builtin_shufflevector(ab_low, ce_low, 0, 1, 4, 5));
    DG_STORE4(to + (d + 1) * kTile, __builtin_shufflevector(ab_low, ce_low, 2, 3, 6, 7));
    DG_STORE4(to + (d + 2) * kTile, __builtin_shufflevector(ab_high, ce_high, 0, 1, 4, 5));
    DG_STORE4(to + (d + 3) * kTile, __builtin_shufflevector(ab_high, ce_high, 2, 3, 6, 7));
  }
  for (; d < width; d++)
    for (int j = 0; j < 4; j++) to[d * kTile + j] = from[j][d];
}

// to[d][j] = rows[j][d], rows `stride` floats apart; columns from `count` up hold copies that nobody reads.
void transpose_tile(const float* rows, int64_t stride, int64_t count, int64_t width, float* to) {
  for (int64_t j = 0; j < count; j += 4) {
    const float* from[4];
    for (int i = 0; i < 4; i++) from[i] = rows + (j + i < count ? j + i : count - 1) * stride;
    transpose4(from, width, to + j);
  }
}

// The same from columns of the cache; `temp` holds four rows.
void load_tile_transposed(const CacheView& c, int64_t base, int64_t count, int64_t column, int64_t width, float* to, float* temp) {
  for (int64_t j = 0; j < count; j += 4) {
    int64_t n = count - j < 4 ? count - j : 4;
    load_tile(c, base + j, n, column, width, temp);
    const float* from[4];
    for (int i = 0; i < 4; i++) from[i] = temp + (i < n ? i : n - 1) * width;
    transpose4(from, width, to + j);
  }
}

// Running softmax of a set of query vectors.
struct FlashRows {
  const float** q;
  float** out;
  float *max, *sum;
  int64_t* visible;  // positions this row sees
  int64_t n;
};

// Takes flash_rows_floats(n) floats from `scratch`.
FlashRows flash_begin(float*& scratch, int64_t n) {
  const int64_t padded = pad16(n);
  FlashRows f;
  f.q = reinterpret_cast<const float**>(scratch);
  f.out = reinterpret_cast<float**>(scratch + padded * 2);
  f.visible = reinterpret_cast<int64_t*>(scratch + padded * 4);
  f.max = scratch + padded * 6;
  f.sum = scratch + padded * 7;
  f.n = n;
  scratch += flash_rows_floats(n);
  return f;
}

void flash_row(FlashRows& f, int64_t i, const float* q, float* out, int64_t v_width, int64_t visible) {
  f.q[i] = q, f.out[i] = out, f.visible[i] = visible;
  f.max[i] = -__builtin_inff(), f.sum[i] = 0.0f;
  for (int64_t c = 0; c < v_width; c++) out[c] = 0.0f;
}

// s[0, 64): scores -> exp(score * scale - max) for the first n, 0 behind. Returns the factor for what was summed before.
float tile_softmax(float* s, int64_t n, float scale, float* max, float* sum) {
  for (int64_t j = n; j < kTile; j++) s[j] = -__builtin_inff();
  vf top = splat(-__builtin_inff());
  for (int64_t j = 0; j < kTile; j += kLanes) {
    vf v = load(s + j) * scale;
    if (j + kLanes > n)  // a scale of 0 makes NaN of -inf
      for (int i = 0; i < kLanes; i++)
        if (j + i >= n) v[i] = -__builtin_inff();
    store(s + j, v);
    top = v > top ? v : top;
  }
  float new_max = *max;
  for (int i = 0; i < kLanes; i++) new_max = top[i] > new_max ? top[i] : new_max;
  vf parts[kParts] = {};
  for (int64_t j = 0; j < kTile; j += 16)
    for (int p = 0; p < kParts; p++) {
      vf e = exp_vector(load(s + j + p * kLanes) - new_max);
      store(s + j + p * kLanes, e);
      parts[p] += e;
    }
  float lanes[16];
  for (int p = 0; p < kParts; p++) store(lanes + p * kLanes, parts[p]);
  const float factor = exp_vector(splat(*max - new_max))[0];
  *sum = *sum * factor + hsum16(lanes);
  *max = new_max;
  return factor;
}

template <int R>
void flash_group(FlashRows& f, int64_t first, const float* kt, int64_t k_width, const float* v, int64_t ldv, int64_t v_width, int64_t base,
                 float scale, float* scores) {
  float* s[R];
  int64_t n[R];
  int64_t least = kTile, most = 0;
  for (int r = 0; r < R; r++) {
    s[r] = scores + r * kTile;
    int64_t seen = f.visible[first + r] - base;
    n[r] = seen < 0 ? 0 : seen > kTile ? kTile : seen;
    least = n[r] < least ? n[r] : least;
    most = n[r] > most ? n[r] : most;
  }
  if (most == 0) return;
  gemm_rows<R>(f.q + first, k_width, kt, kTile, kTile, s, false);
  for (int r = 0; r < R; r++) {
    if (n[r] == 0) continue;
    const float factor = tile_softmax(s[r], n[r], scale, f.max + first + r, f.sum + first + r);
    float* out = f.out[first + r];
    if (factor != 1.0f) scale_row(out, factor, v_width);
  }
  // Positions that all rows see together, then each row's rest: the same additions in the same order.
  if (least > 0) gemm_rows<R>(s, least, v, ldv, v_width, f.out + first, true);
  for (int r = 0; r < R; r++) {
    const float* rest = s[r] + least;
    if (n[r] > least) gemm_rows<1>(&rest, n[r] - least, v + least * ldv, ldv, v_width, f.out + first + r, true);
  }
}

// One tile for rows [first, f.n). kt (k_width, 64), v (64, v_width) with rows ldv apart, scores 4 x 64 floats.
void flash_tile(FlashRows& f, int64_t first, const float* kt, int64_t k_width, const float* v, int64_t ldv, int64_t v_width, int64_t base,
                float scale, float* scores) {
  int64_t i = first;
  for (; i + 4 <= f.n; i += 4) flash_group<4>(f, i, kt, k_width, v, ldv, v_width, base, scale, scores);
  for (; i < f.n; i++) flash_group<1>(f, i, kt, k_width, v, ldv, v_width, base, scale, scores);
}

// Adding 0 turns -0 into +0: whether a row met masked positions, which add +0, must not show.
void flash_end(FlashRows& f, int64_t v_width, bool partial) {
  for (int64_t i = 0; i < f.n; i++) {
    float* out = f.out[i];
    const float factor = partial ? 1.0f : 1.0f / f.sum[i];
    for_each_vector(v_width, out, [&](auto at) { return at(out) * factor + 0.0f; });
    if (partial) out[v_width] = f.max[i], out[v_width + 1] = f.sum[i];
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
