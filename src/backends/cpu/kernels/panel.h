// Products with prepared weights (quant/panel.h). Activations are packed once into tiles of 16 tokens; then, for up to 16
// panels (256 outputs) and a block of k at a time, the codes are unpacked if they need it and multiplied with every tile:
//
//   C (16 x 16) = A (16 tokens x k) B (k x 16 outputs)     dot_integer / dot_float of the instruction set (panel_dot_*.h)
//   sum += C * activation scale * weight scale             here, in f32, block after block of k
//
// The order of operations for one output is the same whatever shares the tile with it, so a row of the result depends on its
// own row of x alone. Integer products are exact: all instruction sets agree on them bit for bit.
//
// Per block of 16 x 64 outputs and 512 of k: 524288 multiply-adds on 8 KiB of activations (L2) and 32 KiB of codes (L1).
#pragma once
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/vec.h"
#include "quant/convert.h"
#include "quant/panel.h"
#include "quant/panel_pack.h"

#if defined(__AVX512VNNI__)
#include "backends/cpu/kernels/panel_few_rows.h"
#endif
#if defined(__AMX_TILE__)
#include "backends/cpu/kernels/panel_dot_amx.h"
#elif defined(__AVX512VNNI__)
#include "backends/cpu/kernels/panel_dot_avx512.h"
#else
#include "backends/cpu/kernels/panel_dot_generic.h"
#endif

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int64_t kTileTokens = 16;
constexpr int kGroupPanels = 2;          // that stay in L1 (16 KiB of codes) while the tiles of activations pass by
constexpr int kUnpackedPanels = 4;       // at most, with one tile of tokens
constexpr int kMostPanels = 16;          // of one pass over k: their sums (512 KiB for 512 tokens) and the activations of a
                                         // block of k (256 KiB) stay in L2, and the activations come from L3 once per pass
constexpr int64_t kProductTokens = 512;  // tokens that share one unpacking
constexpr int64_t kFloatBlock = 256;     // of k per pass, bf16

// Most tokens of a product that reads the codes where they lie in the panels. Families with matrix products of bf16 zip these panels,
// which pays only with several tokens.
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
template <PanelKind kKind>
constexpr int64_t kTokensInPlace = kKind == PanelKind::kBf16 ? 4 : 0;
#else
template <PanelKind kKind>
constexpr int64_t kTokensInPlace = kNeedsUnpack<kKind> ? 0 : INT64_MAX;
#endif

inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

// Columns of k per pass, and bytes of one tile of activations per pass.
constexpr int64_t pass_columns(PanelKind kind) {
  return kind == PanelKind::kBf16 ? kFloatBlock : kind == PanelKind::kFp8 ? kFp8PanelBlock : kPanelBlock;
}
constexpr int64_t activation_tile_bytes(PanelKind kind, int64_t columns) {
  return kTileTokens * columns * (is_integer(kind) ? 1 : static_cast<int64_t>(sizeof(PanelFloat)));
}

// A tile of 16 tokens: codes of all of k, then per block of 512 f32 scale[16] and int32 sum[16] (128 times the sum of the
// codes: what products with unsigned codes have too much).
int64_t activation_bytes(PanelKind kind, int64_t in) {
  const int64_t padded = panel_padded(kind, in);
  int64_t bytes = activation_tile_bytes(kind, padded);
  if (is_integer(kind)) bytes += (padded + kPanelBlock - 1) / kPanelBlock * 128;
  return (bytes + 63) / 64 * 64;
}

