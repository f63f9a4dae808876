// Attention and MLA with the tiles of attention_tiles.h, for bf16, fp8 and int8 caches.
//
// Decode is bound by memory: per tile of 64 positions and kv head it takes some 1600 cycles for heads of 128 and 5000 for a
// latent of 512 + 64 with 16 heads, while a core that gets 13 GB/s waits 6500 and 14000 cycles for the rows. All heads of a
// sequence share one read, kv heads take turns within a tile so that whole rows are read in order, and the next tile is
// prefetched meanwhile.
#pragma once
#include "backends/cpu/kernels/attention_portable.h"
#include "backends/cpu/kernels/attention_tiles.h"
#include "quant/bf16.h"
#include "quant/fp8_block.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

inline bool tile_element(CacheElement element) { return element != CacheElement::kF32 && element != CacheElement::kF16; }

// Buffers of a tile of the cache, tile_cache_floats.
struct TileBuffers {
  float* scores;   // (64, 16)
  uint16_t* k;     // (64, k_width padded)
  uint16_t* v;     // tiles (column tile, half)
  uint16_t* rows;  // (2, v_width padded)
};

inline TileBuffers tile_buffers(float*& scratch, int64_t k_width, int64_t v_width) {
  TileBuffers b;
  b.scores = scratch;
  b.k = reinterpret_cast<uint16_t*>(scratch + 16 * kTile);
  b.v = b.k + kTile * pad32(k_width);
  b.rows = b.v + kTile * pad32(v_width);
  scratch += tile_cache_floats(k_width, v_width);
  return b;
}

// Whether 16 positions can be a tile operand as they lie in the cache.
inline bool direct_rows(const CacheView& c, int64_t width) {
  return c.element == CacheElement::kBf16 && width % 32 == 0 && c.block_tokens % 16 == 0;
}

// rows[j] = the cache row of position base + j, j < count.
inline void cache_rows(const CacheView& c, int64_t base, int64_t count, const char** rows) {
  int64_t block = base / c.block_tokens, offset = base % c.block_tokens;
  for (int64_t j = 0; j < count; block++, offset = 0) {
    const char* row = static_cast<const char*>(c.data) + c.blocks[block] * c.block_bytes + offset * c.row_bytes;
    const int64_t stop = count - j < c.block_tokens - offset ? count : j + c.block_tokens - offset;
    for (; j < stop; j++, row += c.row_bytes) rows[j] = row;
  }
}

// k[i] = positions 16 i .. of the tile, or a copy in bf16 in `buffer`. Positions from `count` up are never used: their scores
// are masked.
inline int64_t tile_rows(const CacheView& c, const char* const* rows, int64_t count, int64_t column, int64_t width, uint16_t* buffer,
                         const char** k) {
  if (direct_rows(c, width)) {
    for (int i = 0; i < 4; i++) k[i] = rows[16 * i < count ? 16 * i : 0] + (c.column + column) * 2;
    return c.row_bytes;
  }
  const int64_t stride = pad32(width);
  for (int64_t j = 0; j < count; j++) cache_row_bf16(c, rows[j], column, width, buffer + j * stride);
  for (int i = 0; i < 4; i++) k[i] = reinterpret_cast<const char*>(buffer + (16 * i < count ? 16 * i * stride : 0));
  return stride * 2;
}

// Interleaves `width` columns of rows in pairs to the tiles of V: row(j) is the address of row j in bf16, of which `width`
// elements may be read. Rows from `count` up are zeros.
template <class Ahead, class Row>
inline void pack_values(int64_t count, int64_t width, uint16_t* v, Ahead& ahead, Row row) {
  const int64_t half_stride = 512, tile_stride = 1024;
  for (int64_t pair = 0; pair < kTile / 2; pair++) {
    const uint16_t* a = 2 * pair < count ? row(2 * pair) : nullptr;
    const uint16_t* b = 2 * pair + 1 < count ? row(2 * pair + 1) : nullptr;
    uint16_t* to = v + pair / 16 * half_stride;
    for (int64_t c = 0; c < width; c += 32) {
      const auto mask = static_cast<__mmask32>(width - c >= 32 ? 0xffffffffu : (1u << (width - c)) - 1);
      const __m512i first = a ? _mm512_maskz_loadu_epi16(mask, a + c) : _mm512_setzero_si512();
      const __m512i second = b ? _mm512_maskz_loadu_epi16(mask, b + c) : _mm512_setzero_si512();
      interleave_rows(first, second, to + c / 16 * tile_stride, tile_stride, pair % 16);
      ahead.lines(1);
    }
  }
}

