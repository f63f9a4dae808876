#include "app/synth_gguf.h"

#include <fmt/core.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <thread>

#include "backends/dry/dry.h"
#include "base/progress.h"
#include "io/gguf_names.h"
#include "io/gguf_write.h"
#include "model/model.h"
#include "model/rope.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/formats.h"
#include "quant/q5_0.h"
#include "quant/q8_0.h"

namespace dg {
namespace {

constexpr int64_t kTaskFloats = 1 << 20;

struct GgufArchitecture {
  std::string_view hf, gguf;
};
constexpr GgufArchitecture kGgufArchitectures[] = {
    {"LlamaForCausalLM", "llama"},          {"Qwen2ForCausalLM", "qwen2"},          {"Qwen3ForCausalLM", "qwen3"},
    {"DeepseekV2ForCausalLM", "deepseek2"}, {"DeepseekV3ForCausalLM", "deepseek2"},
};

// llama_ftype of llama.h; readers only show it.
uint32_t file_type(const Format& format) {
  struct Row {
    std::string_view name;
    uint32_t id;
  };
  constexpr Row kRows[] = {{"f32", 0},   {"f16", 1},   {"q4_0", 2},    {"q4_1", 3},    {"q8_0", 7},
                           {"q5_0", 8},  {"q5_1", 9},  {"q2_k", 10},   {"q3_k", 11},   {"q4_k", 14},
                           {"q5_k", 16}, {"q6_k", 18}, {"iq4_nl", 25}, {"iq4_xs", 30}, {"bf16", 32}};
  for (const Row& row : kRows)
    if (row.name == format.name) return row.id;
  return 1;
}

// A tensor of the file and what its rows are made of.
struct OutTensor {
  enum class Kind { kRows, kRotary, kKeyHalf, kValueHalf, kValues };
  GgufTensorToWrite write;
  Kind kind = Kind::kRows;
  std::vector<std::string> sources;  // one, or the experts
  int64_t source_out = 0, source_in = 0;
  int64_t head_rows = 0;      // kRotary: of q or k; halves of kv_b: nope + v
  std::vector<float> values;  // kValues
};

class GgufExporter {
 public:
  explicit GgufExporter(const GgufExport& what) : what_(what), config_(what.config) {}

  Result<GgufExportResult> run() {
    for (const GgufArchitecture& a : kGgufArchitectures)
      if (config_.architecture == a.hf) architecture_ = a.gguf;
    if (architecture_.empty())
      return input_error(
          fmt::format("{}: architectures: expected Llama, Qwen2, Qwen3, DeepseekV2 or DeepseekV3ForCausalLM for GGUF, found \"{}\"",
                      config_.origin, config_.architecture));
    DG_TRY(list_tensors());
    add_metadata();
    std::vector<GgufTensorToWrite> list;
    uint64_t total = 0;
    for (const OutTensor& t : tensors_) {
      list.push_back(t.write);
      total += t.write.bytes();
    }
    DG_ASSIGN(GgufWriter writer, GgufWriter::create(what_.path, metadata_, std::move(list)));
    Progress progress("writing weights", total, {.silent = !what_.progress});
    DG_TRY(write_all(writer, progress));
    progress.finish();
    DG_TRY(writer.commit());
    return GgufExportResult{static_cast<int64_t>(tensors_.size()), writer.written()};
  }

 private:
  bool mla() const { return config_.mla.kv_lora > 0; }

  const Format* matrix_format(int64_t in) const {
    const Format* wanted = what_.format;
    if (in % wanted->pack_elements == 0) return wanted;
    if (in % 32 == 0) return wanted->pack_bytes < 200 ? &kQ50 : &kQ80;
    return &kF16;
  }

  Result<void> list_tensors() {
    DryBackend dry;
    WeightStore store(dry, nullptr, {}, &kBf16);
    DG_ASSIGN(std::unique_ptr<Model> model, make_model(config_, store));
    (void)model;
    for (const WeightStore::Declared& d : store.declared()) {
      if (const int layer = layer_of(d.name); layer >= config_.layers) continue;
      DG_TRY(list_tensor(d));
    }
    if (config_.rope.type == RopeType::kLlama3) list_rope_divisors();
    return {};
  }

  static int layer_of(const std::string& name) {
    constexpr std::string_view kPrefix = "model.layers.";
    return name.starts_with(kPrefix) ? std::atoi(name.c_str() + kPrefix.size()) : -1;
  }

