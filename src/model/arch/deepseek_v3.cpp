// DeepSeek V3, V3-0324, R1, R1-0528, V3.1: MLA, sigmoid router with correction bias and group limit (noaux_tc), shared
// experts, dense first layers, FP8 weights and a multi-token prediction module.
#include <fmt/core.h>

#include "model/arch/deepseek.h"
#include "model/arch/list.h"

namespace dg {

std::unique_ptr<Model> make_deepseek_v3(const ModelConfig& config, WeightStore& store) {
  MoeBlock::Routing routing;
  routing.score = RouterScore::kSigmoid;
  routing.group_score = GroupScore::kTopTwoSum;
  routing.groups = true;
  routing.normalise = config.moe.normalise;
  routing.correction_bias = true;
  if (config.moe.topk_method != "noaux_tc" && !config.moe.topk_method.empty())
    store.fail(input_error(fmt::format("{}: topk_method: expected \"noaux_tc\", found \"{}\"", config.origin, config.moe.topk_method)));
  if (config.moe.scoring != "sigmoid" && !config.moe.scoring.empty())
    store.fail(input_error(fmt::format("{}: scoring_func: expected \"sigmoid\", found \"{}\"", config.origin, config.moe.scoring)));
  return make_deepseek(config, store, routing, true);
}

}  // namespace dg