// Largest magnitude, by bits: a NaN counts as larger than everything and stays.
inline float largest_magnitude(const float* x, int64_t n) {
  vi most = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const vi bits = reinterpret_cast<vi>(load(x + i)) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  if (i < n) {
    const vi bits = reinterpret_cast<vi>(load_first(x + i, n - i)) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  int32_t result = 0;
  for (int l = 0; l < kLanes; l++) result = most[l] > result ? most[l] : result;
  float f;
  std::memcpy(&f, &result, 4);
  return f;
}

// codes[i] = round(x[i] * inverse), to nearest even; returns their sum.
inline int32_t quantise(const float* x, int64_t n, float inverse, int8_t* codes) {
  typedef int8_t v8 __attribute__((vector_size(kLanes)));
  vi sum = {};
  int64_t i = 0;
  auto step = [&](vf v, int8_t* to) {
    const vi q = reinterpret_cast<vi>(v * inverse + 12582912.0f) - 0x4b400000;  // 1.5 * 2^23: the integer stands in the low bits
    sum += q;
    const v8 narrow = __builtin_convertvector(q, v8);
    std::memcpy(to, &narrow, sizeof narrow);
  };
  for (; i + kLanes <= n; i += kLanes) step(load(x + i), codes + i);
  if (i < n) {
    int8_t tail[kLanes];
    step(load_first(x + i, n - i), tail);
    for (int64_t l = 0; l < n - i; l++) codes[i + l] = tail[l];
  }
  int32_t total = 0;
  for (int l = 0; l < kLanes; l++) total += sum[l];
  return total;
}

void pack_row(const PackRow& a) {
  const int64_t padded = panel_padded(a.kind, a.in);
  auto* tile = static_cast<std::byte*>(a.tile);
  const float* x = a.x;
  if (a.columns) {
    for (int64_t k = 0; k < a.in; k++) a.scratch[k] = x[a.columns[k]];
    x = a.scratch;
  }
  if (!is_integer(a.kind)) return pack_float_row(x, a.in, padded, a.row, tile);
  auto* scales = reinterpret_cast<float*>(tile + activation_tile_bytes(a.kind, padded));
  for (int64_t k = a.in / 64 * 64; k < padded; k += 64) std::memset(tile + k / 64 * 1024 + a.row * 64, 0, 64);
  for (int64_t k = 0; k < a.in; k += kPanelBlock) {
    const int64_t n = min64(kPanelBlock, a.in - k), block = k / kPanelBlock;
    const float largest = largest_magnitude(x + k, n);
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int32_t sum = 0;
    int8_t* codes = reinterpret_cast<int8_t*>(tile) + k / 64 * 1024 + a.row * 64;
    for (int64_t i = 0; i < n; i += 64, codes += 1024) sum += quantise(x + k + i, min64(64, n - i), inverse, codes);
    scales[block * 32 + a.row] = largest / 127.0f;
    reinterpret_cast<int32_t*>(scales)[block * 32 + 16 + a.row] = 128 * sum;
  }
}

inline void store_streamed(float* to, vf value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, reinterpret_cast<__m512>(value));
#else
  store(to, value);
#endif
}

// Where the results of some panels and tokens of a product go.
struct ProductRows {
  const PanelProduct* a;
  int64_t first_panel, token0;
  bool gated, streamed;

  ProductRows(const PanelProduct& product, int64_t panel, int64_t token, int64_t tokens)
      : a(&product), first_panel(panel), token0(token), gated(product.gate != nullptr) {
    // Large results would push the sums and activations out of L2, and are read next long after: they go to memory directly.
    streamed = tokens >= 128 && product.out_stride % 16 == 0 && reinterpret_cast<uintptr_t>(product.out) % 64 == 0;
  }
  float* row(int64_t token) const {
    const int64_t t = token0 + token;
    return a->out + (a->out_rows ? a->out_rows[t] : t) * a->out_stride;
  }
  // Lanes [part * kLanes, ...) of output panel first_panel + `panel`.
  void store(float* out_row, int64_t panel, int part, vf value) const {
    const int64_t column = (first_panel + panel) * kPanelRows + part * kLanes, left = a->rows - column;
    if (left <= 0) return;
    float* const to = out_row + column;
    if (a->bias) value += left >= kLanes ? load(a->bias + column) : load_first(a->bias + column, left);
    if (left >= kLanes && streamed) store_streamed(to, value);
    else if (left >= kLanes) dg::DG_ISA_NAMESPACE::store(to, value);
    else store_first(to, value, left);
  }
};

// *sum + a * b, or 0 + a * b. Written so that the compiler fuses it into one rounding wherever it is inlined: a product that the two
// cases share would be rounded before the addition in some copies and not in others, and rows would depend on the batch.
inline vf add_product(vf a, vf b, bool first, const float* sum) {
  const vf before = first ? vf{} : load(sum);
  return before + a * b;
}

