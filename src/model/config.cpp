#include "model/config.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "base/file.h"
#include "base/json.h"
#include "model/gguf_config.h"

namespace dg {
namespace {

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

// Reads fields of one JSON object and keeps the first error.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  bool has(const char* key) const {
    auto it = object_.find(key);
    return it != object_.end() && !it->is_null();
  }

  int64_t integer(const char* key, int64_t low, int64_t high, std::optional<int64_t> fallback = std::nullopt) {
    if (!has(key)) return absent(key, fallback);
    const Json& v = object_[key];
    bool whole = v.is_number_integer() || (v.is_number_float() && std::floor(v.get<double>()) == v.get<double>());
    if (!whole || v.get<double>() < static_cast<double>(low) || v.get<double>() > static_cast<double>(high)) {
      fail(fmt::format("{}: {}: expected an integer from {} to {}, found {}", where_, key, low, high, shown(v)));
      return low;
    }
    return v.get<int64_t>();
  }

  double number(const char* key, double low, double high, std::optional<double> fallback = std::nullopt) {
    if (!has(key)) {
      if (fallback) return *fallback;
      fail(fmt::format("{}: {} is missing", where_, key));
      return low;
    }
    const Json& v = object_[key];
    if (!v.is_number() || !(v.get<double>() >= low && v.get<double>() <= high)) {
      fail(fmt::format("{}: {}: expected a number from {} to {}, found {}", where_, key, low, high, shown(v)));
      return low;
    }
    return v.get<double>();
  }
  std::optional<double> optional_number(const char* key, double low, double high) {
    if (!has(key)) return std::nullopt;
    return number(key, low, high);
  }

  bool boolean(const char* key, bool fallback) {
    if (!has(key)) return fallback;
    const Json& v = object_[key];
    if (!v.is_boolean()) {
      fail(fmt::format("{}: {}: expected true or false, found {}", where_, key, shown(v)));
      return fallback;
    }
    return v.get<bool>();
  }

  std::string text(const char* key, std::string fallback) {
    if (!has(key)) return fallback;
    const Json& v = object_[key];
    if (!v.is_string()) {
      fail(fmt::format("{}: {}: expected a string, found {}", where_, key, shown(v)));
      return fallback;
    }
    return v.get<std::string>();
  }

  // An id or a list of ids.
  std::vector<int64_t> ids(const char* key) {
    std::vector<int64_t> out;
    if (!has(key)) return out;
    const Json& v = object_[key];
    for (const Json& item : v.is_array() ? v : Json::array({v})) {
      if (!item.is_number_integer()) {
        fail(fmt::format("{}: {}: expected a token id or a list of them, found {}", where_, key, shown(v)));
        return {};
      }
      out.push_back(item.get<int64_t>());
    }
    return out;
  }

  void fail(std::string message) {
    if (!error_) error_ = input_error(std::move(message));
  }
  const std::optional<Error>& error() const { return error_; }
  const Json& json() const { return object_; }
  const std::string& where() const { return where_; }

 private:
  int64_t absent(const char* key, std::optional<int64_t> fallback) {
    if (fallback) return *fallback;
    fail(fmt::format("{}: {} is missing", where_, key));
    return 1;
  }

  const Json& object_;
  std::string where_;
  std::optional<Error> error_;
};

