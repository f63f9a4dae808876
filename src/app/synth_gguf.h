// Writes a model as one GGUF file that llama.cpp and this program load: the layout of convert_hf_to_gguf.py with every
// matrix in one format, as `llama-quantize --pure` makes it (norms, biases and routers in f32).
#pragma once
#include <string>

#include "app/synth_weights.h"
#include "model/config.h"
#include "text/gguf_tokenizer.h"

namespace dg {

struct GgufExport {
  const ModelConfig& config;
  const WeightRows& weights;
  const GgufVocabulary& vocabulary;
  const Format* format;  // of matrices; where rows do not fit its blocks: q5_0 for 4- and 5-bit, q8_0 for 6-bit K formats, or f16
  std::string path;
  int threads = 0;  // 0: all
  bool progress = true;
  const GenerationConfig* generation = nullptr;  // recommended sampling and further stop tokens
};

struct GgufExportResult {
  int64_t tensors = 0;
  uint64_t bytes = 0;
};

// Multi-token prediction modules are left out, as llama.cpp's converter does. Errors: an architecture without a GGUF form,
// the weights' errors, the file system.
Result<GgufExportResult> export_gguf(const GgufExport& what);

}  // namespace dg
