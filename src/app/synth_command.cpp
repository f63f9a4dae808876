// `dougong synth CONFIG OUT`: writes a checkpoint with random weights of any supported config.json, for benchmarks and
// memory tests, as safetensors or as one GGUF file; GGUF also from the weights of a checkpoint. Random matrices are normal
// with standard deviation 1/sqrt(in), so activations keep their size through the layers.
#include <fmt/core.h>

#include <cmath>
#include <filesystem>

#include "app/commands.h"
#include "app/model_options.h"
#include "app/synth_gguf.h"
#include "app/synth_weights.h"
#include "app/terminal.h"
#include "backends/dry/dry.h"
#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"
#include "io/gguf.h"
#include "io/safetensors.h"
#include "model/model.h"
#include "quant/bf16.h"
#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/fp8_block.h"

namespace dg {
namespace {

constexpr int64_t kShardBytes = int64_t{1} << 30;

struct Shard {
  std::vector<std::vector<std::byte>> storage;
  std::vector<TensorToWrite> tensors;
  int64_t bytes = 0;

  void add(std::string name, Dtype dtype, std::vector<int64_t> shape, std::vector<std::byte> data) {
    bytes += static_cast<int64_t>(data.size());
    storage.push_back(std::move(data));
    tensors.push_back({std::move(name), dtype, std::move(shape), storage.back()});
  }
};

void add_matrix(Shard& shard, const WeightStore::Declared& t, Normal& normal) {
  float scale = 1 / std::sqrt(static_cast<float>(t.in));
  auto count = static_cast<size_t>(t.out * t.in);
  if (t.format == &kFp8BlockFormat) {
    std::vector<std::byte> data(count);
    for (auto& b : data) b = std::byte{float_to_e4m3(normal.next() * 64)};
    std::vector<float> scales(static_cast<size_t>(kFp8BlockFormat.scale_row_count(t.out) * kFp8BlockFormat.scale_col_count(t.in)),
                              scale / 64);
    std::vector<int64_t> shape{kFp8BlockFormat.scale_row_count(t.out), kFp8BlockFormat.scale_col_count(t.in)};
    auto bytes = std::as_bytes(std::span(scales));
    shard.add(t.name, Dtype::kF8E4m3, {t.out, t.in}, std::move(data));
    shard.add(t.name + "_scale_inv", Dtype::kF32, shape, {bytes.begin(), bytes.end()});
    return;
  }
  std::vector<std::byte> data(count * 2);
  auto* out = reinterpret_cast<uint16_t*>(data.data());
  for (size_t i = 0; i < count; i++) out[i] = float_to_bf16(normal.next() * scale);
  shard.add(t.name, Dtype::kBf16, {t.out, t.in}, std::move(data));
}

void add_vector(Shard& shard, const WeightStore::Declared& t) {
  bool is_bias = t.name.ends_with("bias");
  std::vector<std::byte> data(static_cast<size_t>(t.in) * 2);
  auto* out = reinterpret_cast<uint16_t*>(data.data());
  for (int64_t i = 0; i < t.in; i++) out[i] = float_to_bf16(is_bias ? 0.0f : 1.0f);
  shard.add(t.name, Dtype::kBf16, {t.in}, std::move(data));
}

// --format gguf: one file, weights random or from the checkpoint --from.
Result<int> synth_gguf(const Options& options, const ModelConfig& config, const std::string& out) {
  const std::string name = options.given("quantization") ? options.text("quantization") : "bf16";
  const Format* format = find_format(name);
  if (!format || !ggml_type_of(*format)) {
    std::string known;
    for (const Format* f : all_formats())
      if (ggml_type_of(*f)) known += (known.empty() ? "" : ", ") + std::string(f->name);
    return input_error(fmt::format("--quantize: expected one of {} for GGUF, found \"{}\"", known, name));
  }
  if (file_exists(out) && !options.flag("force"))
    return input_error(fmt::format("{}: exists already; choose another file or pass --force", out));
  if (directory_exists(out)) return input_error(fmt::format("{}: is a directory; expected the name of the .gguf file to write", out));
  GgufVocabulary vocabulary = byte_gguf_vocabulary(config.vocab);
  GenerationConfig generation;
  if (options.given("tokenizer")) {
    DG_ASSIGN(vocabulary, read_gguf_vocabulary(options.text("tokenizer"), config.vocab));
    DG_ASSIGN(generation, read_generation_config(options.text("tokenizer")));
  } else if (static_cast<int64_t>(vocabulary.tokens.size()) > config.vocab) {
    return input_error(fmt::format("{}: vocab_size: expected at least {} for a vocabulary of bytes, found {}; pass --tokenizer",
                                   config.origin, vocabulary.tokens.size(), config.vocab));
  }
  std::unique_ptr<TensorIndex> index;
  std::unique_ptr<WeightRows> weights = std::make_unique<RandomWeightRows>(static_cast<uint64_t>(options.integer("seed")));
  if (options.given("from")) {
    DG_ASSIGN(TensorIndex opened, TensorIndex::open(options.text("from")));
    index = std::make_unique<TensorIndex>(std::move(opened));
    weights = std::make_unique<CheckpointWeightRows>(*index);
  }
  DG_ASSIGN(
      GgufExportResult written,
      export_gguf(
          {.config = config, .weights = *weights, .vocabulary = vocabulary, .format = format, .path = out, .generation = &generation}));
  print_output(fmt::format("{}: {} tensors, {:.2f} GB\n", out, written.tensors, static_cast<double>(written.bytes) / 1e9));
  return 0;
}

}  // namespace

Result<int> run_synth(const Options& options) {
  std::string source = options.arguments()[0], out = options.arguments()[1];
  std::string config_path = directory_exists(source) ? source + "/config.json" : source;
  DG_ASSIGN(std::string config_text, read_file(config_path, size_t{16} << 20));
  DG_ASSIGN(Json json, parse_json(config_text, config_path));
  DG_ASSIGN(ModelConfig config, parse_model_config(json, config_path));
  if (options.text("format") == "gguf") return synth_gguf(options, config, out);
  if (options.given("quantization") || options.given("from"))
    return input_error("--quantize and --from go with --format gguf: safetensors are written in bf16, or FP8 when config.json says so");
  std::error_code failed;
  std::filesystem::create_directories(out, failed);
  if (failed) return io_error(fmt::format("{}: cannot be created: {}", out, failed.message()));
  if (std::filesystem::exists(out + "/config.json") && !options.flag("force"))
    return input_error(fmt::format("{}: holds a model already; choose another directory or pass --force", out));

  DryBackend dry;
  WeightStore store(dry, nullptr, {}, config.quant_method == "fp8" ? &kFp8BlockFormat : &kBf16);
  DG_ASSIGN(std::unique_ptr<Model> model, make_model(config, store));
  (void)model;
  Normal normal(static_cast<uint64_t>(options.integer("seed")));
  Progress progress("writing weights", static_cast<uint64_t>(store.bytes()));
  SortedJson weight_map = SortedJson::object();
  std::vector<std::string> names;
  Shard shard;
  int64_t total = 0;
  auto flush = [&]() -> Result<void> {
    if (shard.tensors.empty()) return {};
    std::string name = fmt::format("model-{:05}.safetensors", names.size() + 1);
    DG_TRY(write_safetensors(out + "/" + name, shard.tensors));
    for (const TensorToWrite& t : shard.tensors) weight_map[t.name] = name;
    names.push_back(name);
    total += shard.bytes;
    progress.add(static_cast<uint64_t>(shard.bytes));
    shard = {};
    return {};
  };
  for (const WeightStore::Declared& t : store.declared()) {
    if (shard.bytes > kShardBytes) DG_TRY(flush());
    if (t.is_vector) add_vector(shard, t);
    else add_matrix(shard, t, normal);
  }
  DG_TRY(flush());
  SortedJson index{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(weight_map)}};
  DG_TRY(write_file(out + "/model.safetensors.index.json", index.dump()));
  if (options.given("tokenizer")) {
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"})
      if (std::string from = options.text("tokenizer") + "/" + name; file_exists(from)) {
        DG_ASSIGN(std::string content, read_file(from, size_t{256} << 20));
        DG_TRY(write_file(out + "/" + name, content));
      }
  }
  DG_TRY(write_file(out + "/config.json", config_text));  // last: a half-written checkpoint is not a model
  progress.finish();
  print_output(
      fmt::format("{}: {} tensors in {} files, {:.2f} GB\n", out, store.declared().size(), names.size(), static_cast<double>(total) / 1e9));
  return 0;
}

}  // namespace dg