  Result<void> list_tensor(const WeightStore::Declared& d) {
    OutTensor t;
    t.sources = {d.name};
    t.source_out = d.out;
    t.source_in = d.in;
    const std::string layer = fmt::format("blk.{}.", layer_of(d.name));
    if (const size_t at = d.name.find(".mlp.experts."); at != std::string::npos) {
      const size_t dot = d.name.find('.', at + 13);
      const int64_t expert = std::atoll(d.name.c_str() + at + 13);
      const std::string part = d.name.substr(dot + 1, d.name.find('_', dot) - dot - 1);  // gate, up, down
      const std::string name = layer + "ffn_" + part + "_exps.weight";
      if (expert > 0) {
        auto first = std::find_if(tensors_.rbegin(), tensors_.rend(), [&](const OutTensor& other) { return other.write.name == name; });
        CHECK(first != tensors_.rend() && static_cast<int64_t>(first->sources.size()) == expert) << d.name;
        first->sources.push_back(d.name);
        return {};
      }
      t.write = {name, matrix_format(d.in), {config_.moe.experts, d.out, d.in}};
      tensors_.push_back(std::move(t));
      return {};
    }
    if (d.name.ends_with("kv_b_proj.weight")) {
      const auto& m = config_.mla;
      t.head_rows = m.nope + m.v_dim;
      OutTensor v = t;
      t.kind = OutTensor::Kind::kKeyHalf;
      t.write = {layer + "attn_k_b.weight", matrix_format(m.nope), {config_.heads, m.kv_lora, m.nope}};
      v.kind = OutTensor::Kind::kValueHalf;
      v.write = {layer + "attn_v_b.weight", matrix_format(m.kv_lora), {config_.heads, m.v_dim, m.kv_lora}};
      tensors_.push_back(std::move(t));
      tensors_.push_back(std::move(v));
      return {};
    }
    const std::optional<std::string> name = hf_to_gguf_name(d.name);
    if (!name) return input_error(fmt::format("{}: tensor {} has no name in GGUF", config_.origin, d.name));
    const bool plain = d.is_vector || name->ends_with("ffn_gate_inp.weight");
    t.write = {*name, plain ? &kF32 : matrix_format(d.in), d.is_vector ? std::vector<int64_t>{d.in} : std::vector<int64_t>{d.out, d.in}};
    if (architecture_ == "llama" && (d.name.find(".q_proj.") != std::string::npos || d.name.find(".k_proj.") != std::string::npos)) {
      t.kind = OutTensor::Kind::kRotary;
      t.head_rows = config_.head_dim;
    }
    tensors_.push_back(std::move(t));
    return {};
  }

  void list_rope_divisors() {
    RopeConfig plain = config_.rope;
    plain.type = RopeType::kDefault;
    const std::vector<float> scaled = make_rope_table(config_.rope, config_.head_dim).inv_freq;
    const std::vector<float> original = make_rope_table(plain, config_.head_dim).inv_freq;
    OutTensor t;
    t.kind = OutTensor::Kind::kValues;
    for (size_t i = 0; i < scaled.size(); i++) t.values.push_back(original[i] / scaled[i]);
    t.source_out = 1;
    t.source_in = static_cast<int64_t>(t.values.size());
    t.write = {"rope_freqs.weight", &kF32, {t.source_in}};
    tensors_.push_back(std::move(t));
  }

  void u32(std::string_view key, int64_t value) {
    metadata_.add_u32(fmt::format("{}.{}", architecture_, key), static_cast<uint32_t>(value));
  }
  void f32(std::string_view key, double value) { metadata_.add_f32(fmt::format("{}.{}", architecture_, key), static_cast<float>(value)); }

  void add_metadata() {
    const ModelConfig& c = config_;
    metadata_.add_text("general.architecture", architecture_);
    metadata_.add_text("general.type", "model");
    metadata_.add_text("general.name", fmt::format("dougong {}", c.model_type));
    metadata_.add_u32("general.file_type", file_type(*what_.format));
    metadata_.add_u32("general.quantization_version", 2);
    u32("block_count", c.layers);
    u32("context_length", std::min<int64_t>(c.max_position, INT32_MAX));
    u32("embedding_length", c.hidden);
    u32("feed_forward_length", c.intermediate);
    u32("attention.head_count", c.heads);
    u32("vocab_size", c.vocab);
    f32("attention.layer_norm_rms_epsilon", c.rms_eps);
    f32("rope.freq_base", c.rope.theta);
    if (mla()) {
      u32("attention.head_count_kv", 1);  // absorbed attention: one latent key for all heads
      if (c.mla.q_lora > 0) u32("attention.q_lora_rank", c.mla.q_lora);
      u32("attention.kv_lora_rank", c.mla.kv_lora);
      u32("attention.key_length", c.mla.kv_lora + c.mla.rope);
      u32("attention.value_length", c.mla.kv_lora);
      u32("attention.key_length_mla", c.mla.nope + c.mla.rope);
      u32("attention.value_length_mla", c.mla.v_dim);
      u32("rope.dimension_count", c.mla.rope);
    } else {
      u32("attention.head_count_kv", c.kv_heads);
      u32("attention.key_length", c.head_dim);
      u32("attention.value_length", c.head_dim);
      u32("rope.dimension_count", c.head_dim);
    }
    if (architecture_ == "deepseek2") add_moe_metadata();
    add_rope_metadata();
    add_vocabulary();
    if (what_.generation) add_generation(*what_.generation);
  }