// Finished integer tiles on their way into the sums: sums (+)= (c - correction) * activation scale * weight scale. The families
// that overlap it with the next product (AMX) take it in slices; slices are of whole rows, in order.
struct PendingTiles {
  const int32_t* c = nullptr;  // tile (i, j) at c + (i * c_stride + j) * 256
  const float* activation[2];  // scale[16], correction[16] of each tile of tokens
  const float* weight_scale[4];
  float* sums;  // tile (i, j) at sums + (i * sum_stride + j) * 256
  int64_t c_stride, sum_stride;
  int m, n;
  int64_t rows;  // of all m tiles
  bool first;
  const ProductRows* out = nullptr;  // last block of k: the results go there, not to the sums
  int64_t panel = 0, token = 0;      // of the first tile, for `out`: of the list of panels, and of the chunk of tokens
  int64_t next = 0;                  // row of (tile i, panel j): (i * n + j) * 16 + row; for `out` of tile i, n times as many

  void add_rows(int64_t i, int64_t j, int64_t begin, int64_t end) const {
    const float* scales = activation[i];
    const auto* corrections = reinterpret_cast<const int32_t*>(scales + 16);
    const int32_t* from = c + (i * c_stride + j) * 256;
    float* to = sums + (i * sum_stride + j) * 256;
    for (int part = 0; part < kParts; part++) {
      const vf ws = load(weight_scale[j] + part * kLanes);
      for (int64_t t = begin; t < end; t++) {
        vi raw = reinterpret_cast<vi>(load(reinterpret_cast<const float*>(from) + t * 16 + part * kLanes));
        if constexpr (kUnsignedCodes) raw -= corrections[t];
        const vf value = __builtin_convertvector(raw, vf) * scales[t];
        float* sum = to + t * 16 + part * kLanes;
        store(sum, add_product(value, ws, first, sum));
      }
    }
  }
  // The n panels of rows [begin, end) of tile i: gate and up stand side by side.
  void write_rows(int64_t i, int64_t begin, int64_t end) const {
    const float* scales = activation[i];
    const auto* corrections = reinterpret_cast<const int32_t*>(scales + 16);
    for (int64_t t = begin; t < end; t++) {
      float* const to = out->row(token + i * 16 + t);
      for (int part = 0; part < kParts; part++) {
        auto sum_of = [&](int j) {
          vi raw = reinterpret_cast<vi>(load(reinterpret_cast<const float*>(c + (i * c_stride + j) * 256) + t * 16 + part * kLanes));
          if constexpr (kUnsignedCodes) raw -= corrections[t];
          const vf value = __builtin_convertvector(raw, vf) * scales[t], ws = load(weight_scale[j] + part * kLanes);
          return add_product(value, ws, first, sums + (i * sum_stride + j) * 256 + t * 16 + part * kLanes);
        };
        if (out->gated)
          for (int j = 0; j < n; j += 2) out->store(to, (panel + j) / 2, part, silu_vector(sum_of(j)) * sum_of(j + 1));
        else
          for (int j = 0; j < n; j++) out->store(to, panel + j, part, sum_of(j));
      }
    }
  }
  // Up to `count` rows, within one tile.
  void step(int64_t count) {
    if (next >= static_cast<int64_t>(m) * n * 16) return;
    if (out) {
      const int64_t i = next / (n * 16), begin = next / n % 16, end = min64(begin + (count + n - 1) / n, 16);
      const int64_t valid = min64(end, rows - i * 16);
      if (begin < valid) write_rows(i, begin, valid);
      next += (end - begin) * n;
      return;
    }
    const int64_t tile = next / 16, i = tile / n, begin = next % 16, end = min64(begin + count, 16), valid = min64(16, rows - i * 16);
    if (begin < valid) add_rows(i, tile % n, begin, min64(end, valid));
    next += end - begin;
  }
  void finish() {
    while (c && next < static_cast<int64_t>(m) * n * 16) step(16);
    c = nullptr;
  }
};

inline void add_scaled_tile(const float* c, const float* weight_scale, int64_t rows, bool first, float* sums) {
  for (int part = 0; part < kParts; part++) {
    const vf ws = load(weight_scale + part * kLanes);
    for (int64_t t = 0; t < rows; t++) {
      float* sum = sums + t * 16 + part * kLanes;
      store(sum, add_product(load(c + t * 16 + part * kLanes), ws, first, sum));
    }
  }
}

