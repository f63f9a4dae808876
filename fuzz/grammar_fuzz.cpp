// First byte: the kind of the specification (and whether it begins with free text); up to a zero byte the specification; the
// rest are tokens to try. Whatever is given: compiling ends, a mask is never empty, and accept() does what the mask says.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "base/check.h"
#include "text/bpe.h"
#include "text/grammar.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace {

constexpr int32_t kStop = 300, kVocab = 320;

// All bytes, some longer tokens, two added ones.
std::unique_ptr<dg::Tokenizer> make_tokenizer() {
  std::string vocab;
  int next = 0;
  auto add = [&](std::string_view bytes) {
    std::string symbol;
    for (char c : bytes) dg::unicode::append_utf8(symbol, dg::ByteAlphabet::char_of(static_cast<unsigned char>(c)));
    std::string quoted;
    for (char c : symbol) quoted += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    vocab += (vocab.empty() ? "\"" : ", \"") + quoted + "\": " + std::to_string(next++);
  };
  for (int b = 0; b < 256; b++) add(std::string(1, static_cast<char>(b)));
  for (const char* token : {"{\"", "\":", "\",", "\"}", "}}", "]}", "null", "ab", "abc", "12", "\\u", "\n  ", "\xe4\xb8", "a\""})
    add(token);
  const std::string json =
      R"({"added_tokens": [{"id": 300, "content": "<end>", "special": true}, {"id": 301, "content": "<mark>", "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "merges": [], "vocab": {)" +
      vocab + "}}}";
  auto tokenizer = dg::Tokenizer::from_json(json, "", "fuzz");
  CHECK(tokenizer.ok()) << tokenizer.error().message;
  return std::move(tokenizer).value();
}

bool allowed(dg::GrammarState& state, int32_t id) {
  const uint32_t* mask = state.mask();
  return !mask || (mask[id / 32] >> (id % 32) & 1) != 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<dg::Tokenizer> tokenizer = make_tokenizer();
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t end = std::min(rest.find('\0'), rest.size());
  dg::GrammarSpec spec;
  spec.kind = static_cast<dg::GrammarKind>(data[0] % 5);
  spec.text = rest.substr(0, end);
  if (spec.kind == dg::GrammarKind::kChoice) spec.choices = {spec.text, "ab", ""};
  if (data[0] & 0x40) spec.start_after = "</t>";
  if (data[0] & 0x80) spec.trigger = "<mark>";
  // Small limits keep one input fast.
  dg::GrammarCompiler compiler(*tokenizer, kVocab, {kStop}, {.max_states = 20'000, .cache_bytes = size_t{1} << 20});
  auto grammar = compiler.compile(spec);
  if (!grammar.ok()) {
    CHECK(grammar.error().message.find('\n') == std::string::npos) << grammar.error().message;
    return 0;
  }
  dg::GrammarState state(*grammar);
  const std::string_view tokens = rest.substr(std::min(end + 1, rest.size())).substr(0, 200);
  for (size_t i = 0; i < tokens.size(); i++) {
    const int32_t id = (static_cast<unsigned char>(tokens[i]) + (i % 3 == 2 ? 256 : 0)) % kVocab;
    const bool may = allowed(state, id);
    CHECK(dg::GrammarState(state).accept(id) == may);
    if (may) {
      CHECK(state.accept(id));
      continue;
    }
    // Else go on with some token that the mask allows: there is one.
    int32_t other = id;
    for (int32_t n = 0; n < kVocab && !allowed(state, other); n++) other = (other + 1) % kVocab;
    CHECK(allowed(state, other) && state.accept(other));
    if (state.must_end()) break;
  }
  return 0;
}
