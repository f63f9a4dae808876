// The configuration inside a GGUF file, as the config.json and generation_config.json it was made from.
#pragma once
#include "io/gguf.h"
#include "model/config.h"

namespace dg {

// Architectures llama, qwen2, qwen3 and deepseek2 (V2 or V3 by its expert gating). Errors name the file and the key.
Result<ModelConfig> gguf_model_config(const GgufModel& model);

// Stop tokens (end of sequence, of turn, of message) and the sampling the file recommends (general.sampling.*).
Result<GenerationConfig> gguf_generation_config(const GgufModel& model);

}  // namespace dg