// Panels of one call of multiply_blocks, at the current block of k; with a gate the list alternates gate, up.
struct PanelList {
  const std::byte* data[kMostPanels];
  int count;
};

constexpr int64_t kExactRowsSpace = (kProductTokens / kTileTokens - 1) * kMostPanels * 1024;  // sums that a single tile leaves free

struct ProductScratch {
  std::byte* unpacked;  // kUnpackedPanels x 8 KiB of codes ready for the dot
  int32_t* c;           // 2 x 4 tiles
  float* sums;          // (tiles of tokens, kMostPanels, 256)
};

#if defined(__AMX_TILE__)
// One tile of tokens and 4-bit codes: while the vector units unpack a chunk of 128 columns of a panel, the tile unit multiplies with the
// chunk before, so 16 KiB of L1 do. The same sums as multiply_blocks forms. Three or four panels.
template <PanelKind kKind, int N>
void multiply_one_tile(const PanelList& panels, int first_panel, int64_t k, int64_t width, const int8_t* table, const std::byte* x,
                       const float* activation, int64_t rows, const ProductScratch& s) {
  const std::byte* from[N];
  for (int p = 0; p < N; p++) from[p] = panels.data[first_panel + p];
  one_tile_zero<N>();
  for (int64_t chunk = 0; chunk <= width / kInt4Chunk; chunk++) {
    std::byte *const to = s.unpacked + (chunk & 1) * 8192, *const ready = s.unpacked + (~chunk & 1) * 8192;
    if (chunk > 0) load_chunk_rows(x + (chunk - 1) * 2048);
#pragma GCC unroll 4
    for (int p = 0; p < N; p++) {
      if (chunk < width / kInt4Chunk) {
        unpack_codes<kKind>(from[p], kInt4Chunk, table, to + p * 2048);
        from[p] += panel_code_bytes(kKind, kInt4Chunk);
      }
      if (chunk > 0) multiply_chunk(p, ready + p * 2048);
    }
  }
  one_tile_store<N>(reinterpret_cast<float*>(s.c));
  PendingTiles done{.c = s.c,
                    .sums = s.sums + first_panel * 256,
                    .c_stride = N,
                    .sum_stride = kMostPanels,
                    .m = 1,
                    .n = N,
                    .rows = rows,
                    .first = k == 0};
  done.activation[0] = activation;
  for (int p = 0; p < N; p++) done.weight_scale[p] = reinterpret_cast<const float*>(from[p]);
  done.finish();
}
#endif

