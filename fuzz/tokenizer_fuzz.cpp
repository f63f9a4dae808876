// First byte even: the rest is a tokenizer.json (which, when it loads, encodes and decodes a text). Odd: a text (or a regular
// expression and a text) for a fixed small tokenizer with the DeepSeek-V3 pre-tokenizer.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "text/detokenizer.h"
#include "text/regex.h"
#include "text/tokenizer.h"
#include "text/unicode.h"
#include "text/unicode_normal.h"

namespace {

constexpr char kFixed[] = R"json({"added_tokens": [{"id": 7, "content": "<s>", "special": true, "lstrip": true, "rstrip": true},
 {"id": 8, "content": "<t>", "normalized": true, "single_word": true}],
 "normalizer": {"type": "NFC"},
 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
  {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated"},
  {"type": "Split", "pattern": {"Regex": "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}, "behavior": "Isolated"},
  {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
 "decoder": {"type": "ByteLevel"},
 "model": {"type": "BPE", "unk_token": "u", "vocab": {"u": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ġa": 5, "Ã": 6}, "merges": ["a b", "Ġ a"]}})json";

void require(bool condition) {
  if (!condition) std::abort();
}

void check(const dg::Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  require(ids == tokenizer.encode(text));  // warm cache, same ids
  for (int32_t id : ids) require(id >= 0 && id < tokenizer.vocab_size());
  const std::string decoded = tokenizer.decode(ids);
  require(dg::unicode::first_invalid(decoded) == std::string_view::npos);
  dg::StreamDetokenizer stream(tokenizer);
  for (int32_t id : ids) require(dg::unicode::first_invalid(stream.push(id)) == std::string_view::npos);
  stream.finish();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 == 0) {
    auto tokenizer = dg::Tokenizer::from_json(rest, data[0] % 4 == 0 ? "" : R"({"add_bos_token": true, "bos_token": "<s>"})", "fuzz");
    if (tokenizer.ok()) check(**tokenizer, "ab <s>12 \xe6\xb7\xb1\xff abab  x\n");
    return 0;
  }
  static const std::unique_ptr<dg::Tokenizer> fixed = dg::Tokenizer::from_json(kFixed, "", "fixed").value();
  check(*fixed, rest);
  for (auto form :
       {dg::unicode::NormalForm::kNfc, dg::unicode::NormalForm::kNfd, dg::unicode::NormalForm::kNfkc, dg::unicode::NormalForm::kNfkd}) {
    const std::string once = dg::unicode::normalize(rest, form);
    if (dg::unicode::first_invalid(rest) == std::string_view::npos) require(dg::unicode::normalize(once, form) == once);
  }
  if (const size_t cut = rest.find('\0'); cut != std::string_view::npos) {
    auto regex = dg::Regex::compile(rest.substr(0, cut));
    if (!regex.ok()) return 0;
    const std::string_view text = rest.substr(cut + 1);
    dg::Regex::Scratch scratch;
    dg::Regex::Finder finder(*regex, text, scratch);
    size_t last = 0;
    for (dg::Regex::Match match; finder.next(match); last = match.end)
      require(last <= match.begin && match.begin <= match.end && match.end <= text.size());
  }
  return 0;
}
