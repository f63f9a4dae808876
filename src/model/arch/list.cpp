#include "model/arch/list.h"

#include <fmt/core.h>

namespace dg {
namespace {
struct Row {
  const char* architecture;  // config.json architectures[0]
  MakeModel make;
};
// DeepSeek V3.2 and V4 come in a later issue.
constexpr Row kArchitectures[] = {
    {"LlamaForCausalLM", make_llama},
    {"Qwen2ForCausalLM", make_qwen2},
    {"Qwen3ForCausalLM", make_qwen3},
    {"DeepseekV2ForCausalLM", make_deepseek_v2},
    {"DeepseekV3ForCausalLM", make_deepseek_v3},
};
}  // namespace

Result<std::unique_ptr<Model>> make_model(const ModelConfig& config, WeightStore& store) {
  for (const Row& row : kArchitectures)
    if (config.architecture == row.architecture) {
      store.set_quantization(config.quantization);
      std::unique_ptr<Model> model = row.make(config, store);
      DG_TRY(store.status());
      return model;
    }
  std::string known;
  for (const Row& row : kArchitectures) known += (known.empty() ? "" : ", ") + std::string(row.architecture);
  return input_error(fmt::format("{}: architectures: \"{}\" is not supported; known: {}", config.origin, config.architecture, known));
}

std::vector<std::string> architecture_names() {
  std::vector<std::string> names;
  for (const Row& row : kArchitectures) names.emplace_back(row.architecture);
  return names;
}

}  // namespace dg