// The packed codes that the next block of k will need, brought to L2 while this block is computed: without it the first tiles of
// every block wait for DRAM. (Activations come from L2 and L3 in time by themselves; prefetching them costs 10 %.)
inline void prefetch_lines(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

// Returns whether the results are in `out`; else they are in the sums.
template <PanelKind kKind>
bool multiply_blocks(const PanelProduct& a, PanelList panels, const std::byte* x, int64_t x_bytes, int64_t tokens, const ProductScratch& s,
                     const ProductRows& out) {
  const int64_t padded = panel_padded(kKind, a.in), columns = pass_columns(kKind), tiles = (tokens + kTileTokens - 1) / kTileTokens;
  const int64_t scales_at = activation_tile_bytes(kKind, padded);
#if defined(__AVX512VNNI__)
  if constexpr (has_nibbles(kKind)) {
    const auto* activation = reinterpret_cast<const float*>(x + scales_at);
    std::byte* const rows = reinterpret_cast<std::byte*>(s.sums + kMostPanels * 256);  // only one tile has sums
    if (tokens <= kFewRows && !a.batch_invariant && exact_rows_bytes(padded, tokens) <= kExactRowsSpace) {
      const ExactRows ordered = order_exact_rows(x, padded, tokens, rows);
      exact_rows_panels<kKind>(panels.data, panels.count, a.table, ordered, activation, tokens, s.sums);
      return false;
    }
    if (tokens <= kFewRows) {
      for (int p = 0; p < panels.count; p++) few_rows_panel<kKind>(panels.data[p], a.in, a.table, x, activation, tokens, s.sums + p * 256);
      return false;
    }
  }
#endif
  // One tile of tokens uses what was unpacked once: little at a time, so that it is still in L1 with the packed codes.
  const int at_a_time = tiles == 1 ? kPanelsOfOneTile : kPanelsAtATime, group = tiles == 1 ? kPanelsOfOneTile : kGroupPanels;
  // Many tokens: the sums of the last block need not go through L2 once more.
  const bool direct = is_integer(kKind) && tiles > 1 && (!out.gated || kPanelsAtATime % 2 == 0);
  [[maybe_unused]] const bool in_place = tokens <= kTokensInPlace<kKind>;
  PendingTiles pending;
  int buffer = 0;
  for (int64_t k = 0; k < padded; k += columns) {
    const int64_t width = min64(columns, padded - k), code_bytes = panel_code_bytes(kKind, width);
    for (int g = 0; g < panels.count; g += group) {
      const int group_count = static_cast<int>(min64(group, panels.count - g));
#if defined(__AMX_TILE__)
      if constexpr (has_nibbles(kKind)) {
        if (tiles == 1 && group_count >= 3) {
          pending.finish();  // of a group of one or two panels before: its tiles are about to be overwritten
          const std::byte* at = x + activation_tile_bytes(kKind, k);
          const auto* activation = reinterpret_cast<const float*>(x + scales_at) + k / kPanelBlock * 32;
          if (group_count == 4) multiply_one_tile<kKind, 4>(panels, g, k, width, a.table, at, activation, tokens, s);
          else multiply_one_tile<kKind, 3>(panels, g, k, width, a.table, at, activation, tokens, s);
          continue;
        }
      }
#endif
      const std::byte* b[kUnpackedPanels];
      for (int p = 0; p < group_count; p++) {
        b[p] = panels.data[g + p];
        if constexpr (kNeedsUnpack<kKind>) {
          if (in_place) continue;
          std::byte* to = s.unpacked + p * 8192;
          unpack_codes<kKind>(panels.data[g + p], width, a.table, to);
          b[p] = to;
        }
      }
      for (int64_t tile = 0; tile < tiles; tile += kTilesAtATime) {
        const int m = static_cast<int>(min64(kTilesAtATime, tiles - tile));
        const int64_t rows = min64(kTileTokens * m, tokens - tile * kTileTokens);
        const std::byte* at = x + tile * x_bytes + activation_tile_bytes(kKind, k);
        if (tiles > 2) {
          // The packed codes of this group's next block, a share with every tile.
          const int64_t share = (code_bytes * kTilesAtATime / tiles + 63) / 64 * 64;
          if (k + columns < padded)
            for (int p = 0; p < group_count; p++)
              prefetch_lines(panels.data[g + p] + code_bytes + 64 + tile / kTilesAtATime * share, share);
        }
        for (int p = 0; p < group_count; p += at_a_time) {
          const int n = static_cast<int>(min64(at_a_time, group_count - p));
          float* sums = s.sums + (tile * kMostPanels + g + p) * 256;
          if constexpr (kKind == PanelKind::kBf16) {
            const auto dot = in_place ? dot_float<(kTokensInPlace<kKind> > 0)> : dot_float<!kNeedsUnpack<kKind>>;
            dot(at, x_bytes, m, rows, b + p, n, width, k > 0, sums, kMostPanels * 256);
          } else if constexpr (kKind == PanelKind::kFp8) {
            auto* c = reinterpret_cast<float*>(s.c);
            dot_float<!kNeedsUnpack<kKind>>(at, x_bytes, m, rows, b + p, n, width, false, c, at_a_time * 256);
            for (int i = 0; i < m; i++)
              for (int j = 0; j < n; j++)
                add_scaled_tile(c + (i * at_a_time + j) * 256, reinterpret_cast<const float*>(panels.data[g + p + j] + code_bytes),
                                min64(kTileTokens, rows - i * kTileTokens), k == 0, sums + (i * kMostPanels + j) * 256);
          } else {
            int32_t* c = s.c + buffer * 1024;
            buffer ^= 1;
            dot_integer<!kNeedsUnpack<kKind>>(at, x_bytes, m, rows, b + p, n, width, c, at_a_time * 256, pending);
            pending.finish();
            pending = {
                .c = c, .sums = sums, .c_stride = at_a_time, .sum_stride = kMostPanels, .m = m, .n = n, .rows = rows, .first = k == 0};
            if (direct && k + columns >= padded) pending.out = &out, pending.panel = g + p, pending.token = tile * kTileTokens;
            for (int i = 0; i < m; i++)
              pending.activation[i] = reinterpret_cast<const float*>(x + (tile + i) * x_bytes + scales_at) + k / kPanelBlock * 32;
            for (int j = 0; j < n; j++) pending.weight_scale[j] = reinterpret_cast<const float*>(panels.data[g + p + j] + code_bytes);
          }
        }
      }
    }
    for (int p = 0; p < panels.count; p++) panels.data[p] += code_bytes + (kKind == PanelKind::kBf16 ? 0 : 64);
  }
  pending.finish();
  return direct;
}

// Writes the finished sums of `count` output panels.
void finish_product(const ProductRows& out, int count, int64_t tokens, const float* all_sums) {
  for (int64_t t = 0; t < tokens; t++) {
    float* const row = out.row(t);
    const float* sums = all_sums + (t / kTileTokens * kMostPanels) * 256 + t % kTileTokens * 16;
    for (int p = 0; p < count; p++)
      for (int part = 0; part < kParts; part++) {
        const int lane = part * kLanes;
        out.store(
            row, p, part,
            out.gated ? silu_vector(load(sums + 2 * p * 256 + lane)) * load(sums + (2 * p + 1) * 256 + lane) : load(sums + p * 256 + lane));
      }
  }
}

template <PanelKind kKind>
void multiply_panels(const PanelProduct& a, int64_t begin, int64_t end) {
  const int64_t stride = panel_stride(kKind, a.in), x_bytes = activation_bytes(kKind, a.in);
  const int per_pass = a.gate ? kMostPanels / 2 : kMostPanels;
  ProductScratch s;
  s.unpacked = reinterpret_cast<std::byte*>(a.scratch);
  s.c = reinterpret_cast<int32_t*>(s.unpacked + kUnpackedPanels * 8192);
  s.sums = reinterpret_cast<float*>(s.c + 8 * 256);
  DotScope scope(min64(a.tokens, kTileTokens), has_nibbles(kKind));
  for (int64_t token0 = 0; token0 < a.tokens; token0 += kProductTokens) {
    const int64_t tokens = min64(kProductTokens, a.tokens - token0);
    for (int64_t first = begin; first < end; first += per_pass) {
      const int count = static_cast<int>(min64(per_pass, end - first));
      PanelList panels{};
      for (int p = 0; p < count; p++) {
        if (a.gate) panels.data[panels.count++] = a.gate + (first + p) * stride;
        panels.data[panels.count++] = a.w + (first + p) * stride;
      }
      const ProductRows out(a, first, token0, tokens);
      const std::byte* const x = static_cast<const std::byte*>(a.x) + token0 / kTileTokens * x_bytes;
      if (!multiply_blocks<kKind>(a, panels, x, x_bytes, tokens, s, out)) finish_product(out, count, tokens, s.sums);
    }
  }
#if defined(__AVX512F__)
  _mm_sfence();  // streamed stores are seen by the other threads
#endif
}

void panel_product(const PanelProduct& a, int64_t begin, int64_t end) {
  switch (a.kind) {
    case PanelKind::kBf16: return multiply_panels<PanelKind::kBf16>(a, begin, end);
    case PanelKind::kFp8: return multiply_panels<PanelKind::kFp8>(a, begin, end);
    case PanelKind::kInt8: return multiply_panels<PanelKind::kInt8>(a, begin, end);
    case PanelKind::kInt4: return multiply_panels<PanelKind::kInt4>(a, begin, end);
    case PanelKind::kInt4Offset: return multiply_panels<PanelKind::kInt4Offset>(a, begin, end);
    case PanelKind::kInt4Table: return multiply_panels<PanelKind::kInt4Table>(a, begin, end);
    case PanelKind::kNone: return;
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
