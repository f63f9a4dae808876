#include "text/decoder.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/unicode.h"

namespace dg {
namespace {

constexpr int kMaxDecoderDepth = 8;
constexpr size_t kMaxSteps = 32;
constexpr size_t kMaxReplacement = 32;
constexpr int64_t kMaxStrip = 1024;

// "<0x0A>" -> 10
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return std::nullopt;
  int value = 0;
  for (char c : token.substr(3, 2)) {
    if (c >= '0' && c <= '9') value = value * 16 + (c - '0');
    else if (c >= 'A' && c <= 'F') value = value * 16 + (c - 'A' + 10);
    else if (c >= 'a' && c <= 'f') value = value * 16 + (c - 'a' + 10);
    else return std::nullopt;
  }
  return static_cast<char>(value);
}

void append_byte_level(std::string_view token, std::string& out) {
  const size_t before = out.size();
  if (ByteAlphabet::append_bytes(token, out)) return;
  out.resize(before);
  out += token;  // a character outside the alphabet: an added token, taken as it is
}

// A run of byte tokens is text when it is UTF-8 as a whole; otherwise each of its bytes is one U+FFFD.
void flush_fallback(std::string& run, std::vector<std::string>& out) {
  if (run.empty()) return;
  if (unicode::first_invalid(run) == std::string_view::npos) {
    out.push_back(std::move(run));
  } else {
    std::string marks;
    for (size_t i = 0; i < run.size(); i++) unicode::append_utf8(marks, unicode::kReplacement);
    out.push_back(std::move(marks));
  }
  run.clear();
}

std::string without_edges(std::string_view text, std::string_view c, size_t left, size_t right) {
  for (; left > 0 && text.substr(0, c.size()) == c; left--) text.remove_prefix(c.size());
  for (; right > 0 && text.size() >= c.size() && text.substr(text.size() - c.size()) == c; right--) text.remove_suffix(c.size());
  return std::string(text);
}

std::string metaspace_to_blanks(std::string_view token, std::string_view replacement, bool drop) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    if (token.substr(at, replacement.size()) == replacement) {
      if (!drop) out += ' ';
      at += replacement.size();
    } else {
      out += token[at++];
    }
  }
  return out;
}

bool is_one_character(std::string_view text) {
  return !text.empty() && unicode::decode(text.data(), text.data() + text.size()).bytes == text.size();
}

}  // namespace

Result<Decoder> Decoder::from_json(const JsonField& field) {
  Decoder decoder;
  DG_TRY(decoder.append(field, 0));
  if (decoder.steps_.empty()) {  // an empty Sequence joins the tokens without blanks
    decoder.steps_.emplace_back();
    decoder.steps_[0].kind = Kind::kFuse;
  }
  decoder.concatenates_ = decoder.steps_.size() == 1 && decoder.steps_[0].kind == Kind::kByteLevel;
  return decoder;
}

Result<void> Decoder::append_metaspace(const JsonField& field) {
  Step step{};
  step.kind = Kind::kMetaspace;
  DG_ASSIGN(step.content, field.text_or("replacement", "▁"));
  if (!is_one_character(step.content)) return field.expected("a \"replacement\" of one character");
  DG_ASSIGN(bool legacy_prefix, field.boolean_or("add_prefix_space", true));
  DG_ASSIGN(const std::string scheme, field.text_or("prepend_scheme", legacy_prefix ? "always" : "never"));
  if (scheme != "always" && scheme != "first" && scheme != "never")
    return field.unsupported("prepend_scheme " + scheme, "always, first, never");
  step.drop_first = scheme != "never";
  steps_.push_back(std::move(step));
  return {};
}

Result<void> Decoder::append_strip(const JsonField& field) {
  Step step{};
  step.kind = Kind::kStrip;
  DG_ASSIGN(step.content, field.text("content"));
  if (!is_one_character(step.content)) return field.expected("a \"content\" of one character");
  for (auto [key, target] : {std::pair{"start", &step.left}, std::pair{"stop", &step.right}}) {
    DG_ASSIGN(JsonField count, field.member(key));
    DG_ASSIGN(int64_t value, count.integer(0, kMaxStrip));
    *target = static_cast<size_t>(value);
  }
  if (joined_ && step.right > 0) return field.unsupported("Strip with \"stop\" above 0 on the joined text", "\"stop\": 0");
  steps_.push_back(std::move(step));
  return {};
}

Result<void> Decoder::append(const JsonField& field, int depth) {
  if (depth > kMaxDecoderDepth || steps_.size() >= kMaxSteps) return field.expected("fewer nested or successive decoders");
  DG_ASSIGN(const std::string type, field.type());
  return append_typed(field, type, depth);
}

