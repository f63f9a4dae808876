// ModelConfig: a checkpoint's config.json, read and checked. Every architecture reads the fields it knows; unknown fields
// are ignored, as published configs carry many. Defaults are those of transformers.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"
#include "model/quant_config.h"

namespace dg {

enum class RopeType { kDefault, kLinear, kLlama3, kYarn };

struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000, factor = 1;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  int64_t original_max_position = 0;
  bool truncate = true;  // yarn: round the correction range to whole dimensions
  std::optional<double> attention_factor, attn_factor, mscale, mscale_all_dim;
  std::vector<float> divisors;  // (rotary_dim / 2), optional: of the frequencies, as GGUF files have them for Llama 3
};

// Which part of the model is computed here: rank `rank` of `size` that split every layer among them (docs/parallel.md).
struct Parallel {
  int rank = 0, size = 1;
  bool whole_experts = false;  // each rank keeps some of the routed experts; else a part of every one
  bool first() const { return rank == 0; }
};

struct ModelConfig {
  std::string origin;        // path of the file, for messages
  std::string architecture;  // architectures[0], e.g. "DeepseekV3ForCausalLM"
  std::string model_type;
  std::string dtype;  // torch_dtype / dtype
  int64_t hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, max_position = 0;
  float rms_eps = 1e-6f;
  bool tie_embeddings = false, attention_bias = false, mlp_bias = false;
  RopeConfig rope;

  struct Mla {
    int64_t q_lora = 0;  // 0: q_proj without low rank (V2-Lite)
    int64_t kv_lora = 0, nope = 0, rope = 0, v_dim = 0;
  } mla;

  struct Moe {
    int64_t experts = 0, shared = 0, top_k = 0, intermediate = 0, first_dense = 0, layer_freq = 1;
    int64_t groups = 1, top_groups = 1;
    bool normalise = false;
    float routed_scale = 1;
    std::string topk_method, scoring;
  } moe;
  bool is_moe_layer(int64_t layer) const { return moe.experts > 0 && layer >= moe.first_dense && layer % moe.layer_freq == 0; }

  int64_t mtp_modules = 0;   // num_nextn_predict_layers
  std::string quant_method;  // "", "fp8", "awq", "gptq" or "compressed-tensors"
  QuantConfig quantization;
  std::optional<int64_t> bos;
  std::vector<int64_t> eos;
  Parallel parallel;  // not from the file: chosen by who makes the model
};

// Reads `directory`/config.json, or the metadata of a GGUF file or directory (gguf_config.h). Errors name the file, the field, what was
// expected and what was found.
Result<ModelConfig> read_model_config(const std::string& directory);
Result<ModelConfig> parse_model_config(const Json& json, const std::string& origin);

// generation_config.json: defaults for sampling and the stop tokens, when present.
struct GenerationConfig {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::optional<bool> do_sample;
  std::vector<int64_t> eos;
};
Result<GenerationConfig> read_generation_config(const std::string& directory);

}  // namespace dg
