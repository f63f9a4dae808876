// Small forward helpers: allocate the output in the context's arena and issue one op.
#pragma once
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
