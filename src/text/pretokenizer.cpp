#include "text/pretokenizer.h"

#include <algorithm>

#include "text/unicode.h"

namespace dg {
namespace {

constexpr int kMaxPretokenizerDepth = 8;
constexpr size_t kMaxStages = 16;  // also bounds the recursion of run()
// ByteLevel's own pattern (GPT-2).
constexpr std::string_view kByteLevelPattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

Result<PreTokenizer> PreTokenizer::from_json(const JsonField& field) {
  PreTokenizer out;
  DG_TRY(out.append(field, 0));
  return out;
}

Result<PreTokenizer::Behavior> PreTokenizer::behavior_of(const JsonField& field, std::string_view fallback) {
  DG_ASSIGN(const std::string name, field.text_or("behavior", std::string(fallback)));
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  return field.unsupported("behavior " + name, "Isolated, Removed, MergedWithPrevious, MergedWithNext, Contiguous");
}

Result<void> PreTokenizer::append_split(std::string_view pattern, Behavior behavior, bool invert) {
  DG_ASSIGN(Regex regex, Regex::compile(pattern));
  Stage stage;
  stage.behavior = behavior;
  stage.invert = invert;
  stage.regex.push_back(std::move(regex));
  stages_.push_back(std::move(stage));
  return {};
}

Result<void> PreTokenizer::append_byte_level(const JsonField& field) {
  DG_ASSIGN(bool prefix, field.boolean_or("add_prefix_space", true));
  DG_ASSIGN(bool use_regex, field.boolean_or("use_regex", true));
  if (prefix) {
    stages_.emplace_back();
    stages_.back().kind = Kind::kPrefixSpace;
  }
  if (use_regex) DG_TRY(append_split(kByteLevelPattern, Behavior::kIsolated, false));
  byte_level_ = true;
  return {};
}

Result<void> PreTokenizer::append_metaspace(const JsonField& field) {
  Stage stage;
  stage.kind = Kind::kMetaspace;
  DG_ASSIGN(stage.replacement, field.text_or("replacement", "▁"));
  if (stage.replacement.empty() ||
      unicode::decode(stage.replacement.data(), stage.replacement.data() + stage.replacement.size()).bytes != stage.replacement.size())
    return field.expected("a \"replacement\" of one character");
  DG_ASSIGN(bool legacy_prefix, field.boolean_or("add_prefix_space", true));
  DG_ASSIGN(const std::string scheme, field.text_or("prepend_scheme", legacy_prefix ? "always" : "never"));
  if (scheme == "always") stage.prepend = Prepend::kAlways;
  else if (scheme == "first") stage.prepend = Prepend::kFirst;
  else if (scheme == "never") stage.prepend = Prepend::kNever;
  else return field.unsupported("prepend_scheme " + scheme, "always, first, never");
  DG_ASSIGN(bool split, field.boolean_or("split", true));
  const std::string pattern = escape_regex(stage.replacement);
  stages_.push_back(std::move(stage));
  return split ? append_split(pattern, Behavior::kMergedWithNext, false) : Result<void>();
}

Result<void> PreTokenizer::append(const JsonField& field, int depth) {
  if (depth > kMaxPretokenizerDepth || stages_.size() >= kMaxStages) return field.expected("fewer nested or successive pre-tokenizers");
  if (byte_level_) return field.expected("nothing after the pre-tokenizer ByteLevel");
  DG_ASSIGN(const std::string type, field.type());
  if (type == "Sequence") {
    DG_ASSIGN(JsonField list, field.member("pretokenizers"));
    DG_ASSIGN(size_t n, list.array_size());
    for (size_t i = 0; i < n; i++) DG_TRY(append(list.element(i), depth + 1));
    return {};
  }
  if (type == "Split") {
    Stage stage;
    DG_ASSIGN(stage.behavior, behavior_of(field, "Isolated"));
    DG_ASSIGN(stage.invert, field.boolean_or("invert", false));
    DG_ASSIGN(Regex regex, pattern_of(field));
    stage.regex.push_back(std::move(regex));
    stages_.push_back(std::move(stage));
    return {};
  }
  if (type == "ByteLevel") return append_byte_level(field);
  if (type == "Metaspace") return append_metaspace(field);
  if (type == "Digits") {
    DG_ASSIGN(bool individual, field.boolean_or("individual_digits", false));
    return append_split("\\p{N}", individual ? Behavior::kIsolated : Behavior::kContiguous, false);
  }
  if (type == "Punctuation") {
    DG_ASSIGN(Behavior behavior, behavior_of(field, "Isolated"));
    return append_split("[!-/:-@\\[-`{-~\\p{P}]", behavior, false);
  }
  // \w of Rust's regex crate has the two joiners, too
  if (type == "Whitespace") return append_split("[\\w\\x{200c}\\x{200d}]+|[^\\w\\s\\x{200c}\\x{200d}]+", Behavior::kRemoved, true);
  if (type == "WhitespaceSplit") return append_split("\\s", Behavior::kRemoved, false);
  return field.unsupported("pre-tokenizer " + type,
                           "Sequence, Split, ByteLevel, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit");
}

void PreTokenizer::split(std::string_view text, bool at_start, Scratch& scratch, PieceSink& sink) const {
  if (scratch.size() < stages_.size()) scratch.resize(stages_.size());
  run(0, text, at_start, scratch, sink);
}

void PreTokenizer::run(size_t stage, std::string_view text, bool at_start, Scratch& scratch, PieceSink& sink) const {
  if (text.empty()) return;
  if (stage == stages_.size()) return sink.piece(text);
  const Stage& s = stages_[stage];
  std::string& own = scratch[stage].text;
  switch (s.kind) {
    case Kind::kSplit: return run_split(stage, text, at_start, scratch, sink);
    case Kind::kPrefixSpace:
      if (text[0] == ' ') return run(stage + 1, text, at_start, scratch, sink);
      own.assign(1, ' ');
      own.append(text);
      return run(stage + 1, own, at_start, scratch, sink);
    case Kind::kMetaspace: {
      own.clear();
      for (char c : text) {
        if (c == ' ') own.append(s.replacement);
        else own += c;
      }
      const bool wanted = s.prepend == Prepend::kAlways || (s.prepend == Prepend::kFirst && at_start);
      if (wanted && own.compare(0, s.replacement.size(), s.replacement) != 0) own.insert(0, s.replacement);
      return run(stage + 1, own, at_start, scratch, sink);
    }
  }
}

void PreTokenizer::run_split(size_t stage, std::string_view text, bool at_start, Scratch& scratch, PieceSink& sink) const {
  const Stage& s = stages_[stage];
  Regex::Finder finder(s.regex[0], text, scratch[stage].regex);
  Regex::Match match;
  auto emit = [&](size_t begin, size_t end) { run(stage + 1, text.substr(begin, end - begin), at_start && begin == 0, scratch, sink); };
  if (s.behavior == Behavior::kIsolated) {
    size_t done = 0;
    while (finder.next(match)) {
      if (match.begin > done) emit(done, match.begin);
      emit(match.begin, match.end);
      done = match.end;
    }
    emit(done, text.size());
    return;
  }
  // The other behaviours depend on neighbours: matches and gaps in order, then fold.
  std::vector<Span>& spans = scratch[stage].spans;
  spans.clear();
  size_t done = 0;
  auto add = [&](size_t begin, size_t end, bool is_match) {
    is_match = is_match != s.invert;
    const bool previous = !spans.empty() && spans.back().is_match;
    const bool joins = s.behavior == Behavior::kContiguous
                           ? !spans.empty() && is_match == previous
                           : s.behavior == Behavior::kMergedWithPrevious && !spans.empty() && is_match && !previous;
    if (joins) {
      spans.back().end = end;
      spans.back().is_match = is_match;
    } else {
      spans.push_back({begin, end, is_match});
    }
  };
  while (finder.next(match)) {
    if (match.begin > done) add(done, match.begin, false);
    add(match.begin, match.end, true);
    done = match.end;
  }
  if (done < text.size()) add(done, text.size(), false);
  if (s.behavior == Behavior::kMergedWithNext) {
    // From the right: a match joins what follows it, unless that is (or began with) a match itself.
    bool following_match = false;
    size_t out = spans.size();
    for (size_t i = spans.size(); i-- > 0;) {
      const Span span = spans[i];
      if (span.is_match && !following_match && out < spans.size()) spans[out].begin = span.begin;
      else spans[--out] = span;
      following_match = span.is_match;
    }
    spans.erase(spans.begin(), spans.begin() + static_cast<long>(out));
  }
  for (size_t i = 0; i < spans.size(); i++) {
    const Span span = spans[i];
    if (s.behavior == Behavior::kRemoved && span.is_match) continue;
    emit(span.begin, span.end);
  }
}

}  // namespace dg
