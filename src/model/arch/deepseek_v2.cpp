// DeepSeek V2, V2-Lite, V2.5, Coder-V2: MLA and a softmax-routed mixture of experts.
#include <fmt/core.h>

#include "model/arch/deepseek.h"
#include "model/arch/list.h"

namespace dg {

std::unique_ptr<Model> make_deepseek_v2(const ModelConfig& config, WeightStore& store) {
  MoeBlock::Routing routing;
  routing.score = RouterScore::kSoftmax;
  routing.group_score = GroupScore::kMax;
  if (config.moe.topk_method == "group_limited_greedy") {
    routing.groups = true;
  } else if (config.moe.topk_method != "greedy" && !config.moe.topk_method.empty()) {
    store.fail(input_error(fmt::format("{}: topk_method: expected \"greedy\" or \"group_limited_greedy\", found \"{}\"", config.origin,
                                       config.moe.topk_method)));
  }
  if (config.moe.experts > 0 && config.moe.scoring != "softmax" && !config.moe.scoring.empty())
    store.fail(input_error(fmt::format("{}: scoring_func: expected \"softmax\", found \"{}\"", config.origin, config.moe.scoring)));
  // norm_topk_prob is false in every released V2 and transformers ignores it; so do we.
  routing.normalise = false;
  return make_deepseek(config, store, routing, false);
}

}  // namespace dg
