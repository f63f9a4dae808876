// Attention in f32 for every instruction set: what the families without bf16 tiles use, and all of them with an f32 or f16
// cache, where rounding to bf16 would lose what the user asked for.
#pragma once
#include "backends/cpu/kernels/flash.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

// Keys and values of a tile are loaded once for all heads of their group; MLA's values are the first columns of its keys.
void portable_attention(const AttentionTask& a) {
  const int64_t pairs = a.rows * a.group;
  float* scratch = a.scratch;
  FlashRows f = flash_begin(scratch, pairs * a.kv_heads);
  float* scores = scratch;
  float* kt = scores + 4 * kTile;
  float* v = kt + kTile * a.k_width;
  float* rows = v + kTile * a.v_width;
  int64_t i = 0;
  for (int64_t h = 0; h < a.kv_heads; h++)
    for (int64_t row = 0; row < a.rows; row++)
      for (int64_t g = h * a.group; g < (h + 1) * a.group; g++, i++)
        flash_row(f, i, a.q + row * a.q_row_stride + g * a.q_head_stride, a.out + row * a.out_row_stride + g * a.out_head_stride, a.v_width,
                  a.visible + row);
  const bool shared = a.k.data == a.v.data && a.k.column == a.v.column;
  for (int64_t base = a.begin; base < a.end; base += kTile) {
    const int64_t count = a.end - base < kTile ? a.end - base : kTile;
    for (int64_t h = 0; h < a.kv_heads; h++) {
      FlashRows head = {.q = f.q + h * pairs,
                        .out = f.out + h * pairs,
                        .max = f.max + h * pairs,
                        .sum = f.sum + h * pairs,
                        .visible = f.visible + h * pairs,
                        .n = pairs};
      if (shared) {
        load_tile(a.k, base, count, h * a.k_width, a.k_width, rows);
        transpose_tile(rows, a.k_width, count, a.k_width, kt);
        flash_tile(head, 0, kt, a.k_width, rows, a.k_width, a.v_width, base, a.scale, scores);
      } else {
        load_tile_transposed(a.k, base, count, h * a.k_width, a.k_width, kt, rows);
        load_tile(a.v, base, count, h * a.v_width, a.v_width, v);
        flash_tile(head, 0, kt, a.k_width, v, a.v_width, a.v_width, base, a.scale, scores);
      }
    }
  }
  flash_end(f, a.v_width, a.partial);
}

// out = sum of the parts, each times e^(its maximum - the largest), over the sum of weights treated likewise.
void attention_merge(const AttentionMerge& a) {
  float top = -__builtin_inff(), total = 0.0f;
  for (int64_t s = 0; s < a.splits; s++) {
    const float max = a.parts[s * a.split_stride + a.v_width];
    top = max > top ? max : top;
  }
  for (int64_t c = 0; c < a.v_width; c++) a.out[c] = 0.0f;
  for (int64_t s = 0; s < a.splits; s++) {
    const float* part = a.parts + s * a.split_stride;
    if (part[a.v_width] == -__builtin_inff()) continue;  // the row sees none of its positions
    const float weight = exp_vector(splat(part[a.v_width] - top))[0];
    total += part[a.v_width + 1] * weight;
    for_each_vector(a.v_width, a.out, [&](auto at) { return at(a.out) + at(part) * weight; });
  }
  const float factor = 1.0f / total;
  for_each_vector(a.v_width, a.out, [&](auto at) { return at(a.out) * factor + 0.0f; });
}

// W latent^T four rows of W at a time: to[r][j] = W[first_row + r] . latent row j; lt (kv_lora, 64) is the latent transposed.
void portable_project_tile(const Matrix& m, int64_t first_row, int64_t rows, int64_t kv_lora, const float* lt, float* weights, float* to) {
  for (int64_t r = 0; r < rows; r += 4) {
    const int64_t n = rows - r < 4 ? rows - r : 4;
    const float* w[4];
    float* out[4];
    for (int64_t i = 0; i < n; i++) {
      m.decode(*m.weight, first_row + r + i, 0, kv_lora, weights + i * kv_lora);
      w[i] = weights + i * kv_lora;
      out[i] = to + (r + i) * kTile;
    }
    if (n == 4) gemm_rows<4>(w, kv_lora, lt, kTile, kTile, out, false);
    else
      for (int64_t i = 0; i < n; i++) gemm_rows<1>(w + i, kv_lora, lt, kTile, kTile, out + i, false);
  }
}