Result<RopeConfig> read_rope(Fields& top) {
  RopeConfig rope;
  rope.theta = top.number("rope_theta", 1, 1e12, 10000.0);
  // transformers 5 writes rope_parameters (theta inside), older versions rope_scaling.
  const char* key = top.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!top.has(key)) return rope;
  const Json& object = top.json()[key];
  if (!object.is_object()) return input_error(fmt::format("{}: {}: expected an object, found {}", top.where(), key, shown(object)));
  Fields f(object, top.where() + ": " + key);
  rope.theta = f.number("rope_theta", 1, 1e12, rope.theta);
  std::string type = f.text("rope_type", f.text("type", "default"));
  if (type == "default") rope.type = RopeType::kDefault;
  else if (type == "linear") rope.type = RopeType::kLinear;
  else if (type == "llama3") rope.type = RopeType::kLlama3;
  else if (type == "yarn") rope.type = RopeType::kYarn;
  else return input_error(fmt::format("{}: {}: rope type \"{}\" is not supported (default, linear, llama3, yarn)", top.where(), key, type));
  if (rope.type != RopeType::kDefault) rope.factor = f.number("factor", 1e-3, 1e6);
  int64_t max_position = top.integer("max_position_embeddings", 1, int64_t{1} << 32, 2048);
  rope.original_max_position = f.integer("original_max_position_embeddings", 1, int64_t{1} << 32, max_position);
  if (rope.type == RopeType::kLlama3) {
    rope.low_freq_factor = f.number("low_freq_factor", 1e-6, 1e6);
    rope.high_freq_factor = f.number("high_freq_factor", 1e-6, 1e6);
    if (rope.high_freq_factor <= rope.low_freq_factor)
      f.fail(
          fmt::format("{}: high_freq_factor {} must be above low_freq_factor {}", f.where(), rope.high_freq_factor, rope.low_freq_factor));
  }
  if (rope.type == RopeType::kYarn) {
    rope.beta_fast = f.number("beta_fast", 1e-6, 1e6, 32.0);
    rope.beta_slow = f.number("beta_slow", 1e-6, 1e6, 1.0);
    rope.truncate = f.boolean("truncate", true);
    rope.attention_factor = f.optional_number("attention_factor", 1e-6, 1e6);
    rope.attn_factor = f.optional_number("attn_factor", 1e-6, 1e6);
    rope.mscale = f.optional_number("mscale", 0, 1e6);
    rope.mscale_all_dim = f.optional_number("mscale_all_dim", 0, 1e6);
  }
  if (f.error()) return *f.error();
  return rope;
}

// AWQ: 4 bits, packed for its "gemm" kernel.
QuantConfig read_awq(Fields& f) {
  QuantConfig q{.method = QuantConfig::Method::kAwq};
  q.bits = static_cast<int>(f.integer(f.has("w_bit") ? "w_bit" : "bits", 1, 64, 4));
  if (q.bits != 4) f.fail(fmt::format("{}: bits: AWQ has 4, found {}", f.where(), q.bits));
  q.group = f.integer(f.has("q_group_size") ? "q_group_size" : "group_size", -1, 1 << 24, 128);
  q.symmetric = false;
  std::string version = f.text("version", "gemm");
  for (char& c : version) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (version != "gemm")
    f.fail(fmt::format("{}: version: expected \"gemm\", found \"{}\"; it packs weights differently, use the gemm checkpoint", f.where(),
                       version));
  if (!f.boolean("zero_point", true)) f.fail(fmt::format("{}: zero_point: expected true, found false", f.where()));
  return q;
}

QuantConfig read_gptq(Fields& f) {
  QuantConfig q{.method = QuantConfig::Method::kGptq};
  q.bits = static_cast<int>(f.integer("bits", 1, 64));
  if (q.bits != 4 && q.bits != 8) f.fail(fmt::format("{}: bits: expected 4 or 8, found {}", f.where(), q.bits));
  q.group = f.integer("group_size", -1, 1 << 24, 128);
  q.symmetric = f.boolean("sym", true);
  q.act_order = f.boolean("desc_act", false);
  const std::string format = f.text("checkpoint_format", "gptq");
  if (format != "gptq" && format != "gptq_v2")
    f.fail(fmt::format("{}: checkpoint_format: expected \"gptq\" or \"gptq_v2\", found \"{}\"", f.where(), format));
  q.zero_minus_one = format == "gptq";
  return q;
}

// The tensors tell bits and groups of each matrix; `bits` here is only what planning without them assumes.
QuantConfig read_compressed_tensors(Fields& f) {
  QuantConfig q{.method = QuantConfig::Method::kCompressedTensors};
  constexpr const char* kKnown[] = {"dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"};
  const std::string format = f.text("format", "dense");
  if (std::find(std::begin(kKnown), std::end(kKnown), format) == std::end(kKnown))
    f.fail(fmt::format("{}: format: expected pack-quantized, int-quantized or float-quantized, found \"{}\"", f.where(), format));
  if (f.has("sparsity_config") && f.json()["sparsity_config"].is_object()) {
    Fields sparsity(f.json()["sparsity_config"], f.where() + ": sparsity_config");
    const std::string kind = sparsity.text("format", "dense");
    if (kind != "dense") sparsity.fail(fmt::format("{}: format: expected \"dense\", found \"{}\"", sparsity.where(), kind));
    if (sparsity.error()) f.fail(sparsity.error()->message);
  }
  q.bits = format == "pack-quantized" ? 4 : format == "dense" ? 16 : 8;
  return q;
}

