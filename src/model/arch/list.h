// The architectures: one file each and one line in list.cpp.
#pragma once
#include "model/model.h"

namespace dg {

using MakeModel = std::unique_ptr<Model> (*)(const ModelConfig&, WeightStore&);

std::unique_ptr<Model> make_llama(const ModelConfig&, WeightStore&);
std::unique_ptr<Model> make_qwen2(const ModelConfig&, WeightStore&);
std::unique_ptr<Model> make_qwen3(const ModelConfig&, WeightStore&);
std::unique_ptr<Model> make_deepseek_v2(const ModelConfig&, WeightStore&);
std::unique_ptr<Model> make_deepseek_v3(const ModelConfig&, WeightStore&);

}  // namespace dg