  void add_moe_metadata() {
    const auto& m = config_.moe;
    u32("leading_dense_block_count", m.experts > 0 ? m.first_dense : config_.layers);
    u32("expert_feed_forward_length", m.experts > 0 ? m.intermediate : config_.intermediate);
    u32("expert_shared_count", m.shared);
    if (m.experts == 0) return;
    u32("expert_count", m.experts);
    u32("expert_used_count", m.top_k);
    f32("expert_weights_scale", m.routed_scale);
    metadata_.add_bool(architecture_ + ".expert_weights_norm", m.normalise);
    u32("expert_gating_func", config_.architecture == "DeepseekV3ForCausalLM" ? 2 : 1);
    if (m.groups > 1) {
      u32("expert_group_count", m.groups);
      u32("expert_group_used_count", m.top_groups);
    }
  }

  void add_rope_metadata() {
    const RopeConfig& r = config_.rope;
    if (r.type != RopeType::kLinear && r.type != RopeType::kYarn) return;
    metadata_.add_text(architecture_ + ".rope.scaling.type", r.type == RopeType::kYarn ? "yarn" : "linear");
    f32("rope.scaling.factor", r.factor);
    if (r.type == RopeType::kLinear) return;
    u32("rope.scaling.original_context_length", r.original_max_position);
    f32("rope.scaling.yarn_beta_fast", r.beta_fast);
    f32("rope.scaling.yarn_beta_slow", r.beta_slow);
    if (r.mscale_all_dim.value_or(0) != 0) f32("rope.scaling.yarn_log_multiplier", 0.1 * *r.mscale_all_dim);
    const double m = yarn_mscale(r.factor, 1);
    if (r.attention_factor) f32("rope.scaling.attn_factor", *r.attention_factor / m);
    else if (r.attn_factor) f32("rope.scaling.attn_factor", *r.attn_factor);
  }

  void add_vocabulary() {
    const GgufVocabulary& v = what_.vocabulary;
    metadata_.add_text("tokenizer.ggml.model", "gpt2");
    metadata_.add_text("tokenizer.ggml.pre", v.pre);
    metadata_.add_texts("tokenizer.ggml.tokens", v.tokens);
    metadata_.add_i32s("tokenizer.ggml.token_type", v.types);
    metadata_.add_texts("tokenizer.ggml.merges", v.merges);
    auto id = [&](const char* key, const std::optional<int64_t>& value) {
      if (value) metadata_.add_u32(fmt::format("tokenizer.ggml.{}_token_id", key), static_cast<uint32_t>(*value));
    };
    id("bos", v.bos);
    id("eos", v.eos);
    id("padding", v.padding);
    if (v.add_bos) metadata_.add_bool("tokenizer.ggml.add_bos_token", *v.add_bos);
    if (v.add_eos) metadata_.add_bool("tokenizer.ggml.add_eos_token", *v.add_eos);
    if (!v.chat_template.empty()) metadata_.add_text("tokenizer.chat_template", v.chat_template);
  }

  void add_generation(const GenerationConfig& g) {
    if (g.temperature && g.do_sample.value_or(true)) metadata_.add_f32("general.sampling.temp", static_cast<float>(*g.temperature));
    if (g.top_p) metadata_.add_f32("general.sampling.top_p", static_cast<float>(*g.top_p));
    if (g.min_p) metadata_.add_f32("general.sampling.min_p", static_cast<float>(*g.min_p));
    if (g.top_k) metadata_.add_u32("general.sampling.top_k", static_cast<uint32_t>(*g.top_k));
    if (g.repetition_penalty) metadata_.add_f32("general.sampling.penalty_repeat", static_cast<float>(*g.repetition_penalty));
    for (int64_t id : g.eos)
      if (id >= 0 && id != what_.vocabulary.eos.value_or(-1)) {
        metadata_.add_u32("tokenizer.ggml.eot_token_id", static_cast<uint32_t>(id));
        break;  // GGUF has room for one end of turn beside the end of text
      }
  }

  // Rows [first, first + rows) of the part of `tensor` that source `source` makes (an expert, or a head of kv_b).
  struct Task {
    const OutTensor* tensor;
    size_t source;
    int64_t first, rows;
    Result<void> result{};
    std::vector<std::byte> bytes{};
  };