Result<QuantConfig> read_quantization(const Json& json, const std::string& origin, std::string* method) {
  if (!json.is_object()) return input_error(fmt::format("{}: quantization_config: expected an object, found {}", origin, shown(json)));
  Fields f(json, origin + ": quantization_config");
  QuantConfig q;
  *method = f.text("quant_method", "");
  if (*method == "fp8") {
    q.method = QuantConfig::Method::kFp8;
    if (f.has("weight_block_size")) {
      const Json& size = json["weight_block_size"];
      if (size != Json::array({128, 128}) && size != Json::array({32, 32}))
        f.fail(fmt::format("{}: weight_block_size: expected [128,128] or [32,32], found {}", f.where(), shown(size)));
    }
  } else if (*method == "awq") {
    q = read_awq(f);
  } else if (*method == "gptq") {
    q = read_gptq(f);
  } else if (*method == "compressed-tensors") {
    q = read_compressed_tensors(f);
  } else {
    f.fail(
        fmt::format("{}: quant_method: expected \"fp8\", \"awq\", \"gptq\" or \"compressed-tensors\", found \"{}\"; use the bf16 or "
                    "FP8 checkpoint",
                    f.where(), *method));
  }
  const bool grouped = q.method == QuantConfig::Method::kAwq || q.method == QuantConfig::Method::kGptq;
  if (grouped && q.group != -1 && (q.group <= 0 || q.group % 32 != 0))
    f.fail(fmt::format("{}: group_size: expected -1 or a multiple of 32, found {}", f.where(), q.group));
  if (f.error()) return *f.error();
  return q;
}

}  // namespace

Result<ModelConfig> parse_model_config(const Json& json, const std::string& origin) {
  if (!json.is_object()) return input_error(fmt::format("{}: expected a JSON object, found {}", origin, shown(json)));
  Fields f(json, origin);
  ModelConfig c;
  c.origin = origin;
  if (!f.has("architectures") || !json["architectures"].is_array() || json["architectures"].empty() ||
      !json["architectures"][0].is_string())
    return input_error(fmt::format("{}: architectures: expected a list with one name such as [\"DeepseekV3ForCausalLM\"], found {}", origin,
                                   f.has("architectures") ? shown(json["architectures"]) : "nothing"));
  c.architecture = json["architectures"][0].get<std::string>();
  c.model_type = f.text("model_type", "");
  c.dtype = f.text("torch_dtype", f.text("dtype", ""));
  constexpr int64_t kWide = 1 << 20;
  c.hidden = f.integer("hidden_size", 1, kWide);
  c.intermediate = f.integer("intermediate_size", 1, kWide);
  c.layers = f.integer("num_hidden_layers", 1, 1000);
  c.heads = f.integer("num_attention_heads", 1, 4096);
  c.kv_heads = f.integer("num_key_value_heads", 1, 4096, c.heads);
  c.head_dim = f.integer("head_dim", 1, 4096, std::max<int64_t>(1, c.hidden / c.heads));
  c.vocab = f.integer("vocab_size", 1, 1 << 24);
  c.max_position = f.integer("max_position_embeddings", 1, int64_t{1} << 32, 2048);
  c.rms_eps = static_cast<float>(f.number("rms_norm_eps", 0, 1, 1e-6));
  c.tie_embeddings = f.boolean("tie_word_embeddings", false);
  c.attention_bias = f.boolean("attention_bias", false);
  c.mlp_bias = f.boolean("mlp_bias", false);
  std::string activation = f.text("hidden_act", "silu");
  if (activation != "silu") f.fail(fmt::format("{}: hidden_act: expected \"silu\", found \"{}\"", origin, activation));
  if (f.boolean("use_sliding_window", false))
    f.fail(fmt::format("{}: use_sliding_window: sliding-window attention is not supported", origin));
  if (c.heads % c.kv_heads != 0)
    f.fail(fmt::format("{}: num_key_value_heads {} does not divide num_attention_heads {}", origin, c.kv_heads, c.heads));

  if (f.has("kv_lora_rank")) {
    c.mla.q_lora = f.integer("q_lora_rank", 1, kWide, 0);
    c.mla.kv_lora = f.integer("kv_lora_rank", 1, 65536);
    c.mla.nope = f.integer("qk_nope_head_dim", 1, 65536);
    c.mla.rope = f.integer("qk_rope_head_dim", 2, 65536);
    c.mla.v_dim = f.integer("v_head_dim", 1, 65536);
    if (c.mla.rope % 2) f.fail(fmt::format("{}: qk_rope_head_dim: expected an even number, found {}", origin, c.mla.rope));
  } else if (c.head_dim % 2) {
    f.fail(fmt::format("{}: head_dim: expected an even number, found {}", origin, c.head_dim));
  }
  if (f.has("n_routed_experts")) {
    c.moe.experts = f.integer("n_routed_experts", 1, 65536);
    c.moe.shared = f.integer("n_shared_experts", 0, 1024, 0);
    c.moe.top_k = f.integer("num_experts_per_tok", 1, c.moe.experts);
    c.moe.intermediate = f.integer("moe_intermediate_size", 1, kWide);
    c.moe.first_dense = f.integer("first_k_dense_replace", 0, 1000, 0);
    c.moe.layer_freq = f.integer("moe_layer_freq", 1, 1000, 1);
    c.moe.groups = f.integer("n_group", 1, c.moe.experts, 1);
    c.moe.top_groups = f.integer("topk_group", 1, c.moe.groups, 1);
    c.moe.normalise = f.boolean("norm_topk_prob", false);
    c.moe.routed_scale = static_cast<float>(f.number("routed_scaling_factor", -1e6, 1e6, 1.0));
    c.moe.topk_method = f.text("topk_method", "");
    c.moe.scoring = f.text("scoring_func", "");
    if (!f.error() && c.moe.experts % c.moe.groups != 0)
      f.fail(fmt::format("{}: n_group {} does not divide n_routed_experts {}", origin, c.moe.groups, c.moe.experts));
    if (!f.error() && c.moe.experts / c.moe.groups * c.moe.top_groups < c.moe.top_k)
      f.fail(fmt::format("{}: num_experts_per_tok {} exceeds the {} experts of topk_group {} groups", origin, c.moe.top_k,
                         c.moe.experts / c.moe.groups * c.moe.top_groups, c.moe.top_groups));
  }
  c.mtp_modules = f.integer("num_nextn_predict_layers", 0, 64, 0);
  if (f.has("quantization_config")) {
    DG_ASSIGN(c.quantization, read_quantization(json["quantization_config"], origin, &c.quant_method));
  }
  c.eos = f.ids("eos_token_id");
  std::vector<int64_t> bos = f.ids("bos_token_id");
  if (!bos.empty()) c.bos = bos[0];
  if (f.error()) return *f.error();
  DG_ASSIGN(c.rope, read_rope(f));
  if (f.error()) return *f.error();
  return c;
}