// The prefetch of one tile covers its K rows and, unless they are the same, its V rows, over all kv heads.
inline void read_ahead(const AttentionTask& a, int64_t base, bool shared, ReadAhead& ahead) {
  const int64_t count = a.cached - base < kTile ? a.cached - base : kTile, element = a.k.element == CacheElement::kBf16 ? 2 : 1;
  ahead.count = ahead.row = ahead.offset = 0;
  if (count <= 0) return;
  ahead.count = shared ? count : 2 * count;
  ahead.bytes = a.k_width * a.kv_heads * element;
  cache_rows(a.k, base, count, ahead.rows);
  if (!shared) cache_rows(a.v, base, count, ahead.rows + count);
  for (int64_t j = 0; j < ahead.count; j++) ahead.rows[j] += a.k.column * element;
}
inline void read_ahead(const AttentionTask&, int64_t, bool, NoReadAhead&) {}

// Queries of 16 (row, head) pairs, pair = row * group + head; lanes beyond `pairs` hold zeros that see what the last pair sees.
// With `side` > 1 kv heads side by side the group has the pairs of all of them, one kv head after the other, and a query is
// zero in the columns of the others: their products add zeros to its scores, and what it sums of their values is not read.
inline void start_group(const AttentionTask& a, int64_t first_kv_head, int64_t side, int64_t index, const TileGroup& g) {
  const int64_t pairs = a.rows * a.group;
  for (int64_t s = 0; s < side; s++) {
    const float* q[16] = {};
    for (int i = 0; i < 16; i++) {
      const int64_t lane = index * 16 + i, pair = lane < side * pairs ? lane % pairs : pairs - 1;
      if (lane < side * pairs && lane / pairs == s)
        q[i] = a.q + pair / a.group * a.q_row_stride + ((first_kv_head + s) * a.group + pair % a.group) * a.q_head_stride;
      g.visible[i] = static_cast<int32_t>(a.visible + pair / a.group);
      g.max[i] = -__builtin_inff(), g.sum[i] = 0.0f;
    }
    pack_columns(q, a.k_width, a.scale, g.q + s * a.k_width * 16);
  }
  std::memset(g.sums, 0, static_cast<size_t>(16 * pad32(side * a.v_width)) * sizeof(float));
}

// kv heads that share a group of 16 queries: what fits, if they divide among the groups evenly and their columns in tiles.
inline int64_t kv_heads_side_by_side(const AttentionTask& a) {
  if (a.k_width % 32 != 0 || a.v_width % 32 != 0) return 1;
  int64_t side = kTilePairs / (a.rows * a.group);
  if (side > a.kv_heads) side = a.kv_heads;
  while (side > 1 && a.kv_heads % side != 0) side--;
  return side < 1 ? 1 : side;
}

// The results of a group's queries; maxima are kept in natural units, as attention_merge takes them.
inline void finish_row(const TileGroup& g, int query, int64_t column, int64_t v_width, bool partial, float* out) {
  tile_row(g.sums + column * 16, query, v_width, partial ? 1.0f : 1.0f / g.sum[query], out);
  if (partial) out[v_width] = g.max[query], out[v_width + 1] = g.sum[query];
}

constexpr int64_t kValueColumns = 128;  // of V packed at a time: 16 KiB, which stay in L1 for all groups

