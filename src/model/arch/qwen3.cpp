// Qwen3: R1-0528-Qwen3-8B. RMSNorm over each head of q and k before the rotary embedding.
#include "model/arch/dense.h"
#include "model/arch/list.h"

namespace dg {

std::unique_ptr<Model> make_qwen3(const ModelConfig& config, WeightStore& store) {
  return make_dense(config, store, {.attention = {.qkv_bias = config.attention_bias, .o_bias = config.attention_bias, .head_norm = true}});
}

}  // namespace dg
