#include "app/model_tokenizer.h"

#include <fmt/core.h>

namespace dg {
namespace {

Error unexpected(const GgufModel& model, std::string_view key, std::string_view expected, const GgufValue* found) {
  return input_error(fmt::format("{}: {}: expected {}, found {}", model.path(), key, expected, found ? found->describe() : "nothing"));
}

Result<std::vector<std::string>> texts(const GgufModel& model, std::string_view key) {
  const GgufValue* value = model.find(key);
  if (!value || !value->is_array() || value->element != GgufType::kString) return unexpected(model, key, "an array of strings", value);
  return std::vector<std::string>(value->strings.begin(), value->strings.end());
}

Result<std::string> text_or_empty(const GgufModel& model, std::string_view key) {
  const GgufValue* value = model.find(key);
  if (!value) return std::string();
  if (value->is_array() || !value->text()) return unexpected(model, key, "a string", value);
  return std::string(*value->text());
}

Result<std::optional<bool>> flag(const GgufModel& model, std::string_view key) {
  const GgufValue* value = model.find(key);
  if (!value) return std::optional<bool>();
  if (value->is_array() || !value->boolean()) return unexpected(model, key, "true or false", value);
  return value->boolean();
}

Result<std::optional<int64_t>> token_id(const GgufModel& model, std::string_view key) {
  const GgufValue* value = model.find(key);
  if (!value) return std::optional<int64_t>();
  if (value->is_array() || !value->integer()) return unexpected(model, key, "a token id", value);
  return value->integer();
}

}  // namespace

Result<GgufVocabulary> gguf_vocabulary(const GgufModel& model) {
  DG_ASSIGN(const std::string kind, text_or_empty(model, "tokenizer.ggml.model"));
  if (kind != "gpt2")
    return unexpected(model, "tokenizer.ggml.model", "\"gpt2\" (byte-level BPE, as all DeepSeek, Qwen and Llama 3 models have)",
                      model.find("tokenizer.ggml.model"));
  GgufVocabulary v;
  DG_ASSIGN(v.pre, text_or_empty(model, "tokenizer.ggml.pre"));
  DG_ASSIGN(v.tokens, texts(model, "tokenizer.ggml.tokens"));
  DG_ASSIGN(v.merges, texts(model, "tokenizer.ggml.merges"));
  if (const GgufValue* types = model.find("tokenizer.ggml.token_type")) {
    if (!types->is_array()) return unexpected(model, "tokenizer.ggml.token_type", "an array of whole numbers", types);
    v.types.reserve(static_cast<size_t>(types->count));
    for (uint64_t i = 0; i < types->count; i++) {
      const std::optional<int64_t> type = types->integer(i);
      if (!type || *type < 0 || *type > 6)
        return input_error(fmt::format("{}: tokenizer.ggml.token_type[{}]: expected a whole number from 0 to 6, found {}", model.path(), i,
                                       type ? std::to_string(*type) : types->describe()));
      v.types.push_back(static_cast<int32_t>(*type));
    }
  }
  DG_ASSIGN(v.bos, token_id(model, "tokenizer.ggml.bos_token_id"));
  DG_ASSIGN(v.eos, token_id(model, "tokenizer.ggml.eos_token_id"));
  DG_ASSIGN(v.padding, token_id(model, "tokenizer.ggml.padding_token_id"));
  DG_ASSIGN(v.add_bos, flag(model, "tokenizer.ggml.add_bos_token"));
  DG_ASSIGN(v.add_eos, flag(model, "tokenizer.ggml.add_eos_token"));
  DG_ASSIGN(v.chat_template, text_or_empty(model, "tokenizer.chat_template"));
  return v;
}

Result<std::unique_ptr<Tokenizer>> load_model_tokenizer(const std::string& path) {
  DG_ASSIGN(std::vector<std::string> files, find_gguf_files(path));
  if (files.empty()) return Tokenizer::load(path);
  DG_ASSIGN(GgufModel model, open_gguf(files));
  return load_model_tokenizer(model);
}

Result<std::unique_ptr<Tokenizer>> load_model_tokenizer(const GgufModel& model) {
  DG_ASSIGN(GgufVocabulary vocabulary, gguf_vocabulary(model));
  return make_gguf_tokenizer(vocabulary, model.path());
}

}  // namespace dg