template <class Ahead>
void tile_attention_as(const AttentionTask& a) {
  TileScope tiles;
  const int64_t side = kv_heads_side_by_side(a), heads = a.kv_heads / side, k_width = side * a.k_width, v_width = side * a.v_width;
  const int64_t pairs = a.rows * a.group, groups = (side * pairs + kTilePairs - 1) / kTilePairs;
  const int64_t k_steps = pad32(k_width) / 32, v_tiles = pad32(v_width) / 16;
  const bool shared = a.k.data == a.v.data && a.k.column == a.v.column;
  float* scratch = a.scratch;
  TileBuffers b = tile_buffers(scratch, k_width, v_width);
  auto* weights = reinterpret_cast<uint16_t*>(scratch);  // two tiles for each group
  scratch += groups * 512;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = 0; i < groups; i++) start_group(a, h * side, side, i, tile_group(scratch, h * groups + i, k_width, v_width));

  Ahead ahead;
  for (int64_t base = a.begin; base < a.end; base += kTile) {
    const int64_t count = a.end - base < kTile ? a.end - base : kTile;
    const char *k_rows[kTile], *v_rows[kTile], *k[4];
    cache_rows(a.k, base, count, k_rows);
    cache_rows(a.v, base, count, v_rows);
    read_ahead(a, base + kTile, shared, ahead);
    for (int64_t h = 0; h < heads; h++) {
      const int64_t k_stride = tile_rows(a.k, k_rows, count, h * k_width, k_width, b.k, k);
      for (int64_t i = 0; i < groups; i++) {
        TileGroup g = tile_group(scratch, h * groups + i, k_width, v_width);
        if (g.most <= base) continue;
        tile_scores(k, k_stride, g.q, k_steps, b.scores, ahead);
        tile_softmax16(g, b.scores, base, v_tiles, weights + i * 1024, ahead);
      }
      for (int64_t c = 0; c < v_width; c += kValueColumns) {
        const int64_t columns = v_width - c < kValueColumns ? v_width - c : kValueColumns, first = h * v_width + c;
        if (shared) {
          pack_values(count, columns, b.v, ahead,
                      [&](int64_t j) { return reinterpret_cast<const uint16_t*>(k[j / 16] + j % 16 * k_stride) + c; });
        } else if (a.v.element == CacheElement::kBf16) {
          pack_values(count, columns, b.v, ahead,
                      [&](int64_t j) { return reinterpret_cast<const uint16_t*>(v_rows[j]) + a.v.column + first; });
        } else {
          pack_values(count, columns, b.v, ahead, [&](int64_t j) {
            uint16_t* to = b.rows + j % 2 * kValueColumns;
            cache_row_bf16(a.v, v_rows[j], first, columns, to);
            return static_cast<const uint16_t*>(to);
          });
        }
        for (int64_t i = 0; i < groups; i++) {
          const TileGroup g = tile_group(scratch, h * groups + i, k_width, v_width);
          if (g.most > base) tile_values(weights + i * 1024, b.v, pad32(columns) / 16, g.sums + c * 16, ahead);
        }
      }
    }
  }

  for (int64_t h = 0; h < a.kv_heads; h++)
    for (int64_t pair = 0; pair < pairs; pair++) {
      const int64_t lane = h % side * pairs + pair;
      const TileGroup g = tile_group(scratch, h / side * groups + lane / 16, k_width, v_width);
      float* out = a.out + pair / a.group * a.out_row_stride + (h * a.group + pair % a.group) * a.out_head_stride;
      finish_row(g, static_cast<int>(lane % 16), h % side * a.v_width, a.v_width, a.partial, out);
    }
}

// With few queries the cache comes from memory and the next tile is read ahead; with many, arithmetic takes the time.
void tile_attention(const AttentionTask& a) {
  if (a.rows * a.group <= 4 * kTilePairs) tile_attention_as<ReadAhead>(a);
  else tile_attention_as<NoReadAhead>(a);
}

