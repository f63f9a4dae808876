#include "io/gguf_names.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "io/safetensors.h"
#include "quant/bf16.h"
#include "quant/f32.h"

namespace dg {
namespace {

struct NamePair {
  std::string_view gguf, hf;
};

constexpr NamePair kGlobal[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
    // Divisors of the rotary frequencies (Llama 3): read by the configuration, and passed over by the weight store as all
    // names with rotary_emb.inv_freq are.
    {"rope_freqs.weight", "model.rotary_emb.inv_freq_divisors"},
};

// Behind "blk.N." and "model.layers.N.", without ".weight" or ".bias".
constexpr NamePair kLayer[] = {
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_q_a", "self_attn.q_a_proj"},
    {"attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"attn_q_b", "self_attn.q_b_proj"},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"attn_kv_b", "self_attn.kv_b_proj"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj"},
    {"nextn.eh_proj", "eh_proj"},
    {"nextn.enorm", "enorm"},
    {"nextn.hnorm", "hnorm"},
    {"nextn.embed_tokens", "embed_tokens"},
    {"nextn.shared_head_head", "shared_head.head"},
    {"nextn.shared_head_norm", "shared_head.norm"},
};
constexpr NamePair kCorrectionBias{"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"};
constexpr NamePair kExperts[] = {{"ffn_gate_exps", "gate_proj"}, {"ffn_up_exps", "up_proj"}, {"ffn_down_exps", "down_proj"}};
constexpr std::string_view kGateUpExperts = "ffn_gate_up_exps";

// "prefix" + number + "." + rest.
struct LayerName {
  int layer = -1;
  std::string_view rest;
};
LayerName layer_name(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return {};
  name.remove_prefix(prefix.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const auto digits = static_cast<size_t>(end - name.data());
  if (error != std::errc() || layer < 0 || layer > 99999 || digits >= name.size() || name[digits] != '.') return {};
  return {layer, name.substr(digits + 1)};
}

// Splits ".weight" or ".bias" off.
std::string_view stem_of(std::string_view name, std::string_view* suffix) {
  for (std::string_view ending : {".weight", ".bias"})
    if (name.ends_with(ending)) {
      *suffix = ending;
      return name.substr(0, name.size() - ending.size());
    }
  *suffix = {};
  return name;
}

std::optional<std::string> translate(std::string_view name, bool to_hf) {
  auto from = [&](const NamePair& p) { return to_hf ? p.gguf : p.hf; };
  auto to = [&](const NamePair& p) { return to_hf ? p.hf : p.gguf; };
  for (const NamePair& p : kGlobal)
    if (name == from(p)) return std::string(to(p));
  const LayerName layer = layer_name(name, to_hf ? "blk." : "model.layers.");
  if (layer.layer < 0) return std::nullopt;
  const std::string prefix = fmt::format("{}{}.", to_hf ? "model.layers." : "blk.", layer.layer);
  if (layer.rest == from(kCorrectionBias)) return prefix + std::string(to(kCorrectionBias));
  std::string_view suffix;
  const std::string_view stem = stem_of(layer.rest, &suffix);
  for (const NamePair& p : kLayer)
    if (stem == from(p) && !suffix.empty()) return prefix + std::string(to(p)) + std::string(suffix);
  return std::nullopt;
}

class GgufTensorReader {
 public:
  explicit GgufTensorReader(const GgufModel& model) : model_(model) {}

  Result<std::vector<TensorInfo>> run() {
    DG_TRY(read_architecture());
    for (size_t f = 0; f < model_.headers.size(); f++)
      for (const GgufTensor& t : model_.headers[f].tensors) DG_TRY(add(static_cast<int>(f), t));
    DG_TRY(join_kv_b());
    std::stable_sort(infos_.begin(), infos_.end(),
                     [](const TensorInfo& a, const TensorInfo& b) { return std::pair(a.file, a.offset) < std::pair(b.file, b.offset); });
    return std::move(infos_);
  }

 private:
  struct Halves {  // attn_k_b and attn_v_b of one layer
    const GgufTensor* half[2] = {nullptr, nullptr};
    int file[2] = {0, 0};
    bool whole = false;  // attn_kv_b is there: the halves are copies of it
  };

  Error error(int file, const GgufTensor& t, std::string_view what) const {
    return input_error(fmt::format("{}: tensor {}: {}", model_.paths[static_cast<size_t>(file)], t.name, what));
  }

  // Only the converter of the llama architecture permutes the rows of q and k.
  Result<void> read_architecture() {
    const GgufValue* name = model_.find("general.architecture");
    if (!name || name->is_array() || !name->text())
      return input_error(fmt::format("{}: general.architecture: expected a string such as \"deepseek2\", found {}", model_.path(),
                                     name ? name->describe() : "nothing"));
    if (*name->text() != "llama") return {};
    for (int i = 0; i < 2; i++) {
      const std::string key = i == 0 ? "llama.attention.head_count" : "llama.attention.head_count_kv";
      const GgufValue* value = model_.find(key);
      if (!value && i == 1) {
        heads_[1] = heads_[0];
        continue;
      }
      const std::optional<int64_t> heads = value && !value->is_array() ? value->integer() : std::nullopt;
      if (!heads || *heads < 1 || *heads > 4096)
        return input_error(
            fmt::format("{}: {}: expected a number from 1 to 4096, found {}", model_.path(), key, value ? value->describe() : "nothing"));
      heads_[i] = *heads;
    }
    return {};
  }

  static void set_type(TensorInfo& info, const GgmlType& type) {
    info.dtype = type.dtype;
    if (type.block) info.format = type.format;
  }

  Result<void> add(int file, const GgufTensor& t) {
    const LayerName layer = layer_name(t.name, "blk.");
    if (layer.layer >= 0) {
      std::string_view suffix;
      const std::string_view stem = stem_of(layer.rest, &suffix);
      if (suffix == ".weight") {
        for (const NamePair& p : kExperts)
          if (stem == p.gguf) return add_experts(file, t, layer.layer, p.hf, 0, t.ne[1]);
        if (stem == kGateUpExperts) {
          if (t.ne[1] % 2 != 0) return error(file, t, fmt::format("expected an even number of rows, found {}", t.ne[1]));
          DG_TRY(add_experts(file, t, layer.layer, "gate_proj", 0, t.ne[1] / 2));
          return add_experts(file, t, layer.layer, "up_proj", t.ne[1] / 2, t.ne[1] / 2);
        }
        if (stem == "attn_k_b" || stem == "attn_v_b") {
          Halves& halves = halves_[layer.layer];
          const int which = stem == "attn_v_b";
          halves.half[which] = &t;
          halves.file[which] = file;
          return {};
        }
        if (stem == "attn_kv_b") halves_[layer.layer].whole = true;
      }
      if (heads_[0] > 0 && (stem == "attn_q" || stem == "attn_k")) return add_plain(file, t, heads_[stem == "attn_k"]);
    }
    return add_plain(file, t, 0);
  }

  Result<void> add_plain(int file, const GgufTensor& t, int64_t rotary_heads) {
    TensorInfo info;
    info.name = gguf_to_hf_name(t.name).value_or(t.name);
    set_type(info, *t.type);
    for (int d = t.dims; d-- > 0;) info.shape.push_back(t.ne[static_cast<size_t>(d)]);
    info.file = file;
    info.offset = t.offset;
    info.bytes = t.bytes;
    if (rotary_heads > 0) {
      const int64_t rows = t.dims == 1 ? t.ne[0] : t.ne[1];
      if (rows % rotary_heads != 0 || rows / rotary_heads % 2 != 0 || t.dims > 2)
        return error(file, t, fmt::format("expected an even number of rows for each of {} heads, found {} rows", rotary_heads, rows));
      if (t.dims == 1 && info.format) return error(file, t, fmt::format("expected a vector in F32, F16 or BF16, found {}", t.type->name));
      info.rotary_rows = rows / rotary_heads;
    }
    return push(file, t, std::move(info));
  }

  // Rows [first, first + rows) of every expert of the tensor (in, out, experts).
  Result<void> add_experts(int file, const GgufTensor& t, int layer, std::string_view projection, int64_t first, int64_t rows) {
    const int64_t experts = t.ne[2];
    if (t.ne[3] != 1 || experts > 65536)
      return error(file, t, fmt::format("expected (in, out, experts) with at most 65536 experts, found {} x {}", experts, t.ne[3]));
    const auto row_bytes = static_cast<uint64_t>(t.type->format->row_bytes(t.ne[0]));
    const uint64_t expert_bytes = row_bytes * static_cast<uint64_t>(t.ne[1]);
    for (int64_t e = 0; e < experts; e++) {
      TensorInfo info;
      info.name = fmt::format("model.layers.{}.mlp.experts.{}.{}.weight", layer, e, projection);
      set_type(info, *t.type);
      info.shape = {rows, t.ne[0]};
      info.file = file;
      info.offset = t.offset + static_cast<uint64_t>(e) * expert_bytes + static_cast<uint64_t>(first) * row_bytes;
      info.bytes = static_cast<uint64_t>(rows) * row_bytes;
      DG_TRY(push(file, t, std::move(info)));
    }
    return {};
  }

  Result<void> push(int file, const GgufTensor& t, TensorInfo info) {
    if (infos_.size() >= kMaxTensorsPerFile) return error(file, t, fmt::format("more than {} tensors and experts", kMaxTensorsPerFile));
    infos_.push_back(std::move(info));
    return {};
  }

  Result<void> join_kv_b() {
    for (const auto& [layer, halves] : halves_) {
      if (halves.whole) continue;  // the loader takes the whole one; its halves repeat it
      if (!halves.half[0] || !halves.half[1]) {
        const int there = halves.half[0] ? 0 : 1;
        return error(halves.file[there], *halves.half[there],
                     fmt::format("expected attn_{}_b beside it, found none", there == 0 ? "v" : "k"));
      }
      const GgufTensor &k = *halves.half[0], &v = *halves.half[1];
      const int64_t nope = k.ne[0], kv_lora = k.ne[1], heads = k.ne[2];
      if (v.ne[0] != kv_lora || v.ne[2] != heads || k.ne[3] != 1 || v.ne[3] != 1)
        return error(halves.file[1], v,
                     fmt::format("expected ({}, v, {}) as attn_k_b is ({}, {}, {}), found ({}, {}, {})", kv_lora, heads, nope, kv_lora,
                                 heads, v.ne[0], v.ne[1], v.ne[2]));
      TensorInfo info;
      info.name = fmt::format("model.layers.{}.self_attn.kv_b_proj.weight", layer);
      info.dtype = k.type->format == &kF32 && v.type->format == &kF32 ? Dtype::kF32 : Dtype::kBf16;
      int64_t rows = 0, elements = 0;
      if (__builtin_add_overflow(nope, v.ne[1], &rows) || __builtin_mul_overflow(rows, heads, &rows) ||
          __builtin_mul_overflow(rows, kv_lora, &elements) || elements > INT64_MAX / 8)
        return error(halves.file[1], v, "expected less than 2^60 elements");
      info.shape = {rows, kv_lora};
      info.file = halves.file[0];
      info.offset = k.offset;
      info.bytes = k.bytes + v.bytes;
      info.parts = {{halves.file[0], k.offset, k.bytes, k.type->format, kv_lora, nope},
                    {halves.file[1], v.offset, v.bytes, v.type->format, v.ne[1], kv_lora}};
      DG_TRY(push(halves.file[0], k, std::move(info)));
    }
    return {};
  }

  const GgufModel& model_;
  int64_t heads_[2] = {0, 0};  // of q and of k; 0: rows are not permuted
  std::vector<TensorInfo> infos_;
  std::map<int, Halves> halves_;
};

}  // namespace

std::optional<std::string> gguf_to_hf_name(std::string_view name) { return translate(name, true); }
std::optional<std::string> hf_to_gguf_name(std::string_view name) { return translate(name, false); }

Result<std::vector<TensorInfo>> gguf_tensor_infos(const GgufModel& model) { return GgufTensorReader(model).run(); }

}  // namespace dg
