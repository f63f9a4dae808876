// Default bodies of the fused ops.
#include "device/backend.h"

namespace dg {

void Backend::prepare(const Weight&, int64_t, int64_t, std::byte*) const { CHECK(false) << name() << " keeps weights as published"; }

void Backend::linear_several(const LinearSeveral& op) {
  for (int i = 0; i < op.count; i++) {
    const LinearPart& part = op.parts[i];
    linear({.out = part.out, .x = op.x, .weight = part.weight, .bias = part.bias});
  }
}

void Backend::download_rows(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows) {
  if (stride == row_bytes) return download(to, from, row_bytes * static_cast<size_t>(rows));
  for (size_t r = 0; r < static_cast<size_t>(rows); r++)
    download(static_cast<std::byte*>(to) + r * stride, static_cast<const std::byte*>(from) + r * row_bytes, row_bytes);
}

void Backend::linear_glu(const LinearGlu& op) {
  Arena::Scope scope(*op.scratch);
  Tensor gate = op.scratch->alloc({op.x.rows(), op.gate.out});
  linear({.out = gate, .x = op.x, .weight = op.gate});
  linear({.out = op.out, .x = op.x, .weight = op.up});
  act_mul({.out = op.out, .gate = gate, .up = op.out});
}

void Backend::add_rms_norm(const AddRmsNorm& op) {
  if (op.partial) all_reduce({op.delta});
  add({.out = op.residual, .a = op.residual, .b = op.delta});
  rms_norm({.out = op.out, .x = op.residual, .weight = op.weight, .eps = op.eps});
}

void Backend::head_norm_rope(const HeadNormRope& op) {
  if (op.weight.valid()) rms_norm({.out = op.x, .x = op.x, .weight = op.weight, .eps = op.eps});
  rope({.x = op.x, .positions = op.positions, .inv_freq = op.inv_freq, .interleaved = op.interleaved, .magnitude = op.magnitude});
}

void Backend::rope_kv_write(const RopeKvWrite& op) {
  const auto rotate = [&](const Tensor& x, const Tensor& weight) {
    head_norm_rope({.x = x,
                    .weight = weight,
                    .eps = op.eps,
                    .positions = op.positions,
                    .inv_freq = op.inv_freq,
                    .interleaved = false,
                    .magnitude = op.magnitude});
  };
  rotate(op.q, op.q_weight);
  rotate(op.k.split_last(op.k.cols() / op.q.cols()), op.k_weight);
  kv_write({.cache = op.k_cache, .values = op.k, .slots = op.slots});
  kv_write({.cache = op.v_cache, .values = op.v, .slots = op.slots});
}

void Backend::latent_kv_write(const LatentKvWrite& op) {
  const int64_t lora = op.weight.elements(), turned = op.latent.cols() - lora;
  const auto norm = [&](const Tensor& x, const Tensor& weight) { rms_norm({.out = x, .x = x, .weight = weight, .eps = op.eps}); };
  const auto rotate = [&](const Tensor& x) {
    rope({.x = x, .positions = op.positions, .inv_freq = op.inv_freq, .interleaved = true, .magnitude = op.magnitude});
  };
  if (op.q_low.valid()) norm(op.q_low, op.q_low_weight);
  if (op.q_pe.valid()) rotate(op.q_pe);
  norm(op.latent.slice(1, 0, lora), op.weight);
  rotate(op.latent.slice(1, lora, turned).split_last(1));
  kv_write({.cache = op.cache, .values = op.latent, .slots = op.slots});
}

}  // namespace dg