Result<ModelConfig> read_model_config(const std::string& directory) {
  DG_ASSIGN(std::vector<std::string> gguf, find_gguf_files(directory));
  if (!gguf.empty()) {
    DG_ASSIGN(GgufModel model, open_gguf(gguf));
    return gguf_model_config(model);
  }
  std::string path = directory + "/config.json";
  DG_ASSIGN(Json json, read_json_file(path, {.max_bytes = size_t{16} << 20, .max_depth = 32}));
  return parse_model_config(json, path);
}

Result<GenerationConfig> read_generation_config(const std::string& directory) {
  DG_ASSIGN(std::vector<std::string> gguf, find_gguf_files(directory));
  if (!gguf.empty()) {
    DG_ASSIGN(GgufModel model, open_gguf(gguf));
    return gguf_generation_config(model);
  }
  GenerationConfig g;
  std::string path = directory + "/generation_config.json";
  if (!file_exists(path)) return g;
  DG_ASSIGN(Json json, read_json_file(path, {.max_bytes = size_t{1} << 20, .max_depth = 32}));
  if (!json.is_object()) return input_error(fmt::format("{}: expected a JSON object, found {}", path, shown(json)));
  Fields f(json, path);
  g.temperature = f.optional_number("temperature", 0, 100);
  g.top_p = f.optional_number("top_p", 0, 1);
  g.min_p = f.optional_number("min_p", 0, 1);
  g.repetition_penalty = f.optional_number("repetition_penalty", 1e-3, 100);
  if (f.has("top_k")) g.top_k = f.integer("top_k", 0, 1 << 24);
  if (f.has("do_sample")) g.do_sample = f.boolean("do_sample", true);
  g.eos = f.ids("eos_token_id");
  if (f.error()) return *f.error();
  return g;
}

}  // namespace dg
