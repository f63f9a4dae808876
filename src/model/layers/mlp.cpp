#include "model/layers/mlp.h"

#include <fmt/core.h>

namespace dg {

void Mlp::declare(WeightStore& store, const std::string& prefix, int64_t hidden, int64_t inner, WeightClass weight_class, bool bias) {
  store.matrix(&gate, prefix + "gate_proj.weight", inner, hidden, weight_class);
  store.matrix(&up, prefix + "up_proj.weight", inner, hidden, weight_class);
  store.matrix(&down, prefix + "down_proj.weight", hidden, inner, weight_class);
  if (bias) {
    store.vector(&gate_bias, prefix + "gate_proj.bias", inner);
    store.vector(&up_bias, prefix + "up_proj.bias", inner);
    store.vector(&down_bias, prefix + "down_proj.bias", hidden);
  }
}

Tensor Mlp::forward(Ctx& c, Tensor x) const {
  Tensor out = c.arena.alloc({x.rows(), down.out});
  Arena::Scope scope(c.arena);
  Tensor inner = c.arena.alloc({x.rows(), gate.out});
  if (gate_bias.valid()) {
    Tensor g = linear(c, x, gate, gate_bias), u = linear(c, x, up, up_bias);
    c.backend.act_mul({.out = inner, .gate = g, .up = u});
  } else {
    c.backend.linear_glu({.out = inner, .x = x, .gate = gate, .up = up, .scratch = &c.arena});
  }
  c.backend.linear({.out = out, .x = inner, .weight = down, .bias = down_bias});
  return out;
}

void MoeBlock::declare(WeightStore& store, const std::string& prefix, const ModelConfig& model, Routing how) {
  config = model.moe;
  routing = how;
  // kRows: multiplied in f32, as published; rounding its input would exchange experts whose scores are close.
  store.matrix(&router, prefix + "gate.weight", config.experts, model.hidden, WeightClass::kRouter, WeightUse::kRows);
  if (routing.correction_bias) store.vector(&bias, prefix + "gate.e_score_correction_bias", config.experts);
  experts.resize(static_cast<size_t>(config.experts));
  for (size_t e = 0; e < experts.size(); e++) {
    std::string name = fmt::format("{}experts.{}.", prefix, e);
    store.matrix(&experts[e].gate, name + "gate_proj.weight", config.intermediate, model.hidden, WeightClass::kExpert);
    store.matrix(&experts[e].up, name + "up_proj.weight", config.intermediate, model.hidden, WeightClass::kExpert);
    store.matrix(&experts[e].down, name + "down_proj.weight", model.hidden, config.intermediate, WeightClass::kExpert);
    // One op reads them all: gate and up with the same activations, every expert through the same kernel.
    const std::string first = prefix + "experts.0.";
    store.alike(name + "gate_proj.weight", name + "up_proj.weight", true);
    store.alike(first + "gate_proj.weight", name + "gate_proj.weight", false);
    store.alike(first + "down_proj.weight", name + "down_proj.weight", false);
  }
  if (config.shared > 0)
    shared.declare(store, prefix + "shared_experts.", model.hidden, config.shared * config.intermediate, WeightClass::kSharedExpert);
}

Tensor MoeBlock::forward(Ctx& c, Tensor x) const {
  Tensor out;
  if (config.shared > 0) {
    out = shared.forward(c, x);
  } else {
    out = c.arena.alloc({x.rows(), x.cols()});
    c.backend.fill({.out = out, .value = 0});
  }
  Arena::Scope scope(c.arena);
  Tensor logits = linear(c, x, router);
  Tensor ids = c.arena.alloc(Dtype::kI32, {x.rows(), config.top_k}), weights = c.arena.alloc({x.rows(), config.top_k});
  c.backend.moe_route({.ids = ids,
                       .weights = weights,
                       .logits = logits,
                       .bias = bias,
                       .score = routing.score,
                       .group_score = routing.group_score,
                       .groups = routing.groups ? static_cast<int>(config.groups) : 1,
                       .top_groups = routing.groups ? static_cast<int>(config.top_groups) : 1,
                       .normalise = routing.normalise,
                       .routed_scale = config.routed_scale});
  c.backend.moe_experts({.out = out, .x = x, .ids = ids, .weights = weights, .experts = experts, .first = 0, .scratch = &c.arena});
  return out;
}

}  // namespace dg
