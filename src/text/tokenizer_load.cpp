// From tokenizer.json and tokenizer_config.json to a Tokenizer, checking everything on the way.
#include <fmt/core.h>

#include <algorithm>

#include "base/file.h"
#include "base/json.h"
#include "text/tokenizer_impl.h"
#include "text/tokenizer_json.h"

namespace dg {
namespace {

constexpr size_t kMaxJsonBytes = size_t{64} << 20;
constexpr size_t kMaxTemplateBytes = size_t{4} << 20;
constexpr size_t kMaxAddedBytes = 1024;  // of one added token
constexpr size_t kMaxAddedTotalBytes = size_t{1} << 20;
constexpr int64_t kMaxLoadedTokenId = (1 << 24) - 1;
constexpr int kMaxProcessors = 8;

}  // namespace

class TokenizerLoader {
 public:
  static Result<std::unique_ptr<Tokenizer>> build(std::string_view tokenizer_json, std::string_view config_json,
                                                  const std::string& tokenizer_origin, const std::string& config_origin) {
    if (tokenizer_json.size() > kMaxJsonBytes)
      return input_error(
          fmt::format("{}: {} bytes of JSON, at most {} are accepted", tokenizer_origin, tokenizer_json.size(), kMaxJsonBytes));
    DG_ASSIGN(const BpeTables tables, split_tokenizer_json(tokenizer_json, tokenizer_origin));
    return build(tables, config_json, tokenizer_origin, config_origin);
  }
  static Result<std::unique_ptr<Tokenizer>> build(const BpeTables& tables, std::string_view config_json,
                                                  const std::string& tokenizer_origin, const std::string& config_origin) {
    TokenizerLoader loader;
    DG_ASSIGN(const SortedJson root, parse_sorted_json(tables.rest, tokenizer_origin, {.max_bytes = kMaxJsonBytes}));
    DG_TRY(loader.load_tokenizer(JsonField(root, tokenizer_origin + ": $"), tables));
    if (!config_json.empty()) {
      DG_ASSIGN(SortedJson config, parse_sorted_json(config_json, config_origin, {.max_bytes = kMaxJsonBytes}));
      DG_TRY(loader.load_config(JsonField(config, config_origin + ": $")));
    } else {
      loader.bos_from_template();
    }
    return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(loader.impl_)));
  }
  static void set_chat_template(Tokenizer& tokenizer, std::string source) { tokenizer.impl_->chat_template = std::move(source); }

 private:
  Result<void> load_tokenizer(const JsonField& root, const BpeTables& tables) {
    if (!root.value().is_object()) return root.expected("an object with \"model\"");
    for (const char* key : {"truncation", "padding"})
      if (root.has(key))
        return input_error(fmt::format("{}.{}: expected null; truncation and padding belong to the request", root.path(), key));
    if (root.has("normalizer")) {
      DG_ASSIGN(JsonField field, root.member("normalizer"));
      DG_ASSIGN(impl_->normalizer, Normalizer::from_json(field));
    }
    if (root.has("pre_tokenizer")) {
      DG_ASSIGN(JsonField field, root.member("pre_tokenizer"));
      DG_ASSIGN(impl_->pre_tokenizer, PreTokenizer::from_json(field));
    }
    DG_ASSIGN(JsonField model, root.member("model"));
    DG_ASSIGN(const std::string type, model.text_or("type", "BPE"));  // old files have no type
    if (type != "BPE") return model.unsupported("model type " + type, "BPE");
    DG_ASSIGN(impl_->model, Bpe::from_json(model, tables, impl_->pre_tokenizer.byte_level()));
    if (root.has("decoder")) {
      DG_ASSIGN(JsonField field, root.member("decoder"));
      DG_ASSIGN(impl_->decoder, Decoder::from_json(field));
    }
    if (root.has("added_tokens")) {
      DG_ASSIGN(JsonField field, root.member("added_tokens"));
      DG_TRY(load_added(field));
    }
    if (root.has("post_processor")) {
      DG_ASSIGN(JsonField field, root.member("post_processor"));
      DG_TRY(load_processor(field, 0));
    }
    fill_bytes();
    return {};
  }

  Result<void> load_added(const JsonField& list) {
    DG_ASSIGN(size_t n, list.array_size());
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++) {
      const JsonField field = list.element(i);
      AddedToken token;
      DG_ASSIGN(token.content, field.text("content"));
      DG_ASSIGN(JsonField id_field, field.member("id"));
      DG_ASSIGN(int64_t id, id_field.integer(0, kMaxLoadedTokenId));
      token.id = static_cast<int32_t>(id);
      DG_ASSIGN(token.single_word, field.boolean_or("single_word", false));
      DG_ASSIGN(token.lstrip, field.boolean_or("lstrip", false));
      DG_ASSIGN(token.rstrip, field.boolean_or("rstrip", false));
      DG_ASSIGN(token.special, field.boolean_or("special", false));
      DG_ASSIGN(token.normalized, field.boolean_or("normalized", !token.special));
      if (token.content.empty()) continue;  // can never be found; Hugging Face ignores it too
      bytes += token.content.size();
      if (token.content.size() > kMaxAddedBytes || bytes > kMaxAddedTotalBytes)
        return field.expected(fmt::format("at most {} bytes in a token and {} in all added tokens", kMaxAddedBytes, kMaxAddedTotalBytes));
      DG_TRY(add_token(field, std::move(token)));
    }
    // One id per id slot is stored, so an id far beyond all tokens is a damaged file.
    const size_t known = static_cast<size_t>(impl_->model->largest_id()) + 1 + impl_->added.size();
    for (const AddedToken& token : impl_->added)
      if (static_cast<size_t>(token.id) > known * 16 + 65536)
        return list.expected(fmt::format("ids near the number of tokens ({} tokens, id {} of \"{}\")", known, token.id, token.content));
    return {};
  }

  Result<void> add_token(const JsonField& field, AddedToken token) {
    const int32_t in_model = impl_->model->id_of(token.content);
    if (in_model >= 0 && in_model != token.id)
      return input_error(
          fmt::format("{}.id: \"{}\" has id {} here and {} in model.vocab", field.path(), token.content, token.id, in_model));
    if (auto it = impl_->added_by_content.find(token.content); it != impl_->added_by_content.end()) {
      if (it->second == token.id) return {};  // the same token twice
      return input_error(fmt::format("{}.id: \"{}\" has id {} here and {} before", field.path(), token.content, token.id, it->second));
    }
    if (const AddedToken* other = impl_->added_token(token.id))
      return input_error(
          fmt::format("{}.id: id {} of \"{}\" is already used by \"{}\"", field.path(), token.id, token.content, other->content));
    impl_->added_by_content[token.content] = token.id;
    impl_->added_by_id[token.id] = impl_->added.size();
    if (token.normalized) {
      Regex::Scratch scratch;
      impl_->normalized_matcher.add(token, impl_->normalizer.empty() ? token.content : impl_->normalizer.apply(token.content, scratch));
    } else {
      impl_->raw_matcher.add(token, token.content);
    }
    impl_->added.push_back(std::move(token));
    return {};
  }

  Result<void> load_processor(const JsonField& field, int depth) {
    if (depth > kMaxProcessors) return field.expected("fewer nested post-processors");
    DG_ASSIGN(const std::string type, field.type());
    if (type == "ByteLevel") return {};  // changes offsets only
    if (type == "Sequence") {
      DG_ASSIGN(JsonField list, field.member("processors"));
      DG_ASSIGN(size_t n, list.array_size());
      for (size_t i = 0; i < n; i++) DG_TRY(load_processor(list.element(i), depth + 1));
      return {};
    }
    if (type == "TemplateProcessing") return load_template(field);
    return field.unsupported("post-processor " + type, "Sequence, ByteLevel, TemplateProcessing");
  }

  Result<void> load_template(const JsonField& field) {
    DG_ASSIGN(JsonField single, field.member("single"));
    DG_ASSIGN(size_t n, single.array_size());
    if (has_template_) return field.expected("only one TemplateProcessing");
    has_template_ = true;
    bool after = false;
    for (size_t i = 0; i < n; i++) {
      const JsonField item = single.element(i);
      if (item.has("Sequence")) {
        if (after) return item.expected("the sequence A only once");
        after = true;
        continue;
      }
      if (!item.has("SpecialToken")) return item.expected("{\"Sequence\": ...} or {\"SpecialToken\": ...}");
      DG_ASSIGN(JsonField token, item.member("SpecialToken"));
      DG_ASSIGN(const std::string name, token.text("id"));
      DG_ASSIGN(JsonField specials, field.member("special_tokens"));
      DG_ASSIGN(JsonField special, specials.member(name));
      DG_ASSIGN(JsonField ids, special.member("ids"));
      DG_ASSIGN(size_t count, ids.array_size());
      std::vector<int32_t>& target = after ? impl_->suffix : impl_->prefix;
      for (size_t k = 0; k < count; k++) {
        const JsonField id_field = ids.element(k);
        DG_ASSIGN(int64_t id, id_field.integer(0, kMaxLoadedTokenId));
        if (impl_->content(static_cast<int32_t>(id)).empty()) return id_field.expected("the id of a token of this file");
        if (target.size() >= 64) return single.expected("at most 64 special tokens around the text");
        target.push_back(static_cast<int32_t>(id));
      }
    }
    if (!after) return single.expected("the sequence A");
    return {};
  }

  void fill_bytes() {
    int32_t largest = impl_->model->largest_id();
    for (const AddedToken& token : impl_->added) largest = std::max(largest, token.id);
    impl_->offsets.reserve(static_cast<size_t>(largest) + 2);
    impl_->offsets.push_back(0);
    for (int32_t id = 0; id <= largest; id++) {
      impl_->decoder.append_bytes_of(impl_->content(id), impl_->bytes);
      impl_->offsets.push_back(static_cast<uint32_t>(impl_->bytes.size()));
    }
  }

  Result<void> load_config(const JsonField& config) {
    if (!config.value().is_object()) return config.expected("an object");
    DG_ASSIGN(impl_->bos_token, token_text(config, "bos_token"));
    DG_ASSIGN(impl_->eos_token, token_text(config, "eos_token"));
    if (!impl_->bos_token.empty()) impl_->bos_id = impl_->id_of(impl_->bos_token);
    if (!impl_->eos_token.empty()) impl_->eos_id = impl_->id_of(impl_->eos_token);
    if (!has_template_) {
      // LlamaTokenizerFast (the class of the DeepSeek releases) makes its own template of these two flags.
      DG_ASSIGN(bool add_bos, config.boolean_or("add_bos_token", false));
      DG_ASSIGN(bool add_eos, config.boolean_or("add_eos_token", false));
      if (add_bos && !impl_->bos_id) return missing(config, "bos_token", "add_bos_token", impl_->bos_token);
      if (add_eos && !impl_->eos_id) return missing(config, "eos_token", "add_eos_token", impl_->eos_token);
      if (add_bos) impl_->prefix.push_back(*impl_->bos_id);
      if (add_eos) impl_->suffix.push_back(*impl_->eos_id);
    }
    return load_chat_template(config);
  }

  static Error missing(const JsonField& config, std::string_view key, std::string_view flag, std::string_view token) {
    return input_error(fmt::format("{}.{}: \"{}\" is no token of tokenizer.json, but {} is true; name a token or set {} to false",
                                   config.path(), key, token, flag, flag));
  }

  static Result<std::string> token_text(const JsonField& config, std::string_view key) {  // "x" or {"content": "x"}
    if (!config.has(key)) return std::string();
    DG_ASSIGN(JsonField field, config.member(key));
    return field.value().is_object() ? field.text("content") : field.text();
  }

  Result<void> load_chat_template(const JsonField& config) {
    if (!config.has("chat_template")) return {};
    DG_ASSIGN(JsonField field, config.member("chat_template"));
    if (!field.value().is_array()) {
      DG_ASSIGN(impl_->chat_template, field.text());
      return {};
    }
    for (size_t i = 0; i < field.value().size(); i++) {
      const JsonField item = field.element(i);
      DG_ASSIGN(const std::string name, item.text("name"));
      if (name != "default") continue;
      DG_ASSIGN(impl_->chat_template, item.text("template"));
    }
    return {};
  }

  void bos_from_template() {  // without tokenizer_config.json the template is the only hint
    if (impl_->prefix.empty()) return;
    impl_->bos_id = impl_->prefix[0];
    impl_->bos_token = impl_->content(impl_->prefix[0]);
  }

  std::unique_ptr<Tokenizer::Impl> impl_ = std::make_unique<Tokenizer::Impl>();
  bool has_template_ = false;
};

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                                        std::string_view origin) {
  return TokenizerLoader::build(tokenizer_json, tokenizer_config_json, std::string(origin), std::string(origin) + " (tokenizer_config)");
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::from_tables(const BpeTables& tables, std::string_view tokenizer_config_json,
                                                          std::string_view origin) {
  return TokenizerLoader::build(tables, tokenizer_config_json, std::string(origin), std::string(origin) + " (tokenizer_config)");
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const std::string& directory) {
  const std::string path = directory + "/tokenizer.json", config_path = directory + "/tokenizer_config.json";
  const std::string template_path = directory + "/chat_template.jinja";
  if (!file_exists(path))
    return input_error(fmt::format("{}: not found; expected the Hugging Face tokenizer.json in the model's directory", path));
  DG_ASSIGN(const std::string json, read_file(path, kMaxJsonBytes));
  std::string config;
  if (file_exists(config_path)) {
    DG_ASSIGN(config, read_file(config_path, kMaxJsonBytes));
    if (config.empty()) return input_error(fmt::format("{}: expected a JSON object, found an empty file", config_path));
  }
  DG_ASSIGN(std::unique_ptr<Tokenizer> tokenizer, TokenizerLoader::build(json, config, path, config_path));
  if (file_exists(template_path)) {
    DG_ASSIGN(std::string source, read_file(template_path, kMaxTemplateBytes));
    TokenizerLoader::set_chat_template(*tokenizer, std::move(source));
  }
  return tokenizer;
}

}  // namespace dg
