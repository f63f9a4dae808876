#include "device/cost.h"

#include <cmath>

#include "device/cache_format.h"

namespace dg {
namespace {

double size(const Tensor& t) { return t.valid() ? static_cast<double>(t.bytes()) : 0; }
double count(const Tensor& t) { return static_cast<double>(t.elements()); }
double matrix_flops(double rows, const Weight& w) { return 2 * rows * static_cast<double>(w.out) * static_cast<double>(w.in); }
double cache_row_bytes(const PagedCache& c) { return static_cast<double>(cache_row_bytes(c.data.dtype, c.width())); }

// Query-key pairs of a causal slice.
double pairs(const SequenceSlice& s) {
  double q = s.q_len, kv = s.kv_len;
  return q * (kv - q) + q * (q + 1) / 2;
}

}  // namespace

double expected_active_experts(double experts, double top_k, double tokens) {
  return experts * (1 - std::pow(1 - top_k / experts, tokens));
}

Cost cost_of(const Embed& op) {
  double row = static_cast<double>(op.table.row_bytes());
  return {.weight_bytes = row * static_cast<double>(op.out.rows()), .activation_bytes = size(op.out)};
}

Cost cost_of(const Linear& op) {
  return {.weight_bytes = static_cast<double>(op.weight.bytes()),
          .activation_bytes = size(op.x) + size(op.out),
          .flops = matrix_flops(static_cast<double>(op.x.rows()), op.weight)};
}

Cost cost_of(const LinearSeveral& op) {
  Cost cost{.activation_bytes = size(op.x)};
  for (int i = 0; i < op.count; i++) {
    const LinearPart& part = op.parts[i];
    cost.weight_bytes += static_cast<double>(part.weight.bytes());
    cost.activation_bytes += size(part.out);
    cost.flops += matrix_flops(static_cast<double>(op.x.rows()), part.weight);
  }
  return cost;
}

Cost cost_of(const LinearGlu& op) {
  double rows = static_cast<double>(op.x.rows());
  return {.weight_bytes = static_cast<double>(op.gate.bytes() + op.up.bytes()),
          .activation_bytes = size(op.x) + size(op.out),
          .flops = matrix_flops(rows, op.gate) + matrix_flops(rows, op.up) + 5 * count(op.out)};
}

Cost cost_of(const RmsNorm& op) {
  return {.weight_bytes = size(op.weight), .activation_bytes = size(op.x) + size(op.out), .flops = 4 * count(op.x)};
}

Cost cost_of(const AllReduce& op) { return {.activation_bytes = 2 * size(op.x)}; }

Cost cost_of(const AddRmsNorm& op) {
  return {.weight_bytes = size(op.weight),
          .activation_bytes = 2 * size(op.residual) + size(op.delta) + size(op.out),
          .flops = 5 * count(op.out)};
}

Cost cost_of(const Rope& op) { return {.activation_bytes = 2 * size(op.x), .flops = 3 * count(op.x)}; }

Cost cost_of(const HeadNormRope& op) {
  return {.weight_bytes = size(op.weight), .activation_bytes = 2 * size(op.x), .flops = (op.weight.valid() ? 7 : 3) * count(op.x)};
}

Cost cost_of(const ActMul& op) { return {.activation_bytes = 3 * size(op.out), .flops = 5 * count(op.out)}; }
Cost cost_of(const Add& op) { return {.activation_bytes = 3 * size(op.out), .flops = count(op.out)}; }
Cost cost_of(const GatherRows& op) { return {.activation_bytes = 2 * size(op.out)}; }
Cost cost_of(const Fill& op) { return {.activation_bytes = size(op.out)}; }
Cost cost_of(const Copy& op) { return {.activation_bytes = size(op.out) + size(op.x)}; }

Cost cost_of(const KvWrite& op) {
  return {.kv_bytes = cache_row_bytes(op.cache) * static_cast<double>(op.values.rows()), .activation_bytes = size(op.values)};
}

Cost cost_of(const RopeKvWrite& op) {
  const double rows = static_cast<double>(op.k.rows()), each_q = op.q_weight.valid() ? 7 : 3, each_k = op.k_weight.valid() ? 7 : 3;
  return {.weight_bytes = size(op.q_weight) + size(op.k_weight),
          .kv_bytes = (cache_row_bytes(op.k_cache) + cache_row_bytes(op.v_cache)) * rows,
          .activation_bytes = 2 * size(op.q) + 2 * size(op.k) + size(op.v),
          .flops = each_q * count(op.q) + each_k * count(op.k)};
}

Cost cost_of(const LatentKvWrite& op) {
  const double rows = static_cast<double>(op.latent.rows());
  return {.weight_bytes = size(op.weight) + size(op.q_low_weight),
          .kv_bytes = cache_row_bytes(op.cache) * rows,
          .activation_bytes = 2 * (size(op.latent) + size(op.q_low) + size(op.q_pe)),
          .flops = 4 * count(op.latent) + (op.q_low.valid() ? 4 * count(op.q_low) : 0) + (op.q_pe.valid() ? 3 * count(op.q_pe) : 0)};
}

Cost cost_of(const Attention& op) {
  Cost cost{.activation_bytes = size(op.q) + size(op.out)};
  double row = cache_row_bytes(op.k_cache) + cache_row_bytes(op.v_cache);
  for (const SequenceSlice& s : op.sequences) {
    cost.kv_bytes += row * s.kv_len;
    cost.flops += pairs(s) * static_cast<double>(op.q.dim(1)) * (4.0 * static_cast<double>(op.q.dim(2)) + 5);
  }
  return cost;
}

Cost cost_of(const MlaAttention& op) {
  Cost cost{.weight_bytes = static_cast<double>(op.kv_b.bytes()), .activation_bytes = size(op.q) + size(op.out)};
  double row = cache_row_bytes(op.cache), heads = static_cast<double>(op.q.dim(1));
  for (const SequenceSlice& s : op.sequences) {
    cost.kv_bytes += row * s.kv_len;
    if (s.decode)  // absorbed: project q and the output once, attend in the latent space
      cost.flops += s.q_len * matrix_flops(1, op.kv_b) + pairs(s) * heads * (2.0 * (2 * op.kv_lora + op.rope) + 5);
    else  // materialised: project every cached row once
      cost.flops += s.kv_len * matrix_flops(1, op.kv_b) + pairs(s) * heads * (2.0 * (op.nope + op.rope + op.v_dim) + 5);
  }
  return cost;
}

Cost cost_of(const MoeRoute& op) {
  return {
      .weight_bytes = size(op.bias), .activation_bytes = size(op.logits) + size(op.ids) + size(op.weights), .flops = 4 * count(op.logits)};
}

Cost cost_of(const MoeExperts& op) {
  const Expert& e = op.experts[0];
  double tokens = static_cast<double>(op.x.rows()), top_k = static_cast<double>(op.ids.cols());
  double active = expected_active_experts(static_cast<double>(op.experts.size()), top_k, tokens);
  double bytes = static_cast<double>(e.gate.bytes() + e.up.bytes() + e.down.bytes());
  return {.weight_bytes = active * bytes,
          .activation_bytes = size(op.x) + 2 * size(op.out),
          .flops = top_k * (matrix_flops(tokens, e.gate) + matrix_flops(tokens, e.up) + matrix_flops(tokens, e.down))};
}

Cost cost_of(const AdjustLogits& op) { return {.activation_bytes = size(op.changes) * 5 / 3 + size(op.masks)}; }
Cost cost_of(const PickRows& op) {
  return {.activation_bytes = size(op.logits) + size(op.out), .flops = 14 * count(op.logits)};  // the polynomial of exp2
}

}  // namespace dg
