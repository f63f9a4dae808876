#include "text/normalizer.h"

#include "text/unicode.h"
#include "text/unicode_normal.h"

namespace dg {
namespace {

constexpr int kMaxNormalizerDepth = 8;
constexpr size_t kMaxNormalizerSteps = 32;
constexpr size_t kMaxNormalizerText = 32;

std::string lower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char *p = text.data(), *end = p + text.size(); p < end;) {
    unicode::Decoded d = unicode::decode(p, end);
    unicode::append_lower(out, d.code);
    p += d.bytes;
  }
  return out;
}

std::string without_marks(std::string_view text) {
  std::string out;
  for (const char *p = text.data(), *end = p + text.size(); p < end;) {
    unicode::Decoded d = unicode::decode(p, end);
    if (!unicode::is_mark(d.code)) out.append(p, d.bytes);
    p += d.bytes;
  }
  return out;
}

std::string_view stripped(std::string_view text, bool left, bool right) {
  while (left && !text.empty()) {
    unicode::Decoded d = unicode::decode(text.data(), text.data() + text.size());
    if (!unicode::is_white_space(d.code)) break;
    text.remove_prefix(d.bytes);
  }
  while (right && !text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) at--;
    if (!unicode::is_white_space(unicode::decode(text.data() + at, text.data() + text.size()).code)) break;
    text.remove_suffix(text.size() - at);
  }
  return text;
}

}  // namespace

std::string replace_all(std::string_view text, const Regex& regex, std::string_view content, Regex::Scratch& scratch) {
  std::string out;
  size_t copied = 0;
  Regex::Finder finder(regex, text, scratch);
  for (Regex::Match match; finder.next(match); copied = match.end) {
    out.append(text.substr(copied, match.begin - copied));
    out.append(content);
  }
  out.append(text.substr(copied));
  return out;
}

Result<Normalizer> Normalizer::from_json(const JsonField& field) {
  Normalizer normalizer;
  DG_TRY(append(field, 0, normalizer.steps_));
  return normalizer;
}

Result<void> Normalizer::append(const JsonField& field, int depth, std::vector<Step>& steps) {
  if (depth > kMaxNormalizerDepth || steps.size() >= kMaxNormalizerSteps) return field.expected("fewer nested or successive normalizers");
  DG_ASSIGN(const std::string type, field.type());
  if (type == "Sequence") {
    DG_ASSIGN(JsonField list, field.member("normalizers"));
    DG_ASSIGN(size_t n, list.array_size());
    for (size_t i = 0; i < n; i++) DG_TRY(append(list.element(i), depth + 1, steps));
    return {};
  }
  Step step{};
  if (type == "NFC") {
    step.kind = Kind::kNfc;
  } else if (type == "NFD") {
    step.kind = Kind::kNfd;
  } else if (type == "NFKC") {
    step.kind = Kind::kNfkc;
  } else if (type == "NFKD") {
    step.kind = Kind::kNfkd;
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else if (type == "StripAccents") {
    step.kind = Kind::kStripAccents;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    DG_ASSIGN(step.left, field.boolean_or("strip_left", true));
    DG_ASSIGN(step.right, field.boolean_or("strip_right", true));
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    DG_ASSIGN(step.content, field.text("prepend"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    DG_ASSIGN(step.content, field.text("content"));
    DG_ASSIGN(Regex regex, pattern_of(field));
    step.regex.push_back(std::move(regex));
  } else {
    return field.unsupported("normalizer " + type, "Sequence, NFC, NFD, NFKC, NFKD, Prepend, Replace, Lowercase, Strip, StripAccents");
  }
  // A chain of growing replacements must not turn a short text into gigabytes; see also apply().
  if (step.content.size() > kMaxNormalizerText) return field.expected("a replacement of at most 32 bytes");
  steps.push_back(std::move(step));
  return {};
}

std::string Normalizer::apply(std::string_view utf8, Regex::Scratch& scratch) const {
  std::string text(utf8);
  // No real normaliser grows text like this before its last step; it stops a hostile chain of replacements.
  const size_t limit = text.size() * 4 + 4096;
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc: text = unicode::normalize(text, unicode::NormalForm::kNfc); break;
      case Kind::kNfd: text = unicode::normalize(text, unicode::NormalForm::kNfd); break;
      case Kind::kNfkc: text = unicode::normalize(text, unicode::NormalForm::kNfkc); break;
      case Kind::kNfkd: text = unicode::normalize(text, unicode::NormalForm::kNfkd); break;
      case Kind::kLowercase: text = lower(text); break;
      case Kind::kStripAccents: text = without_marks(text); break;
      case Kind::kStrip: text = std::string(stripped(text, step.left, step.right)); break;
      case Kind::kPrepend:
        if (!text.empty()) text.insert(0, step.content);
        break;
      case Kind::kReplace: text = replace_all(text, step.regex[0], step.content, scratch); break;
    }
    if (text.size() > limit) break;
  }
  return text;
}

}  // namespace dg