Result<void> Decoder::append_typed(const JsonField& field, std::string_view type, int depth) {
  if (type == "Sequence") {
    DG_ASSIGN(JsonField list, field.member("decoders"));
    DG_ASSIGN(size_t n, list.array_size());
    for (size_t i = 0; i < n; i++) DG_TRY(append(list.element(i), depth + 1));
    return {};
  }
  // Steps on the joined text cannot be streamed token by token; only Strip (and a repeated join) is needed there.
  if (joined_ && type != "Strip" && type != "Fuse")
    return field.unsupported(fmt::format("decoder {} after ByteLevel or Fuse", type), "Strip, Fuse");
  if (type == "Strip") return append_strip(field);
  if (type == "Metaspace") return append_metaspace(field);
  Step step{};
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    joined_ = true;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
    joined_ = true;
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    DG_ASSIGN(step.content, field.text("content"));
    if (step.content.size() > kMaxReplacement) return field.expected("a replacement of at most 32 bytes");
    DG_ASSIGN(Regex regex, pattern_of(field));
    step.regex.push_back(std::move(regex));
  } else {
    return field.unsupported(fmt::format("decoder {}", type), "Sequence, ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace");
  }
  steps_.push_back(std::move(step));
  return {};
}

void Decoder::apply(const Step& step, std::vector<std::string>& tokens, bool first) {
  switch (step.kind) {
    case Kind::kByteLevel: {
      std::string all;
      for (const std::string& token : tokens) append_byte_level(token, all);
      tokens.assign(1, unicode::replace_invalid(all));
      break;
    }
    case Kind::kFuse: {
      std::string all;
      for (const std::string& token : tokens) all += token;
      tokens.assign(1, std::move(all));
      break;
    }
    case Kind::kByteFallback: {
      std::vector<std::string> out;
      std::string run;
      for (std::string& token : tokens) {
        if (auto byte = fallback_byte(token)) {
          run += *byte;
          continue;
        }
        flush_fallback(run, out);
        out.push_back(std::move(token));
      }
      flush_fallback(run, out);
      tokens = std::move(out);
      break;
    }
    case Kind::kReplace: {
      Regex::Scratch scratch;
      for (std::string& token : tokens) token = replace_all(token, step.regex[0], step.content, scratch);
      break;
    }
    case Kind::kStrip:
      for (std::string& token : tokens) token = without_edges(token, step.content, step.left, step.right);
      break;
    case Kind::kMetaspace:
      for (size_t i = 0; i < tokens.size(); i++)
        tokens[i] = metaspace_to_blanks(tokens[i], step.content, first && i == 0 && step.drop_first);
      break;
  }
}

std::string Decoder::decode(const std::vector<std::string_view>& contents) const {
  std::string out;
  if (concatenates_) {
    for (std::string_view content : contents) append_byte_level(content, out);
    return unicode::replace_invalid(out);
  }
  std::vector<std::string> tokens(contents.begin(), contents.end());
  for (const Step& step : steps_) apply(step, tokens, true);
  for (size_t i = 0; i < tokens.size(); i++) {
    if (i > 0) out += separator();
    out += tokens[i];
  }
  return out;
}

void Decoder::append_bytes_of(std::string_view content, std::string& out) const {
  if (concatenates_) return append_byte_level(content, out);
  std::vector<std::string> tokens{std::string(content)};
  bool joined = false;
  for (const Step& step : steps_) {
    if (joined && step.kind == Kind::kStrip) continue;  // works on the ends of the whole text
    joined = joined || step.kind == Kind::kByteLevel || step.kind == Kind::kFuse;
    if (step.kind == Kind::kByteLevel) {
      std::string bytes;
      append_byte_level(tokens[0], bytes);
      tokens[0] = std::move(bytes);
    } else if (step.kind == Kind::kByteFallback) {
      if (auto byte = fallback_byte(tokens[0])) tokens[0] = std::string(1, *byte);
    } else {
      apply(step, tokens, false);
    }
  }
  out += tokens[0];
}

Decoder::Start Decoder::start() const {
  Start start;
  bool joined = false;
  for (const Step& step : steps_) {
    joined = joined || step.kind == Kind::kByteLevel || step.kind == Kind::kFuse;
    if (joined && step.kind == Kind::kStrip) {
      start.content = step.content;
      start.count += step.left;
    }
    if (step.kind == Kind::kMetaspace && step.drop_first) start.drops_blanks = true;
  }
  return start;
}

}  // namespace dg
