// The tokenizer of a model directory or of a GGUF file: text/ knows tokenizers, io/ knows files, here they meet.
#pragma once
#include <memory>
#include <string>

#include "base/result.h"
#include "io/gguf.h"
#include "text/gguf_tokenizer.h"

namespace dg {

// tokenizer.json of the directory `path`, or the vocabulary inside its GGUF file.
Result<std::unique_ptr<Tokenizer>> load_model_tokenizer(const std::string& path);
Result<std::unique_ptr<Tokenizer>> load_model_tokenizer(const GgufModel& model);

// tokenizer.ggml.* of a file. Errors name the key.
Result<GgufVocabulary> gguf_vocabulary(const GgufModel& model);

}  // namespace dg
