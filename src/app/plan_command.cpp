// `dougong plan MODEL`: bytes and operations of a prefill and of a decode step, counted by running the model's forward
// on the dry backend. Needs config.json; uses the headers of the weight files when they are there.
#include <fmt/core.h>

#include <cstdio>
#include <filesystem>

#include "app/commands.h"
#include "app/model_options.h"
#include "base/json.h"
#include "io/tensor_index.h"
#include "model/weight_source.h"
#include "plan/sizing.h"
#include "quant/panel.h"

namespace dg {
namespace {

struct Step {
  const char* name;
  StepShape shape;
  StepCost cost;
};

std::string bytes_text(double bytes) {
  if (bytes >= 1e9) return fmt::format("{:.2f} GB", bytes / 1e9);
  if (bytes >= 1e6) return fmt::format("{:.2f} MB", bytes / 1e6);
  if (bytes >= 1e3) return fmt::format("{:.2f} KB", bytes / 1e3);
  return fmt::format("{:.0f} B", bytes);
}
std::string flops_text(double flops) {
  return flops >= 1e12  ? fmt::format("{:.2f} TFLOP", flops / 1e12)
         : flops >= 1e9 ? fmt::format("{:.2f} GFLOP", flops / 1e9)
                        : fmt::format("{:.2f} MFLOP", flops / 1e6);
}

void print_step(const Step& step) {
  fmt::print("\n{}: {} tokens in {} sequence{}, context {}\n", step.name, step.shape.tokens, step.shape.sequences,
             step.shape.sequences == 1 ? "" : "s", step.shape.kv_len);
  fmt::print("  {:<16}{:>8}{:>14}{:>14}{:>14}{:>16}\n", "operation", "calls", "weights", "KV cache", "activations", "operations");
  auto row = [](const std::string& name, int64_t calls, const Cost& c) {
    fmt::print("  {:<16}{:>8}{:>14}{:>14}{:>14}{:>16}\n", name, calls, bytes_text(c.weight_bytes), bytes_text(c.kv_bytes),
               bytes_text(c.activation_bytes), flops_text(c.flops));
  };
  int64_t calls = 0;
  for (const auto& [name, op] : step.cost.by_op) {
    row(name, op.calls, op.cost);
    calls += op.calls;
  }
  row("total", calls, step.cost.total);
}

Json cost_json(const Cost& c) {
  return {{"weight_bytes", c.weight_bytes}, {"kv_bytes", c.kv_bytes}, {"activation_bytes", c.activation_bytes}, {"flops", c.flops}};
}

Json step_json(const Step& step) {
  Json ops = Json::object();
  for (const auto& [name, op] : step.cost.by_op) {
    ops[name] = cost_json(op.cost);
    ops[name]["calls"] = op.calls;
  }
  return {{"tokens", step.shape.tokens},          {"sequences", step.shape.sequences},   {"context", step.shape.kv_len},
          {"arena_bytes", step.cost.arena_bytes}, {"total", cost_json(step.cost.total)}, {"operations", ops}};
}

// Whether a checkpoint's weights lie beside its config.json.
bool has_weight_files(const std::string& directory) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(directory, ignored))
    if (entry.path().extension() == ".safetensors" || entry.path().filename() == "model.safetensors.index.json") return true;
  return false;
}

}  // namespace

Result<int> run_plan(const Options& options) {
  OpenOptions open = open_options(options);
  DG_ASSIGN(std::string name, model_argument(options));
  DG_ASSIGN(std::string path, resolve_model(name));
  DG_ASSIGN(WeightPolicy policy, weight_policy(open));
  DG_ASSIGN(Dtype kv_dtype, kv_cache_dtype(open));
  DG_ASSIGN(ModelConfig config, read_model_config(path));
  // Of several ranks the first; the others have as much, give or take a block.
  config.parallel = {.size = open.tensor_parallel, .whole_experts = open.expert_parallel && config.moe.experts > 0};
  std::unique_ptr<TensorIndex> index;
  if (has_weight_files(path)) {
    DG_ASSIGN(TensorIndex opened, TensorIndex::open(path));
    index = std::make_unique<TensorIndex>(std::move(opened));
  }
  DryBackend dry(panel_bytes);
  WeightStore store(dry, index.get(), policy, &assumed_format(config.quantization));
  DG_ASSIGN(std::unique_ptr<Model> model, make_model(config, store));
  DG_TRY(store.bind_dry());
  CacheLayout layout;
  model->register_cache(layout);
  int64_t prompt = options.integer("prompt-tokens"), context = options.integer("context"), sequences = options.integer("sequences");
  for (auto [name, tokens] : {std::pair("prompt-tokens", prompt), {"context", context}})
    if (tokens > config.max_position)
      return input_error(
          fmt::format("--{} {}: the model takes at most {} tokens (max_position_embeddings)", name, tokens, config.max_position));
  Step steps[] = {
      {"prefill", {.tokens = prompt, .kv_len = prompt}, {}},
      {"decode", {.tokens = sequences, .sequences = sequences, .kv_len = context, .logit_rows = sequences, .decode = true}, {}}};
  for (Step& step : steps) step.cost = dry_run_step(*model, step.shape, kv_dtype);
  size_t arena = measure_arena_bytes(*model, std::max(prompt, sequences), sequences, std::max(prompt, context), sequences);
  int64_t kv_token = layout.bytes_per_token(kv_dtype), kv_bytes = kv_token * context * sequences;

  if (options.flag("json")) {
    Json out{{"model", path},
             {"architecture", config.architecture},
             {"from_headers", index != nullptr},
             {"weight_bytes", store.bytes()},
             {"kv_bytes_per_token", kv_token},
             {"kv_bytes", kv_bytes},
             {"arena_bytes", arena},
             {"active_parameters", model->active_parameters()}};
    for (const Step& step : steps) out[step.name] = step_json(step);
    fmt::print("{}\n", out.dump());
    return 0;
  }
  fmt::print("{}: {}{}\n", path, config.architecture, index ? "" : " (from config.json alone)");
  fmt::print("  weights      {:>12}  ({} bytes)\n", bytes_text(static_cast<double>(store.bytes())), store.bytes());
  fmt::print("  KV cache     {:>12}  ({} bytes per token, {} x {} tokens)\n", bytes_text(static_cast<double>(kv_bytes)), kv_token,
             sequences, context);
  fmt::print("  activations  {:>12}\n", bytes_text(static_cast<double>(arena)));
  for (const Step& step : steps) print_step(step);
  return 0;
}

}  // namespace dg
