// The tokenizer inside a GGUF file (tokenizer.ggml.*), as plain data: this floor knows the Hugging Face form, so a GGUF
// vocabulary is turned into a tokenizer.json and its config, and a published tokenizer into a GGUF vocabulary.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/tokenizer.h"

namespace dg {

enum class GgufTokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct GgufVocabulary {
  std::string pre;                  // tokenizer.ggml.pre: which pre-tokenizer, see gguf_pre_names()
  std::vector<std::string> tokens;  // by id; normal ones in GPT-2's byte alphabet
  std::vector<int32_t> types;       // GgufTokenType of each; empty: all normal
  std::vector<std::string> merges;  // "left right", in the order of their ranks
  std::optional<int64_t> bos, eos, padding;
  std::optional<bool> add_bos, add_eos;  // unset: what llama.cpp takes for `pre`
  std::string chat_template;
};

std::string gguf_pre_names();  // "deepseek-v3, qwen2, ..." for messages

// The tokenizer with the ids that the published tokenizer.json gives. `origin` (the path of the file) begins every message.
Result<std::unique_ptr<Tokenizer>> make_gguf_tokenizer(const GgufVocabulary& vocabulary, const std::string& origin);

// The vocabulary of a directory with tokenizer.json, padded with unused tokens to `size` ids, as llama.cpp's converter
// writes it. Errors: a tokenizer that is not byte-level BPE, a pre-tokenizer without a name in GGUF, more than `size` ids.
Result<GgufVocabulary> read_gguf_vocabulary(const std::string& directory, int64_t size);

// 256 byte tokens, bos, eos, one merge, and unused tokens up to `size` (at least 259): for models with random weights.
GgufVocabulary byte_gguf_vocabulary(int64_t size);

}  // namespace dg
