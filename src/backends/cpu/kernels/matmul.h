// Products with a weight of any format: a block of 8 rows is decoded 512 elements at a time into an L1 buffer and used
// for every token. Each (row, token) pair owns 16 accumulator lanes that take k in order, in every tile shape below, so a
// result depends on its own row of x and row of w alone.
//
// Per block and token: 8 x 512 multiply-adds on 16 KiB of decoded weight (L1) and 2 KiB of x (L2); decoding costs about
// as much as one or two tokens.
#pragma once
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/vec.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int kRows = static_cast<int>(kMatmulRows);
constexpr int kRowTile = kManyRegisters ? 8 : 4;  // R * T accumulators stay in registers
constexpr int kTokenTile = kManyRegisters || kLanes == 8 ? 3 : 2;

// acc[t][r] += w[r] * x[t] over `steps` groups of 16 elements.
template <int R, int T>
inline void dot_tile(const float* w, const float* const* x, int64_t offset, int64_t steps, float* acc) {
  for (int part = 0; part < kParts; part++) {
    vf sum[R][T];
    const float* xs[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) xs[t] = x[t] + offset + part * kLanes;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) sum[r][t] = load(acc + (t * kRows + r) * 16 + part * kLanes);
    const float* ws = w + part * kLanes;
    for (int64_t s = 0; s < steps * 16; s += 16) {
      vf xv[T];
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) xv[t] = load(xs[t] + s);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        vf wv = load(ws + r * kMatmulDepth + s);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) sum[r][t] += wv * xv[t];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) store(acc + (t * kRows + r) * 16 + part * kLanes, sum[r][t]);
  }
}

template <int T>
void dot_rows_tile(int rows, const float* w, const float* const* x, int64_t offset, int64_t steps, float* acc) {
  int r = 0;
  for (; r + kRowTile <= rows; r += kRowTile) dot_tile<kRowTile, T>(w + r * kMatmulDepth, x, offset, steps, acc + r * 16);
  for (; r < rows; r++) dot_tile<1, T>(w + r * kMatmulDepth, x, offset, steps, acc + r * 16);
}

void dot_all_tokens(int rows, const float* w, const float* const* x, int64_t tokens, int64_t offset, int64_t steps, float* acc) {
  int64_t t = 0;
  for (; t + kTokenTile <= tokens; t += kTokenTile) dot_rows_tile<kTokenTile>(rows, w, x + t, offset, steps, acc + t * kRows * 16);
  if (tokens - t == 2) dot_rows_tile<2>(rows, w, x + t, offset, steps, acc + t * kRows * 16);
  if (tokens - t == 1) dot_rows_tile<1>(rows, w, x + t, offset, steps, acc + t * kRows * 16);
}

// Scratch of dot_rows for one block of tokens.
struct DotScratch {
  float* decoded;      // (kMatmulRows, kMatmulDepth)
  float* tails;        // (tokens, 16): the last in % 16 elements of x, zeros behind
  const float** x;     // (tokens)
  const float** tail;  // (tokens)
};

void set_tokens(const DotScratch& s, int64_t tokens, int64_t in) {
  const int64_t rest = in % 16;
  if (rest == 0) return;
  for (int64_t t = 0; t < tokens; t++) {
    s.tail[t] = s.tails + t * 16;
    for (int i = 0; i < 16; i++) s.tails[t * 16 + i] = i < rest ? s.x[t][in - rest + i] : 0.0f;
  }
}

// acc[t][r][lane] = partial sums of w[row + r] . x[t].
void dot_rows(const Matrix& m, int64_t row, int rows, const DotScratch& s, int64_t tokens, float* acc) {
  std::memset(acc, 0, static_cast<size_t>(tokens * kRows * 16) * sizeof(float));
  const int64_t in = m.weight->in;
  for (int64_t k = 0; k < in; k += kMatmulDepth) {
    const int64_t n = in - k < kMatmulDepth ? in - k : kMatmulDepth;
    for (int r = 0; r < rows; r++) {
      float* to = s.decoded + r * kMatmulDepth;
      m.decode(*m.weight, row + r, k, n, to);
      for (int64_t i = n; i % 16 != 0; i++) to[i] = 0.0f;
    }
    dot_all_tokens(rows, s.decoded, s.x, tokens, k, n / 16, acc);
    if (n % 16 != 0) dot_all_tokens(rows, s.decoded + n / 16 * 16, s.tail, tokens, 0, 1, acc);
  }
}

void matmul(const MatmulArgs& a, int64_t begin, int64_t end) {
  const int64_t in = a.w.weight->in, most = matmul_token_block(in);
  const int64_t blocks = (a.tokens + most - 1) / most;
  if (blocks == 0) return;
  const int64_t block = (a.tokens + blocks - 1) / blocks;  // equal shares: a last block of one token would cost a whole decode
  DotScratch s;
  s.decoded = a.scratch;
  s.tails = s.decoded + kMatmulRows * kMatmulDepth;
  float* acc = s.tails + block * 16;
  float* gate_acc = acc + block * kRows * 16;
  // Two pointers per token behind the accumulators; the scratch size counts four floats for them.
  s.x = reinterpret_cast<const float**>(a.gate.weight ? gate_acc + block * kRows * 16 : gate_acc);
  s.tail = s.x + block;
  for (int64_t t0 = 0; t0 < a.tokens; t0 += block) {
    const int64_t tokens = a.tokens - t0 < block ? a.tokens - t0 : block;
    for (int64_t t = 0; t < tokens; t++) s.x[t] = a.x + (a.x_rows ? a.x_rows[t0 + t] : t0 + t) * a.x_stride;
    set_tokens(s, tokens, in);
    for (int64_t row = begin; row < end; row += kRows) {
      const int rows = static_cast<int>(end - row < kRows ? end - row : kRows);
      dot_rows(a.w, a.first_row + row, rows, s, tokens, acc);
      if (a.gate.weight) dot_rows(a.gate, a.first_row + row, rows, s, tokens, gate_acc);
      for (int64_t t = 0; t < tokens; t++) {
        float sums[16] = {}, gates[16] = {};
        float* out = a.out + (a.out_rows ? a.out_rows[t0 + t] : t0 + t) * a.out_stride + row;
        for (int r = 0; r < rows; r++) sums[r] = hsum16(acc + (t * kRows + r) * 16);
        if (a.gate.weight) {
          for (int r = 0; r < rows; r++) gates[r] = hsum16(gate_acc + (t * kRows + r) * 16);
          for (int i = 0; i < kRows; i += kLanes < kRows ? kLanes : kRows) store(sums + i, silu_vector(load(gates + i)) * load(sums + i));
        }
        if (a.bias)
          for (int r = 0; r < rows; r++) sums[r] += a.bias[row + r];
        for (int r = 0; r < rows; r++) out[r] = sums[r];
      }
    }
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