  std::vector<Task> tasks_of(const OutTensor& t) const {
    std::vector<Task> tasks;
    if (t.kind == OutTensor::Kind::kKeyHalf || t.kind == OutTensor::Kind::kValueHalf) {
      for (int64_t h = 0; h < config_.heads; h++) tasks.push_back({&t, static_cast<size_t>(h), 0, t.write.shape[1]});
      return tasks;
    }
    int64_t step = std::max<int64_t>(1, kTaskFloats / t.source_in);
    if (t.kind == OutTensor::Kind::kRotary) step = std::max<int64_t>(1, step / t.head_rows) * t.head_rows;
    for (size_t s = 0; s < std::max<size_t>(1, t.sources.size()); s++)
      for (int64_t r = 0; r < t.source_out; r += step) tasks.push_back({&t, s, r, std::min(step, t.source_out - r)});
    return tasks;
  }

  Result<void> run_task(Task& task) const {
    const OutTensor& t = *task.tensor;
    const int64_t in = t.source_in;
    std::vector<float> x;
    auto read = [&](const std::string& name, int64_t first, int64_t rows) {
      x.resize(static_cast<size_t>(rows * in));
      return what_.weights.rows(name, t.source_out, in, first, rows, x.data());
    };
    switch (t.kind) {
      case OutTensor::Kind::kValues: x = t.values; break;
      case OutTensor::Kind::kRows: DG_TRY(read(t.sources[task.source], task.first, task.rows)); break;
      case OutTensor::Kind::kRotary: {
        DG_TRY(read(t.sources[0], task.first, task.rows));
        // A vector's elements are permuted, else rows; pairs (i, i + n/2) of a head become neighbours.
        const bool vector = t.write.shape.size() == 1;
        const int64_t n = t.head_rows, width = vector ? 1 : in, count = vector ? in : task.rows;
        const std::vector<float> original = x;
        for (int64_t r = 0; r < count; r++) {
          const int64_t i = r % n, place = i < n / 2 ? 2 * i : 2 * (i - n / 2) + 1;
          std::copy_n(original.data() + r * width, width, x.data() + (r - i + place) * width);
        }
        break;
      }
      case OutTensor::Kind::kKeyHalf: {
        const int64_t nope = config_.mla.nope;
        DG_TRY(read(t.sources[0], static_cast<int64_t>(task.source) * t.head_rows, nope));
        std::vector<float> turned(x.size());
        for (int64_t r = 0; r < nope; r++)
          for (int64_t c = 0; c < in; c++) turned[static_cast<size_t>(c * nope + r)] = x[static_cast<size_t>(r * in + c)];
        x = std::move(turned);
        break;
      }
      case OutTensor::Kind::kValueHalf:
        DG_TRY(read(t.sources[0], static_cast<int64_t>(task.source) * t.head_rows + config_.mla.nope, config_.mla.v_dim));
        break;
    }
    const int64_t width = t.write.shape.back(), rows = static_cast<int64_t>(x.size()) / width;
    task.bytes.resize(static_cast<size_t>(t.write.format->data_bytes(rows, width)));
    t.write.format->encode(x.data(), rows, width, task.bytes.data(), nullptr);
    return {};
  }

  // Tasks are computed a window at a time by all threads and written in order.
  Result<void> write_all(GgufWriter& writer, Progress& progress) const {
    const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
    const size_t threads = what_.threads > 0 ? static_cast<size_t>(what_.threads) : cores;
    std::vector<Task> window;
    auto flush = [&]() -> Result<void> {
      std::atomic<size_t> next{0};
      auto work = [&] {
        for (size_t i; (i = next.fetch_add(1)) < window.size();) window[i].result = run_task(window[i]);
      };
      std::vector<std::thread> helpers;
      for (size_t i = 1; i < std::min(threads, window.size()); i++) helpers.emplace_back(work);
      work();
      for (std::thread& helper : helpers) helper.join();
      for (const Task& task : window) {
        if (!task.result.ok()) return task.result;
        DG_TRY(writer.write(task.bytes));
        progress.add(task.bytes.size());
      }
      window.clear();
      return {};
    };
    for (const OutTensor& t : tensors_)
      for (Task& task : tasks_of(t)) {
        window.push_back(std::move(task));
        if (window.size() >= threads * 8) DG_TRY(flush());
      }
    return flush();
  }

  const GgufExport& what_;
  const ModelConfig& config_;
  std::string architecture_;
  std::vector<OutTensor> tensors_;
  GgufMetadata metadata_;
};

}  // namespace

Result<GgufExportResult> export_gguf(const GgufExport& what) { return GgufExporter(what).run(); }

}  // namespace dg
