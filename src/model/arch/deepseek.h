// What DeepSeek V2 and V3 share: the decoder with MLA, dense first layers, then MoE layers, and (V3) MTP modules.
#pragma once
#include <memory>

#include "model/layers/decoder.h"

namespace dg {

std::unique_ptr<Model> make_deepseek(const ModelConfig& config, WeightStore& store, MoeBlock::Routing routing, bool mtp);

}  // namespace dg
