#include "model/layers/mlp.h"

#include <fmt/core.h>

#include <algorithm>
#include <numeric>

#include "model/split.h"

namespace dg {

namespace {

// Share of the inner dimension of gate, up (inner, hidden) and down (hidden, inner): cut where all three can be.
Share share_inner(WeightStore& store, const std::string& prefix, const ModelConfig& config, int64_t inner, WeightClass weight_class,
                  const std::string& what) {
  if (config.parallel.size == 1) return {0, inner};
  int64_t unit = store.cuts(prefix + "down_proj.weight", config.hidden, inner, weight_class).columns;
  for (const char* name : {"gate_proj.weight", "up_proj.weight"})
    unit = std::lcm(unit, store.cuts(prefix + name, inner, config.hidden, weight_class).rows);
  return share_dimension(store, config, inner, unit, what);
}

// The three matrices of an MLP or an expert.
void declare_gated(WeightStore& store, const std::string& prefix, const ModelConfig& config, int64_t inner, const Share& share,
                   WeightClass weight_class, Weight* gate, Weight* up, Weight* down) {
  store.matrix(gate, prefix + "gate_proj.weight", inner, config.hidden, weight_class, WeightUse::kProduct, share.rows());
  store.matrix(up, prefix + "up_proj.weight", inner, config.hidden, weight_class, WeightUse::kProduct, share.rows());
  store.matrix(down, prefix + "down_proj.weight", config.hidden, inner, weight_class, WeightUse::kProduct, share.columns());
}

}  // namespace

void Mlp::declare(WeightStore& store, const std::string& prefix, const ModelConfig& config, int64_t inner, WeightClass weight_class,
                  bool bias) {
  const Share share = share_inner(store, prefix, config, inner, weight_class, "intermediate size");
  if (share.count == 0) return;
  declare_gated(store, prefix, config, inner, share, weight_class, &gate, &up, &down);
  if (bias) {
    store.vector(&gate_bias, prefix + "gate_proj.bias", inner, share.first, share.count);
    store.vector(&up_bias, prefix + "up_proj.bias", inner, share.first, share.count);
    partial_bias(store, &down_bias, prefix + "down_proj.bias", config);
  }
}

Tensor Mlp::forward(Ctx& c, Tensor x) const {
  Tensor out = c.arena.alloc({x.rows(), down.out});
  Arena::Scope scope(c.arena);
  const Dtype between = gate_bias.valid() ? Dtype::kF32 : c.backend.inner_type(x.rows(), gate, up, down);
  Tensor inner = c.arena.alloc(between, {x.rows(), gate.out});
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
  const bool whole = model.parallel.whole_experts;
  const std::string first = prefix + "experts.0.";
  const Share mine = whole ? share_dimension(store, model, config.experts, 1, "experts") : Share{0, config.experts};
  const Share inner = whole ? Share{0, config.intermediate}
                            : share_inner(store, first, model, config.intermediate, WeightClass::kExpert, "intermediate size of an expert");
  if (mine.count == 0 || inner.count == 0) return;
  for (int64_t e = 0; e < config.experts; e++)
    if (e < mine.first || e >= mine.first + mine.count) store.ignore_prefix(fmt::format("{}experts.{}.", prefix, e));
  first_expert = static_cast<int>(mine.first);
  experts.resize(static_cast<size_t>(mine.count));
  const std::string model_expert = fmt::format("{}experts.{}.", prefix, mine.first);
  for (size_t e = 0; e < experts.size(); e++) {
    const std::string name = fmt::format("{}experts.{}.", prefix, mine.first + static_cast<int64_t>(e));
    declare_gated(store, name, model, config.intermediate, inner, WeightClass::kExpert, &experts[e].gate, &experts[e].up, &experts[e].down);
    // One op reads them all: gate and up with the same activations, every expert through the same kernel.
    store.alike(name + "gate_proj.weight", name + "up_proj.weight", true);
    store.alike(model_expert + "gate_proj.weight", name + "gate_proj.weight", false);
    store.alike(model_expert + "down_proj.weight", name + "down_proj.weight", false);
  }
  if (config.shared > 0)
    shared.declare(store, prefix + "shared_experts.", model, config.shared * config.intermediate, WeightClass::kSharedExpert);
}

Tensor MoeBlock::forward(Ctx& c, Tensor x) const {
  Tensor out;
  if (config.shared > 0) {
    // Beside the router: neither needs the other, and with few rows both are too small for a whole GPU.
    const Weight* const products[] = {&shared.gate, &shared.up, &shared.down};
    const bool beside = c.backend.begin_beside(x, products);
    out = shared.forward(c, x);
    if (beside) c.backend.end_beside();
  } else {
    out = c.arena.alloc({x.rows(), x.cols()});
    c.backend.fill({.out = out, .value = 0});
  }
  Arena::Scope scope(c.arena);
  // What the shared experts may still be using.
  if (config.shared > 0 && x.rows() <= Backend::kMostBesideRows) c.arena.alloc({x.rows(), 2 * shared.gate.out + 32});
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
  c.backend.moe_experts(
      {.out = out, .x = x, .ids = ids, .weights = weights, .experts = experts, .first = first_expert, .scratch = &c.arena});
  return out;
}

}  // namespace dg
