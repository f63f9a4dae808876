// Hugging Face tokenizer.json for byte-pair-encoding models: text <-> token ids, with the ids of Hugging Face's own
// library. The pipeline is: added tokens -> normalizer -> pre-tokenizer -> BPE -> post-processor, and a decoder back.
// Immutable after loading and safe to use from many threads; working memory is pooled inside.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dg {

struct BpeTables;
class Decoder;

struct TokenizerEncodeOptions {
  // What the post-processor's template adds (bos, eos), or without a template what add_bos_token and add_eos_token of
  // tokenizer_config.json ask for.
  bool add_special = true;
  bool parse_added = true;  // recognise added tokens ("<think>") in the text
};

class Tokenizer {
 public:
  // A directory with tokenizer.json and, optionally, tokenizer_config.json and chat_template.jinja (which wins over the
  // template in the config). Errors name the file and the JSON path.
  static Result<std::unique_ptr<Tokenizer>> load(const std::string& directory);
  // The same from memory; `tokenizer_config_json` may be empty, `origin` names the source in errors.
  static Result<std::unique_ptr<Tokenizer>> from_json(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                                                      std::string_view origin);
  // The same with vocab and merges taken out of the tokenizer.json (text/bpe_tables.h).
  static Result<std::unique_ptr<Tokenizer>> from_tables(const BpeTables& tables, std::string_view tokenizer_config_json,
                                                        std::string_view origin);
  ~Tokenizer();

  using EncodeOptions = TokenizerEncodeOptions;
  // Any bytes: ill-formed UTF-8 counts as U+FFFD (one per maximal subpart). Never fails.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;
  // Valid UTF-8 with U+FFFD for ill-formed bytes. Unknown ids are left out; `skip_special` leaves out special tokens.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  std::string_view token_bytes(int32_t id) const;              // raw bytes of one token inside the output; "" for an unknown id
  std::string_view content(int32_t id) const;                  // as written in tokenizer.json; "" for an unknown id
  int32_t vocab_size() const;                                  // largest id + 1
  std::optional<int32_t> id_of(std::string_view token) const;  // added or vocabulary token by its content
  bool is_special(int32_t id) const;
  bool is_added(int32_t id) const;

  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  bool add_bos() const;  // encode(add_special) puts bos first
  const std::string& bos_token() const;
  const std::string& eos_token() const;
  // Jinja source from chat_template.jinja or tokenizer_config.json ("default" of a list of named ones); "" when absent.
  const std::string& chat_template() const;

  const Decoder& decoder() const;  // for the streaming detokenizer

 private:
  struct Impl;
  friend class TokenizerLoader;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace dg
