// Qwen2: R1-Distill-Qwen. Biases on q, k and v whatever the config says; head tied or not.
#include "model/arch/dense.h"
#include "model/arch/list.h"

namespace dg {

std::unique_ptr<Model> make_qwen2(const ModelConfig& config, WeightStore& store) {
  return make_dense(config, store, {.attention = {.qkv_bias = true}});
}

}  // namespace dg