// k and v of the head are made from the latent rows tile by tile and used for all rows of the task.
void portable_mla_prefill(const MlaPrefillTask& a) {
  float* scratch = a.scratch;
  FlashRows f = flash_begin(scratch, a.rows);
  const int64_t width = a.kv_lora + a.rope, k_width = a.nope + a.rope, first_row = a.head * (a.nope + a.v_dim);
  float* scores = scratch;
  float* kt = scores + 4 * kTile;
  float* v = kt + kTile * k_width;
  float* vt = v + kTile * a.v_dim;
  float* latent = vt + kTile * a.v_dim;
  float* lt = latent + kTile * width;
  float* weights = lt + kTile * a.kv_lora;
  for (int64_t i = 0; i < a.rows; i++) flash_row(f, i, a.q + i * a.q_row_stride, a.out + i * a.out_row_stride, a.v_dim, a.visible + i);
  const int64_t last = a.visible + a.rows - 1;
  for (int64_t base = 0; base < last; base += kTile) {
    const int64_t count = last - base < kTile ? last - base : kTile;
    load_tile(a.cache, base, count, 0, width, latent);
    std::memset(latent + count * width, 0, static_cast<size_t>((kTile - count) * width) * sizeof(float));
    transpose_tile(latent, width, kTile, a.kv_lora, lt);
    portable_project_tile(a.kv_b, first_row, a.nope, a.kv_lora, lt, weights, kt);
    portable_project_tile(a.kv_b, first_row + a.nope, a.v_dim, a.kv_lora, lt, weights, vt);
    transpose_tile(latent + a.kv_lora, width, count, a.rope, kt + a.nope * kTile);
    for (int64_t j = 0; j < count; j++)
      for (int64_t c = 0; c < a.v_dim; c++) v[j * a.v_dim + c] = vt[c * kTile + j];
    const int64_t first = base < a.visible ? 0 : base - a.visible + 1;  // earlier rows end before this tile
    flash_tile(f, first / 4 * 4, kt, k_width, v, a.v_dim, a.v_dim, base, a.scale, scores);
  }
  flash_end(f, a.v_dim, false);
}

inline const float* project_row(const MlaProjectTask& a, int64_t t) { return a.x + (a.x_rows ? a.x_rows[t] : t) * a.x_stride; }
inline float* project_out(const MlaProjectTask& a, int64_t t) { return a.out + (a.out_rows ? a.out_rows[t] : t) * a.out_stride; }

template <int N>
inline void absorb_rows(const MlaProjectTask& a, int64_t t, int64_t d, int64_t n) {
  const float* q[N];
  float* out[N];
  for (int i = 0; i < N; i++) q[i] = project_row(a, t + i) + d, out[i] = project_out(a, t + i);
  gemm_rows<N>(q, n, a.scratch, a.kv_lora, a.kv_lora, out, d > 0);
}

// 16 rows of Wk are decoded at a time, into L1, and used for all tokens.
void portable_mla_absorb(const MlaProjectTask& a) {
  const int64_t row = a.head * (a.nope + a.v_dim);
  for (int64_t d = 0; d < a.nope; d += 16) {
    const int64_t n = a.nope - d < 16 ? a.nope - d : 16;
    for (int64_t i = 0; i < n; i++) a.kv_b.decode(*a.kv_b.weight, row + d + i, 0, a.kv_lora, a.scratch + i * a.kv_lora);
    int64_t t = 0;
    for (; t + 4 <= a.tokens; t += 4) absorb_rows<4>(a, t, d, n);
    for (; t < a.tokens; t++) absorb_rows<1>(a, t, d, n);
  }
  for (int64_t t = 0; t < a.tokens; t++)
    std::memcpy(project_out(a, t) + a.kv_lora, project_row(a, t) + a.nope, static_cast<size_t>(a.rope) * 4);
}

// Four rows of Wv at a time, 16 lanes per sum.
void portable_mla_output(const MlaProjectTask& a) {
  constexpr int kOut = 4;
  const int64_t first_row = a.head * (a.nope + a.v_dim) + a.nope, padded = pad16(a.kv_lora);
  for (int64_t r = 0; r < a.v_dim; r += kOut) {
    const int n = static_cast<int>(a.v_dim - r < kOut ? a.v_dim - r : kOut);
    for (int i = 0; i < kOut; i++) {
      float* w = a.scratch + i * padded;
      if (i < n) a.kv_b.decode(*a.kv_b.weight, first_row + r + i, 0, a.kv_lora, w);
      for (int64_t c = i < n ? a.kv_lora : 0; c < padded; c++) w[c] = 0.0f;
    }
    for (int64_t t = 0; t < a.tokens; t++) {
      const float* x = project_row(a, t);
      vf sum[kOut][kParts] = {};
      auto step = [&](int64_t c, const float* values) {
        for (int p = 0; p < kParts; p++)
          for (int i = 0; i < kOut; i++) sum[i][p] += load(a.scratch + i * padded + c + p * kLanes) * load(values + p * kLanes);
      };
      int64_t c = 0;
      for (; c + 16 <= a.kv_lora; c += 16) step(c, x + c);
      if (c < a.kv_lora) {
        float tail[16] = {};
        for (int64_t i = c; i < a.kv_lora; i++) tail[i - c] = x[i];
        step(c, tail);
      }
      float* out = project_out(a, t) + r;
      for (int i = 0; i < n; i++) {
        float lanes[16];
        for (int p = 0; p < kParts; p++) store(lanes + p * kLanes, sum[i][p]);
        out[i] = hsum16(lanes);
      }
    }
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
