// Llama: DeepSeek-LLM 7B/67B, DeepSeek-Coder v1, R1-Distill-Llama. Grouped-query attention without norms; biases only
// where the config asks for them (attention_bias covers all four projections, mlp_bias all three).
#include "model/arch/dense.h"
#include "model/arch/list.h"

namespace dg {

std::unique_ptr<Model> make_llama(const ModelConfig& config, WeightStore& store) {
  return make_dense(config, store,
                    {.attention = {.qkv_bias = config.attention_bias, .o_bias = config.attention_bias}, .mlp_bias = config.mlp_bias});
}

}  // namespace dg