// to[0, n) = columns [0, n) of a row of a weight in bf16, zeros up to the next multiple of 32.
inline void weight_row_bf16(const Matrix& m, int64_t row, int64_t n, float* temp, uint16_t* to) {
  if (m.decode == bf16_decode) {
    const auto* from = reinterpret_cast<const uint16_t*>(m.weight->data) + row * m.weight->in;
    for (int64_t i = 0; i < n; i += 32) {
      const auto mask = static_cast<__mmask32>(n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1);
      _mm512_storeu_si512(to + i, _mm512_maskz_loadu_epi16(mask, from + i));
    }
    return;
  }
  if (m.decode == fp8_block_decode) {
    const Weight& w = *m.weight;
    const auto* from = reinterpret_cast<const uint8_t*>(w.data) + row * w.in;
    const auto* scales = reinterpret_cast<const float*>(w.scales) + row / kFp8Block * ((w.in + kFp8Block - 1) / kFp8Block);
    for (int64_t i = 0; i < n; i += 32) {
      const auto mask = static_cast<__mmask32>(n - i >= 32 ? 0xffffffffu : (1u << (n - i)) - 1);
      const __m512i codes = e4m3_to_bf16(_mm256_maskz_loadu_epi8(mask, from + i));
      const __m512 low = reinterpret_cast<__m512>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(codes)), 16));
      const __m512 high = reinterpret_cast<__m512>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(codes, 1)), 16));
      const __m512 scale = _mm512_set1_ps(scales[i / kFp8Block]);
      _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scale), _mm512_mul_ps(low, scale))));
    }
    return;
  }
  m.decode(*m.weight, row, 0, n, temp);
  for (int64_t i = 0; i < n; i += 32) _mm512_storeu_si512(to + i, floats_to_bf16(temp + i, n - i, _mm512_set1_ps(1.0f)));
}

// `rows` rows of a weight as right operand: tile (row / 16, k) of `to`, `steps` tiles of k for each 16 rows; zeros behind.
inline void pack_weight(const Matrix& m, int64_t first_row, int64_t rows, int64_t in, uint16_t* strip, float* temp, uint16_t* to) {
  const int64_t padded = pad32(in), steps = padded / 32;
  for (int64_t row = 0; row < pad32(rows); row += 16) {
    for (int64_t i = 0; i < 16; i++) {
      if (row + i < rows) weight_row_bf16(m, first_row + row + i, in, temp, strip + i * padded);
      else std::memset(strip + i * padded, 0, static_cast<size_t>(padded) * 2);
    }
    for (int64_t k = 0; k < steps; k++) {
      __m512i r[16];
      for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(strip + i * padded + k * 32);
      transpose16(r);
      for (int i = 0; i < 16; i++) _mm512_store_si512(to + (row / 16 * steps + k) * 512 + i * 32, r[i]);
    }
  }
}

// c (two blocks of 16 positions, two column tiles; 1 KiB each) = latent rows times two neighbouring column tiles of a weight.
inline void tile_project(const char* first, const char* second, int64_t stride, const uint16_t* w, int64_t steps, float* c) {
  DG_TILE_ZERO(0);
  DG_TILE_ZERO(1);
  DG_TILE_ZERO(2);
  DG_TILE_ZERO(3);
  const uint16_t* other = w + steps * 512;
  for (int64_t i = 0; i < steps; i++) {
    DG_TILE_LOAD(4, first + i * 64, stride);
    DG_TILE_LOAD(6, w + i * 512, 64);
    DG_TILE_DOT_BF16(0, 4, 6);
    DG_TILE_LOAD(7, other + i * 512, 64);
    DG_TILE_DOT_BF16(1, 4, 7);
    DG_TILE_LOAD(5, second + i * 64, stride);
    DG_TILE_DOT_BF16(2, 5, 6);
    DG_TILE_DOT_BF16(3, 5, 7);
  }
  DG_TILE_STORE(0, c, 64);
  DG_TILE_STORE(1, c + 256, 64);
  DG_TILE_STORE(2, c + 512, 64);
  DG_TILE_STORE(3, c + 768, 64);
}

// Row j of a product (two blocks of 16 rows, two column tiles) as 32 bf16.
inline __m512i product_row(const float* c, int64_t j) {
  const float* at = c + j / 16 * 512 + j % 16 * 16;
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_load_ps(at + 256), _mm512_load_ps(at)));
}

