// Small forward helpers: allocate the output in the context's arena and issue one op.
#pragma once
#include <array>

#include "model/model.h"

namespace dg {

// The bias of a product whose results the ranks add up: one of them adds it.
inline void partial_bias(WeightStore& store, Tensor* to, const std::string& name, const ModelConfig& config) {
  if (config.parallel.first()) store.vector(to, name, config.hidden);
  else store.ignore(name);
}

inline Tensor linear(Ctx& c, Tensor x, const Weight& w, Tensor bias = {}) {
  Tensor y = c.arena.alloc({x.rows(), w.out});
  c.backend.linear({.out = y, .x = x, .weight = w, .bias = bias});
  return y;
}

// Products of one x with up to LinearSeveral::kMost matrices, as one op.
struct LinearInput {
  const Weight& weight;
  Tensor bias{};
};
template <size_t kCount>
std::array<Tensor, kCount> linear(Ctx& c, Tensor x, const LinearInput (&inputs)[kCount]) {
  static_assert(kCount <= LinearSeveral::kMost);
  std::array<Tensor, kCount> outs;
  LinearSeveral op{.x = x, .parts = {}, .count = static_cast<int>(kCount)};
  for (size_t i = 0; i < kCount; i++) {
    outs[i] = c.arena.alloc({x.rows(), inputs[i].weight.out});
    op.parts[i] = {.out = outs[i], .weight = inputs[i].weight, .bias = inputs[i].bias};
  }
  c.backend.linear_several(op);
  return outs;
}

inline Tensor rms_norm(Ctx& c, Tensor x, Tensor weight, float eps) {
  Tensor y = c.arena.alloc({x.rows(), x.cols()});
  c.backend.rms_norm({.out = y, .x = x, .weight = weight, .eps = eps});
  return y;
}

inline Tensor embed(Ctx& c, Tensor ids, const Weight& table) {
  Tensor y = c.arena.alloc({ids.rows(), table.in});
  c.backend.embed({.out = y, .ids = ids, .table = table});
  return y;
}

// Logits (rows, vocab) of the wanted rows only.
inline Tensor vocabulary_logits(Ctx& c, Tensor hidden, Tensor rows, const Weight& head) {
  if (rows.rows() == 0) return Tensor::of(nullptr, Dtype::kF32, {0, head.out});
  Tensor picked = c.arena.alloc({rows.rows(), hidden.cols()});
  c.backend.gather_rows({.out = picked, .x = hidden, .rows = rows});
  return linear(c, picked, head);
}

}  // namespace dg
