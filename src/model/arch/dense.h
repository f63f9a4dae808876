// What Llama, Qwen2 and Qwen3 share: a dense decoder with grouped-query attention. Each architecture's file chooses the
// options and nothing else differs.
#pragma once
#include <memory>

#include "model/layers/decoder.h"

namespace dg {

struct DenseOptions {
  GqaAttention::Options attention;
  bool mlp_bias = false;
};

std::unique_ptr<Model> make_dense(const ModelConfig& config, WeightStore& store, DenseOptions options);

}  // namespace dg