void tile_mla_prefill(const MlaPrefillTask& a) {
  TileScope tiles;
  const int64_t k_width = a.nope + a.rope, groups = (a.rows + 15) / 16, lora = pad32(a.kv_lora), steps = lora / 32;
  const int64_t k_stride = pad32(k_width), k_steps = pad32(k_width) / 32, v_tiles = pad32(a.v_dim) / 16;
  const int64_t first_row = a.head * (a.nope + a.v_dim);
  float* scratch = a.scratch;
  TileBuffers b = tile_buffers(scratch, k_width, a.v_dim);
  auto* weights = reinterpret_cast<uint16_t*>(scratch);  // two tiles
  uint16_t* wk = weights + 1024;
  uint16_t* wv = wk + pad32(a.nope) * lora;
  uint16_t* strip = wv + pad32(a.v_dim) * lora;
  float* temp = reinterpret_cast<float*>(strip + 16 * lora);
  uint16_t* latent = reinterpret_cast<uint16_t*>(temp + lora);
  float* product = reinterpret_cast<float*>(latent + kTile * lora);
  scratch = product + 1024;
  pack_weight(a.kv_b, first_row, a.nope, a.kv_lora, strip, temp, wk);
  pack_weight(a.kv_b, first_row + a.nope, a.v_dim, a.kv_lora, strip, temp, wv);
  std::memset(b.k, 0, static_cast<size_t>(kTile * k_stride) * 2);  // columns behind nope + rope stay zero

  AttentionTask task{};  // one head of its own
  task.q = a.q, task.q_row_stride = a.q_row_stride, task.rows = a.rows, task.group = 1, task.visible = a.visible;
  task.k_width = k_width, task.v_width = a.v_dim, task.scale = a.scale;
  for (int64_t i = 0; i < groups; i++) start_group(task, 0, 1, i, tile_group(scratch, i, k_width, a.v_dim));

  NoReadAhead none;
  const int64_t last = a.visible + a.rows - 1;
  for (int64_t base = 0; base < last; base += kTile) {
    const int64_t count = last - base < kTile ? last - base : kTile;
    const char* rows[4];
    const char* cached[kTile];
    cache_rows(a.cache, base, count, cached);
    const int64_t stride = tile_rows(a.cache, cached, count, 0, a.kv_lora, latent, rows);
    for (int64_t block = 0; block < kTile; block += 32) {
      if (block >= count) {
        for (int64_t pair = 0; pair < 16; pair++)
          for (int64_t t = 0; t < v_tiles; t++) _mm512_store_si512(b.v + (t * 2 + block / 32) * 512 + pair * 32, _mm512_setzero_si512());
        break;
      }
      const int64_t n = count - block < 32 ? count - block : 32;
      for (int64_t c = 0; c < a.nope; c += 32) {
        tile_project(rows[block / 16], rows[block / 16 + 1], stride, wk + c / 16 * steps * 512, steps, product);
        const auto mask = static_cast<__mmask32>(a.nope - c >= 32 ? 0xffffffffu : (1u << (a.nope - c)) - 1);
        for (int64_t j = 0; j < n; j++) _mm512_mask_storeu_epi16(b.k + (block + j) * k_stride + c, mask, product_row(product, j));
      }
      for (int64_t c = 0; c < a.v_dim; c += 32) {
        tile_project(rows[block / 16], rows[block / 16 + 1], stride, wv + c / 16 * steps * 512, steps, product);
        for (int64_t pair = 0; pair < 16; pair++) {
          const __m512i even = 2 * pair < n ? product_row(product, 2 * pair) : _mm512_setzero_si512();
          const __m512i odd = 2 * pair + 1 < n ? product_row(product, 2 * pair + 1) : _mm512_setzero_si512();
          interleave_rows(even, odd, b.v + (c / 16 * 2 + block / 32) * 512, 1024, pair);
        }
      }
      for (int64_t j = 0; j < n; j++) {
        uint16_t rope[32];
        for (int64_t c = 0; c < a.rope; c += 32) {
          const int64_t some = a.rope - c < 32 ? a.rope - c : 32;
          cache_row_bf16(a.cache, cached[block + j], a.kv_lora + c, some, rope);
          std::memcpy(b.k + (block + j) * k_stride + a.nope + c, rope, static_cast<size_t>(some) * 2);
        }
      }
    }
    const char* k[4];
    for (int i = 0; i < 4; i++) k[i] = reinterpret_cast<const char*>(b.k + 16 * i * k_stride);
    const int64_t first = base < a.visible ? 0 : (base - a.visible + 1) / 16;  // earlier rows end before this tile
    for (int64_t i = first; i < groups; i++) {
      TileGroup g = tile_group(scratch, i, k_width, a.v_dim);
      tile_scores(k, k_stride * 2, g.q, k_steps, b.scores, none);
      tile_softmax16(g, b.scores, base, v_tiles, weights, none);
      tile_values(weights, b.v, v_tiles, g.sums, none);
    }
  }
  for (int64_t i = 0; i < a.rows; i++)
    finish_row(tile_group(scratch, i / 16, k_width, a.v_dim), static_cast<int>(i % 16), 0, a.v_dim, false, a.out + i * a.out_row_stride);
}

