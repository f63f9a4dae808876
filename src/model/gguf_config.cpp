// Metadata keys and their meaning: llama.cpp's llama-arch.cpp, the loaders in its src/models and convert_hf_to_gguf, as
// written down in ../spec quant_formats section 9.2. The keys become a config.json, which then passes the same checks as
// a published one.
#include "model/gguf_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/json.h"

namespace dg {
namespace {

struct GgufModelType {
  std::string_view gguf, architecture, model_type;
};
constexpr GgufModelType kModelTypes[] = {
    {"llama", "LlamaForCausalLM", "llama"},
    {"qwen2", "Qwen2ForCausalLM", "qwen2"},
    {"qwen3", "Qwen3ForCausalLM", "qwen3"},
    {"deepseek2", "DeepseekV3ForCausalLM", "deepseek_v3"},  // or V2: decided by the gating function
};

// Groups of experts for the router where the file has none (V2 and early V3 conversions), by shape. Source: config.json of
// DeepSeek-V3 (256 experts, 7168 wide) and of DeepSeek-V2 (160 experts).
struct KnownGroups {
  int64_t experts, groups, top_groups;
};
constexpr KnownGroups kKnownGroups[] = {{256, 8, 4}, {160, 8, 3}};

class GgufConfigReader {
 public:
  explicit GgufConfigReader(const GgufModel& model) : model_(model) {}

  Result<ModelConfig> run() {
    const std::string name = text("general.architecture", "");
    if (error_) return *error_;
    const GgufModelType* type = nullptr;
    for (const GgufModelType& t : kModelTypes)
      if (name == t.gguf) type = &t;
    if (!type)
      return input_error(fmt::format("{}: general.architecture: expected llama, qwen2, qwen3 or deepseek2, found \"{}\"", model_.path(),
                                     name.size() > 60 ? name.substr(0, 60) : name));
    arch_ = name;
    out_ = Json::object();
    out_["architectures"] = Json::array({std::string(type->architecture)});
    out_["model_type"] = std::string(type->model_type);
    read_shape();
    if (arch_ == "deepseek2") read_deepseek();
    read_rope();
    read_special_tokens();
    if (error_) return *error_;
    DG_ASSIGN(ModelConfig config, parse_model_config(out_, model_.path() + ": metadata as config.json"));
    config.origin = model_.path();
    DG_ASSIGN(config.rope.divisors, read_divisors(config));
    return config;
  }

