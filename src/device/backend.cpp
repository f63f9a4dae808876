// Default bodies of the fused ops.
#include "device/backend.h"

namespace dg {

void Backend::prepare(const Weight&, int64_t, int64_t, std::byte*) const { CHECK(false) << name() << " keeps weights as published"; }

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

}  // namespace dg
