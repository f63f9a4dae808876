// The "decoder" of tokenizer.json: from token contents back to text, the same steps as Hugging Face's decode_chain.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/regex.h"
#include "text/tokenizer_json.h"

namespace dg {

class Decoder {
 public:
  Decoder() = default;  // none: contents joined by blanks, as Hugging Face does without a decoder
  static Result<Decoder> from_json(const JsonField& field);

  // Text of a whole sequence of token contents: valid UTF-8, ill-formed bytes as U+FFFD.
  std::string decode(const std::vector<std::string_view>& contents) const;

  // Appends the bytes that one token contributes when it is not the first of the text.
  void append_bytes_of(std::string_view content, std::string& out) const;

  // The decoded text is the lossy UTF-8 of the tokens' bytes joined, first token included: the usual case.
  bool concatenates() const { return concatenates_; }
  std::string_view separator() const { return steps_.empty() ? std::string_view(" ") : std::string_view(); }
  // How the beginning of the whole text differs from that: up to `count` times `content` removed, and for the first
  // token (Metaspace) its blanks dropped.
  struct Start {
    std::string content;
    size_t count = 0;
    bool drops_blanks = false;
  };
  Start start() const;

 private:
  enum class Kind { kByteLevel, kReplace, kByteFallback, kFuse, kStrip, kMetaspace };
  struct Step {
    Kind kind;
    std::vector<Regex> regex;    // kReplace: one
    std::string content;         // kReplace, kStrip, kMetaspace (the replacement character)
    size_t left = 0, right = 0;  // kStrip
    bool drop_first = false;     // kMetaspace
  };
  Result<void> append(const JsonField& field, int depth);
  Result<void> append_typed(const JsonField& field, std::string_view type, int depth);
  Result<void> append_metaspace(const JsonField& field);
  Result<void> append_strip(const JsonField& field);
  static void apply(const Step& step, std::vector<std::string>& tokens, bool first);

  std::vector<Step> steps_;
  bool joined_ = false;  // while loading: a step has made one string of all tokens
  bool concatenates_ = false;
};

}  // namespace dg