  GenerationConfig generation() {
    GenerationConfig g;
    g.eos = end_tokens();
    auto number = [&](const char* key, double low, double high) -> std::optional<double> {
      const GgufValue* v = model_.find(key);
      if (!v || v->is_array() || !v->number() || !(*v->number() >= low && *v->number() <= high)) return std::nullopt;
      // Stored as f32: 0.6 comes back as 0.6000000238.
      return std::round(*v->number() * 1e6) / 1e6;
    };
    g.temperature = number("general.sampling.temp", 0, 100);
    g.top_p = number("general.sampling.top_p", 0, 1);
    g.min_p = number("general.sampling.min_p", 0, 1);
    g.repetition_penalty = number("general.sampling.penalty_repeat", 1e-3, 100);
    if (auto top_k = number("general.sampling.top_k", 0, 1 << 24)) g.top_k = static_cast<int64_t>(*top_k);
    return g;
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  std::string key(std::string_view name) const { return fmt::format("{}.{}", arch_, name); }
  void fail(const std::string& key, std::string_view expected, const GgufValue* found) {
    if (!error_)
      error_ =
          input_error(fmt::format("{}: {}: expected {}, found {}", model_.path(), key, expected, found ? found->describe() : "nothing"));
  }

  const GgufTensor* tensor(std::string_view name, size_t* file = nullptr) const {
    for (size_t f = 0; f < model_.headers.size(); f++)
      for (const GgufTensor& t : model_.headers[f].tensors)
        if (t.name == name) {
          if (file) *file = f;
          return &t;
        }
    return nullptr;
  }
  bool has(std::string_view key) const { return model_.find(key) != nullptr; }

  std::string text(const std::string& key, std::string fallback) {
    const GgufValue* v = model_.find(key);
    if (!v) return fallback;
    if (v->is_array() || !v->text()) return fail(key, "a string", v), fallback;
    return std::string(*v->text());
  }

  // A whole number from `low` up; an array of equal ones counts as one (per-layer values).
  std::optional<int64_t> integer(const std::string& key, int64_t low = 0) {
    const GgufValue* v = model_.find(key);
    if (!v) return std::nullopt;
    const std::optional<int64_t> value = v->integer();
    for (uint64_t i = 1; value && i < v->count; i++)
      if (v->integer(i) != value) return fail(key, "the same number for all layers", v), std::nullopt;
    if (!value || *value < low) return fail(key, fmt::format("a whole number from {}", low), v), std::nullopt;
    return value;
  }
  int64_t required(std::string_view name, int64_t low = 1) {
    const std::string full = key(name);
    if (!has(full)) fail(full, "a whole number", nullptr);
    return integer(full, low).value_or(low);
  }
  std::optional<double> number(const std::string& key) {
    const GgufValue* v = model_.find(key);
    if (!v) return std::nullopt;
    if (v->is_array() || !v->number() || !std::isfinite(*v->number())) return fail(key, "a number", v), std::nullopt;
    return *v->number();
  }

  // f32 of a decimal number that was written by a person: 0.1 * 1.0 and 1e-6 come back exactly.
  static double tidy(double value) {
    if (value == 0) return 0;
    const double unit = std::pow(10.0, std::floor(std::log10(std::fabs(value))) - 6);
    return std::round(value / unit) * unit;
  }

  void read_shape() {
    const int64_t blocks = required("block_count");
    const int64_t nextn = integer(key("nextn_predict_layers")).value_or(0);
    // block_count includes the prediction layers in files that have them; older files only announce them.
    const bool inside =
        nextn > 0 && nextn < blocks &&
        (tensor(fmt::format("blk.{}.nextn.eh_proj.weight", blocks - nextn)) || !tensor(fmt::format("blk.{}.attn_norm.weight", blocks - 1)));
    out_["num_hidden_layers"] = inside ? blocks - nextn : blocks;
    out_["num_nextn_predict_layers"] = nextn;
    out_["hidden_size"] = required("embedding_length");
    out_["intermediate_size"] = integer(key("feed_forward_length"), 1).value_or(1);
    if (!has(key("feed_forward_length"))) fail(key("feed_forward_length"), "a whole number", nullptr);
    heads_ = required("attention.head_count");
    out_["num_attention_heads"] = heads_;
    out_["max_position_embeddings"] = required("context_length");
    if (auto eps = number(key("attention.layer_norm_rms_epsilon"))) out_["rms_norm_eps"] = tidy(*eps);
    const GgufTensor* embedding = tensor("token_embd.weight");
    if (embedding) out_["vocab_size"] = embedding->ne[1];
    else out_["vocab_size"] = required("vocab_size");
    out_["tie_word_embeddings"] = tensor("output.weight") == nullptr;
    if (arch_ != "qwen2") out_["attention_bias"] = tensor("blk.0.attn_q.bias") != nullptr;
    out_["mlp_bias"] = tensor("blk.0.ffn_gate.bias") != nullptr;
    if (arch_ == "deepseek2") return;
    out_["num_key_value_heads"] = integer(key("attention.head_count_kv"), 1).value_or(heads_);
    const std::optional<int64_t> k = integer(key("attention.key_length"), 1), v = integer(key("attention.value_length"), 1);
    if (k && v && *k != *v)
      fail(key("attention.value_length"), fmt::format("the key length {}", *k), model_.find(key("attention.value_length")));
    if (k) out_["head_dim"] = *k;
    const int64_t head_dim = k.value_or(out_["hidden_size"].get<int64_t>() / std::max<int64_t>(1, heads_));
    const std::optional<int64_t> rotary = integer(key("rope.dimension_count"), 1);
    if (rotary && *rotary != head_dim)
      fail(key("rope.dimension_count"), fmt::format("the head size {}", head_dim), model_.find(key("rope.dimension_count")));
  }

  void read_deepseek() {
    out_["num_key_value_heads"] = heads_;
    const int64_t rope = required("rope.dimension_count", 2);
    const bool absorbed = has(key("attention.key_length_mla"));
    const std::string k_key = absorbed ? "attention.key_length_mla" : "attention.key_length";
    const int64_t k = required(k_key), v = required(absorbed ? "attention.value_length_mla" : "attention.value_length");
    if (k <= rope) fail(key(k_key), fmt::format("more than the {} rotary dimensions", rope), model_.find(key(k_key)));
    out_["kv_lora_rank"] = required("attention.kv_lora_rank");
    out_["qk_nope_head_dim"] = k - rope;
    out_["qk_rope_head_dim"] = rope;
    out_["v_head_dim"] = v;
    // V2-Lite has none; some of its files still carry the key.
    if (tensor("blk.0.attn_q_a.weight")) out_["q_lora_rank"] = required("attention.q_lora_rank");
    const int64_t experts = integer(key("expert_count")).value_or(0);
    const int64_t gating = integer(key("expert_gating_func")).value_or(0);
    const int64_t dense = integer(key("leading_dense_block_count")).value_or(0);
    if (gating > 2) fail(key("expert_gating_func"), "1 (softmax) or 2 (sigmoid)", model_.find(key("expert_gating_func")));
    const bool v3 = gating == 2;  // missing in old V2 files: softmax
    if (!v3) {
      out_["architectures"] = Json::array({"DeepseekV2ForCausalLM"});
      out_["model_type"] = "deepseek_v2";
    }
    if (experts == 0) return;
    out_["n_routed_experts"] = experts;
    out_["n_shared_experts"] = integer(key("expert_shared_count")).value_or(0);
    out_["num_experts_per_tok"] = required("expert_used_count");
    out_["moe_intermediate_size"] = required("expert_feed_forward_length");
    out_["first_k_dense_replace"] = dense;
    const double scale = number(key("expert_weights_scale")).value_or(1);
    out_["routed_scaling_factor"] = scale == 0 ? 1.0 : tidy(scale);
    if (const GgufValue* norm = model_.find(key("expert_weights_norm"))) {
      if (norm->is_array() || !norm->boolean()) fail(key("expert_weights_norm"), "true or false", norm);
      else out_["norm_topk_prob"] = *norm->boolean();
    }
    out_["scoring_func"] = v3 ? "sigmoid" : "softmax";
    int64_t groups = integer(key("expert_group_count")).value_or(0), top_groups = integer(key("expert_group_used_count")).value_or(0);
    if (groups == 0)
      for (const KnownGroups& known : kKnownGroups)
        if (experts == known.experts && out_["hidden_size"] >= 5120) groups = known.groups, top_groups = known.top_groups;
    out_["n_group"] = std::max<int64_t>(1, groups);
    out_["topk_group"] = std::max<int64_t>(1, top_groups);
    out_["topk_method"] = v3 ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
  }

  void read_rope() {
    out_["rope_theta"] = number(key("rope.freq_base")).value_or(10000.0);
    const std::string type = text(key("rope.scaling.type"), has(key("rope.scale_linear")) ? "linear" : "none");
    if (type == "none") return;
    Json rope = {{"rope_type", type}};
    if (type != "linear" && type != "yarn")
      return fail(key("rope.scaling.type"), "none, linear or yarn", model_.find(key("rope.scaling.type")));
    const std::string factor = has(key("rope.scaling.factor")) ? "rope.scaling.factor" : "rope.scale_linear";
    if (auto value = number(key(factor))) rope["factor"] = tidy(*value);
    else fail(key("rope.scaling.factor"), "a number", nullptr);
    if (type == "yarn") {
      if (auto length = integer(key("rope.scaling.original_context_length"), 1)) rope["original_max_position_embeddings"] = *length;
      if (auto beta = number(key("rope.scaling.yarn_beta_fast"))) rope["beta_fast"] = tidy(*beta);
      if (auto beta = number(key("rope.scaling.yarn_beta_slow"))) rope["beta_slow"] = tidy(*beta);
      if (auto multiplier = number(key("rope.scaling.yarn_log_multiplier")); multiplier && *multiplier != 0) {
        // 0.1 mscale_all_dim; DeepSeek's configs have mscale the same, so that the rotation itself is not scaled.
        rope["mscale"] = rope["mscale_all_dim"] = tidy(*multiplier * 10);
      }
      // A multiplier of YaRN's own temperature, under either name.
      for (const char* name : {"rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"})
        if (auto value = number(key(name))) rope["attn_factor"] = *value;
    }
    out_["rope_scaling"] = std::move(rope);
  }

  std::vector<int64_t> end_tokens() {
    std::vector<int64_t> ids;
    for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
      if (auto id = integer(name); id && *id < (1 << 24) && std::find(ids.begin(), ids.end(), *id) == ids.end()) ids.push_back(*id);
    return ids;
  }

  void read_special_tokens() {
    if (auto bos = integer("tokenizer.ggml.bos_token_id"); bos && *bos < (1 << 24)) out_["bos_token_id"] = *bos;
    out_["eos_token_id"] = end_tokens();
  }

  // Llama 3 scales its frequencies by a table instead of a rule.
  Result<std::vector<float>> read_divisors(const ModelConfig& config) const {
    size_t file = 0;
    const GgufTensor* t = tensor("rope_freqs.weight", &file);
    std::vector<float> divisors;
    if (!t || config.mla.kv_lora > 0) return divisors;
    const std::string where = fmt::format("{}: tensor {}", model_.paths[file], t->name);
    if (t->type->dtype != Dtype::kF32 || t->type->block || t->dims != 1 || t->ne[0] != config.head_dim / 2)
      return input_error(fmt::format("{}: expected {} numbers in F32 (half the head size), found {} in {}", where, config.head_dim / 2,
                                     t->ne[0], t->type->name));
    divisors.resize(static_cast<size_t>(t->ne[0]));
    DG_TRY(model_.files[file].read_into(t->offset, std::as_writable_bytes(std::span(divisors))));
    for (size_t i = 0; i < divisors.size(); i++)
      if (!(divisors[i] >= 1e-3f && divisors[i] <= 1e6f))
        return input_error(fmt::format("{}: expected divisors from 0.001 to 1e6, found {} at [{}]", where, divisors[i], i));
    return divisors;
  }

  const GgufModel& model_;
  std::string arch_;
  Json out_;
  int64_t heads_ = 1;
  std::optional<Error> error_;
};

}  // namespace

Result<ModelConfig> gguf_model_config(const GgufModel& model) { return GgufConfigReader(model).run(); }

Result<GenerationConfig> gguf_generation_config(const GgufModel& model) {
  GgufConfigReader reader(model);
  GenerationConfig generation = reader.generation();
  if (reader.error()) return *reader.error();
  return generation;
}

}  // namespace dg
