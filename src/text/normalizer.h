// The "normalizer" of tokenizer.json: rewrites text before it is split.
#pragma once
#include <string>
#include <vector>

#include "base/result.h"
#include "text/regex.h"
#include "text/tokenizer_json.h"

namespace dg {

class Normalizer {
 public:
  Normalizer() = default;  // changes nothing
  static Result<Normalizer> from_json(const JsonField& field);

  bool empty() const { return steps_.empty(); }
  std::string apply(std::string_view utf8, Regex::Scratch& scratch) const;

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kPrepend, kReplace, kLowercase, kStrip, kStripAccents };
  struct Step {
    Kind kind;
    std::string content;             // kPrepend, kReplace
    std::vector<Regex> regex;        // kReplace: one
    bool left = true, right = true;  // kStrip
  };
  static Result<void> append(const JsonField& field, int depth, std::vector<Step>& steps);
  std::vector<Step> steps_;
};

// `text` with every match of `regex` replaced by `content`.
std::string replace_all(std::string_view text, const Regex& regex, std::string_view content, Regex::Scratch& scratch);

}  // namespace dg