// Tokens as left operand, 16 at a time: tile k holds their elements [32 k, 32 k + 32).
inline void pack_tokens(const MlaProjectTask& a, int64_t first, int64_t n, uint16_t* to) {
  for (int64_t k = 0; k < n; k += 32)
    for (int i = 0; i < 16; i++)
      _mm512_store_si512(to + k / 32 * 512 + i * 32, first + i < a.tokens
                                                         ? floats_to_bf16(project_row(a, first + i) + k, n - k, _mm512_set1_ps(1.0f))
                                                         : _mm512_setzero_si512());
}

// Wk is used like the values of attention: 32 of its rows at a time are interleaved and multiplied with 32 elements of q.
void tile_mla_absorb_some(const MlaProjectTask& a) {
  const int64_t groups = (a.tokens + 15) / 16, lora = pad32(a.kv_lora), tiles = lora / 16, nope = pad32(a.nope);
  const int64_t row = a.head * (a.nope + a.v_dim);
  auto* q = reinterpret_cast<uint16_t*>(a.scratch);  // (groups, nope / 32) tiles
  float* sums = a.scratch + groups * 8 * nope;       // (groups, tiles)
  auto* w = reinterpret_cast<uint16_t*>(sums + groups * 16 * lora);
  uint16_t* rows = w + 32 * lora;
  float* temp = reinterpret_cast<float*>(rows + 2 * lora);
  for (int64_t g = 0; g < groups; g++) pack_tokens(a, g * 16, a.nope, q + g * nope * 16);
  std::memset(sums, 0, static_cast<size_t>(groups * 16 * lora) * sizeof(float));
  const bool direct = a.kv_b.decode == bf16_decode && a.kv_lora % 32 == 0;
  const auto* from = reinterpret_cast<const uint16_t*>(a.kv_b.weight->data);
  for (int64_t d = 0; d < a.nope; d += 32) {
    for (int64_t pair = 0; pair < 16; pair++) {
      const uint16_t* two[2];
      for (int64_t i = 0; i < 2; i++) {
        const int64_t r = d + 2 * pair + i;
        two[i] = rows + i * lora;
        if (r >= a.nope) std::memset(rows + i * lora, 0, static_cast<size_t>(lora) * 2);
        else if (direct) two[i] = from + (row + r) * a.kv_lora;
        else weight_row_bf16(a.kv_b, row + r, a.kv_lora, temp, rows + i * lora);
      }
      for (int64_t c = 0; c < lora; c += 32) {
        // The strips of a head lie one behind the other: the same place of the next one.
        _mm_prefetch(reinterpret_cast<const char*>(two[0] + c + 32 * lora), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(two[1] + c + 32 * lora), _MM_HINT_T0);
        interleave_rows(_mm512_loadu_si512(two[0] + c), _mm512_loadu_si512(two[1] + c), w + c / 16 * 512, 512, pair);
      }
    }
    for (int64_t g = 0; g < groups; g++) {
      DG_TILE_LOAD(6, q + g * nope * 16 + d / 32 * 512, 64);
      for (int64_t t = 0; t < tiles; t += 2) {
        float* to = sums + (g * tiles + t) * 256;
        DG_TILE_LOAD(0, to, 64);
        DG_TILE_LOAD(4, w + t * 512, 64);
        DG_TILE_DOT_BF16(0, 6, 4);
        DG_TILE_LOAD(1, to + 256, 64);
        DG_TILE_LOAD(5, w + (t + 1) * 512, 64);
        DG_TILE_DOT_BF16(1, 6, 5);
        DG_TILE_STORE(0, to, 64);
        DG_TILE_STORE(1, to + 256, 64);
      }
    }
  }
  for (int64_t t = 0; t < a.tokens; t++) {
    tile_row(sums + t / 16 * tiles * 256, static_cast<int>(t % 16), a.kv_lora, 1.0f, project_out(a, t));
    std::memcpy(project_out(a, t) + a.kv_lora, project_row(a, t) + a.nope, static_cast<size_t>(a.rope) * 4);
  }
}

