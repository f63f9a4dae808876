// Attention blocks: projections, rotary embedding, cache write and attention over the paged cache.
#pragma once
#include "model/layers/linear.h"
#include "model/rope.h"

namespace dg {

// Rotary frequencies shared by all layers of a model.
struct Rotary {
  Tensor inv_freq;  // (rotary_dim / 2)
  float magnitude = 1;
  void declare(WeightStore& store, const RopeConfig& config, int64_t dim);
};

// Grouped-query attention of Llama, Qwen2 and Qwen3: optional biases, optional norm per head of q and k.
struct GqaAttention {
  struct Options {
    bool qkv_bias = false, o_bias = false, head_norm = false;
  };
  void declare(WeightStore& store, const std::string& prefix, const ModelConfig& config, Options options);
  void register_cache(CacheLayout& layout, const std::string& name);
  // x (tokens, hidden) -> (tokens, hidden), the part of this rank: the sum over the ranks is the output
  Tensor forward(Ctx& c, const Batch& batch, Tensor x, const Rotary& rotary) const;

  Weight q, k, v, o;
  Tensor q_bias, k_bias, v_bias, o_bias;          // optional
  Tensor q_norm, k_norm;                          // (head_dim), optional
  int64_t heads = 0, kv_heads = 0, head_dim = 0;  // of this rank
  float eps = 0, scale = 0;
  int k_part = -1, v_part = -1;
};

// Multi-head latent attention of DeepSeek V2 and V3. Caches kv_lora + rope values per token.
struct MlaBlock {
  void declare(WeightStore& store, const std::string& prefix, const ModelConfig& config);
  void register_cache(CacheLayout& layout, const std::string& name);
  Tensor forward(Ctx& c, const Batch& batch, Tensor x, const Rotary& rotary) const;

  Weight q_a, q_b;  // with a low-rank query
  Weight q;         // without (V2-Lite)
  Weight kv_a, kv_b, o;
  Tensor q_norm, kv_norm;
  Tensor q_a_bias, kv_a_bias, o_bias;  // attention_bias checkpoints
  ModelConfig::Mla dims;
  int64_t heads = 0;  // of this rank
  float scale = 0;
  int part = -1;
};

}  // namespace dg
