// The CPU kernels, compiled once per instruction set with DG_ISA_NAMESPACE (isa_avx2), DG_ISA_TABLE (kernels_avx2) and
// DG_ISA_NAME ("avx2"); isa.cmake lists them. Nothing here may have external linkage except the table.
#include "backends/cpu/kernels/kernels.h"

#include "backends/cpu/kernels/decode.h"
#include "backends/cpu/kernels/flash.h"
#include "backends/cpu/kernels/matmul.h"
#include "backends/cpu/kernels/rows.h"

namespace dg {
namespace DG_ISA_NAMESPACE {
namespace {

void attention(const AttentionTask& a) {
  const int64_t heads = a.head_end - a.head_begin, pairs = (a.row_end - a.row_begin) * heads;
  float* scratch = a.scratch;
  FlashRows f = flash_begin(scratch, pairs);
  float* scores = scratch;
  float* kt = scores + 4 * kTile;
  float* v = kt + kTile * a.k_width;
  float* temp = v + kTile * a.v_width;
  int64_t i = 0;
  for (int64_t row = a.row_begin; row < a.row_end; row++)
    for (int64_t h = a.head_begin; h < a.head_end; h++, i++)
      flash_row(f, i, a.q + row * a.q_row_stride + h * a.q_head_stride, a.out + row * a.out_row_stride + h * a.out_head_stride, a.v_width,
                a.visible + row);
  const int64_t last = a.visible + a.row_end - 1;
  for (int64_t base = 0; base < last; base += kTile) {
    const int64_t count = last - base < kTile ? last - base : kTile;
    load_tile_transposed(a.k, base, count, a.k_width, kt, temp);
    load_tile(a.v, base, count, a.v_width, v);
    flash_tile(f, 0, kt, a.k_width, v, a.v_width, a.v_width, base, a.scale, scores);
  }
  flash_end(f, a.v_width);
}

void mla_prefill(const MlaPrefillTask& a) {
  float* scratch = a.scratch;
  FlashRows f = flash_begin(scratch, a.rows);
  const int64_t width = a.kv_lora + a.rope, k_width = a.nope + a.rope;
  float* scores = scratch;
  float* kt = scores + 4 * kTile;
  float* v = kt + kTile * k_width;
  float* latent = v + kTile * a.v_dim;
  DotScratch s;
  s.decoded = latent + kTile * width;
  s.tails = s.decoded + kMatmulRows * kMatmulDepth;
  float* acc = s.tails + kTile * 16;
  s.x = reinterpret_cast<const float**>(acc + kTile * kRows * 16);
  s.tail = s.x + kTile;
  for (int64_t i = 0; i < a.rows; i++) flash_row(f, i, a.q + i * a.q_row_stride, a.out + i * a.out_row_stride, a.v_dim, a.visible + i);

  const int64_t last = a.visible + a.rows - 1, first_weight_row = a.head * (a.nope + a.v_dim);
  for (int64_t base = 0; base < last; base += kTile) {
    const int64_t count = last - base < kTile ? last - base : kTile;
    load_tile(a.cache, base, count, width, latent);
    for (int64_t j = 0; j < count; j++) s.x[j] = latent + j * width;
    set_tokens(s, count, a.kv_lora);
    for (int64_t row = 0; row < a.nope + a.v_dim;) {
      // A block of weight rows is all of k or all of v.
      const int64_t stop = row < a.nope ? a.nope : a.nope + a.v_dim;
      const int rows = static_cast<int>(stop - row < kRows ? stop - row : kRows);
      dot_rows(a.kv_b, first_weight_row + row, rows, s, count, acc);
      for (int64_t j = 0; j < count; j++)
        for (int r = 0; r < rows; r++) {
          const float sum = hsum16(acc + (j * kRows + r) * 16);
          if (row < a.nope) kt[(row + r) * kTile + j] = sum;
          else v[j * a.v_dim + row - a.nope + r] = sum;
        }
      row += rows;
    }
    transpose_tile(latent + a.kv_lora, width, count, a.rope, kt + a.nope * kTile);
    const int64_t first = base < a.visible ? 0 : base - a.visible + 1;  // earlier rows end before this tile
    flash_tile(f, first / 4 * 4, kt, k_width, v, a.v_dim, a.v_dim, base, a.scale, scores);
  }
  flash_end(f, a.v_dim);
}

void mla_decode(const MlaDecodeTask& a) {
  const int64_t width = a.kv_lora + a.rope;
  float* scratch = a.scratch;
  FlashRows f = flash_begin(scratch, a.pair_end - a.pair_begin);
  float* scores = scratch;
  float* kt = scores + 4 * kTile;
  float* latent = kt + kTile * width;
  for (int64_t p = a.pair_begin; p < a.pair_end; p++)
    flash_row(f, p - a.pair_begin, a.q + p * width, a.out + p * a.kv_lora, a.kv_lora, a.visible + p / a.heads);
  const int64_t last = a.visible + (a.pair_end - 1) / a.heads;
  for (int64_t base = 0; base < last; base += kTile) {
    const int64_t count = last - base < kTile ? last - base : kTile;
    load_tile(a.cache, base, count, width, latent);
    transpose_tile(latent, width, count, width, kt);
    flash_tile(f, 0, kt, width, latent, width, a.kv_lora, base, a.scale, scores);
  }
  flash_end(f, a.kv_lora);
}

template <int N>
struct Size {
  static constexpr int value = N;
};

void mla_absorb(const MlaAbsorbTask& a) {
  const int64_t row = a.head * (a.nope + a.v_dim);
  for (int64_t d = 0; d < a.nope; d++) a.kv_b.decode(*a.kv_b.weight, row + d, 0, a.kv_lora, a.scratch + d * a.kv_lora);
  auto group = [&](int64_t first, auto size) {
    constexpr int kSize = decltype(size)::value;
    const float* q[kSize];
    float* latent[kSize];
    for (int i = 0; i < kSize; i++) {
      q[i] = a.q + a.q_rows[first + i] * a.q_row_stride;
      latent[i] = a.latent + (first + i) * a.latent_stride;
      for (int64_t c = 0; c < a.rope; c++) latent[i][a.kv_lora + c] = q[i][a.nope + c];
    }
    gemm_rows<kSize>(q, a.nope, a.scratch, a.kv_lora, a.kv_lora, latent, false);
  };
  int64_t t = 0;
  for (; t + 4 <= a.tokens; t += 4) group(t, Size<4>{});
  for (; t < a.tokens; t++) group(t, Size<1>{});
}

}  // namespace
}  // namespace DG_ISA_NAMESPACE

extern const KernelTable DG_ISA_TABLE;
const KernelTable DG_ISA_TABLE = {
    .isa = DG_ISA_NAME,
    .decoders = DG_ISA_NAMESPACE::kDecoders,
    .decoder_count = sizeof(DG_ISA_NAMESPACE::kDecoders) / sizeof(Decoder),
    .matmul = DG_ISA_NAMESPACE::matmul,
    .attention = DG_ISA_NAMESPACE::attention,
    .mla_prefill = DG_ISA_NAMESPACE::mla_prefill,
    .mla_decode = DG_ISA_NAMESPACE::mla_decode,
    .mla_absorb = DG_ISA_NAMESPACE::mla_absorb,
    .rms_norm = DG_ISA_NAMESPACE::rms_norm,
    .add = DG_ISA_NAMESPACE::add,
    .add_scaled = DG_ISA_NAMESPACE::add_scaled,
    .act_mul = DG_ISA_NAMESPACE::act_mul,
    .rope = DG_ISA_NAMESPACE::rope,
    .convert = DG_ISA_NAMESPACE::convert,
};

}  // namespace dg