// Wv is used like the keys: 16 of its rows are the left operand as they lie, and the product comes out transposed.
void tile_mla_output_some(const MlaProjectTask& a) {
  const int64_t groups = (a.tokens + 15) / 16, lora = pad32(a.kv_lora), steps = lora / 32;
  const int64_t first_row = a.head * (a.nope + a.v_dim) + a.nope;
  auto* x = reinterpret_cast<uint16_t*>(a.scratch);  // (groups, steps) tiles
  float* product = a.scratch + groups * 8 * lora;
  auto* strip = reinterpret_cast<uint16_t*>(product + 256);
  float* temp = reinterpret_cast<float*>(strip + 16 * lora);
  for (int64_t g = 0; g < groups; g++) {
    const float* from[16];
    for (int i = 0; i < 16; i++) from[i] = g * 16 + i < a.tokens ? project_row(a, g * 16 + i) : nullptr;
    pack_columns(from, a.kv_lora, 1.0f, x + g * lora * 16);
  }
  const bool direct = a.kv_b.decode == bf16_decode && a.kv_lora % 32 == 0;
  for (int64_t r = 0; r < a.v_dim; r += 16) {
    const int64_t n = a.v_dim - r < 16 ? a.v_dim - r : 16;
    const uint16_t* w = strip;
    if (direct && n == 16) {
      w = reinterpret_cast<const uint16_t*>(a.kv_b.weight->data) + (first_row + r) * a.kv_lora;
    } else {
      for (int64_t i = 0; i < n; i++) weight_row_bf16(a.kv_b, first_row + r + i, a.kv_lora, temp, strip + i * lora);
      std::memset(strip + n * lora, 0, static_cast<size_t>((16 - n) * lora) * 2);
    }
    for (int64_t g = 0; g < groups; g++) {
      const uint16_t* columns = x + g * lora * 16;
      DG_TILE_ZERO(0);
      for (int64_t k = 0; k < steps; k++) {
        DG_TILE_LOAD(4, w + k * 32, lora * 2);
        DG_TILE_LOAD(5, columns + k * 512, 64);
        DG_TILE_DOT_BF16(0, 4, 5);
      }
      DG_TILE_STORE(0, product, 64);
      __m512i rows[16];
      for (int i = 0; i < 16; i++) rows[i] = _mm512_load_si512(product + i * 16);
      transpose16(rows);
      for (int i = 0; i < 16 && g * 16 + i < a.tokens; i++)
        _mm512_mask_storeu_epi32(project_out(a, g * 16 + i) + r, first_lanes(n), rows[i]);
    }
  }
}

// In portions of tokens whose operands fit the scratch.
template <class F>
inline void project_portions(const MlaProjectTask& a, F some) {
  TileScope tiles;
  for (int64_t t = 0; t < a.tokens; t += kMlaTokens) {
    MlaProjectTask part = a;
    if (a.x_rows) part.x_rows += t;
    else part.x += t * a.x_stride;
    if (a.out_rows) part.out_rows += t;
    else part.out += t * a.out_stride;
    part.tokens = a.tokens - t < kMlaTokens ? a.tokens - t : kMlaTokens;
    some(part);
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
