#include "text/grammar_ebnf.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>

#include "text/grammar_schema.h"

namespace dg::grammar {
namespace {

constexpr int kMaxParentheses = 100;

class EbnfParser {
 public:
  EbnfParser(Ast& ast, std::string_view text, const std::function<std::optional<int32_t>(std::string_view)>& find_added)
      : ast_(ast), text_(text), find_added_(find_added) {}

  Result<RuleId> run() {
    const size_t bad = unicode::first_invalid(text_);
    if (bad != std::string_view::npos) return input_error(place(bad) + "expected UTF-8");
    skip();
    while (more() && error_.empty()) rule();
    if (!error_.empty()) return input_error(error_);
    auto root = rules_.find("root");
    if (root == rules_.end() || !ast_.rules()[root->second].defined)
      return input_error("line 1, column 1: expected a rule named root (root ::= ...), found none");
    for (const auto& [name, used_at] : first_use_)
      if (!ast_.rules()[rules_[name]].defined)
        return input_error(place(used_at) + fmt::format("expected a defined rule, found \"{}\"", name));
    return root->second;
  }

 private:
  bool more() const { return at_ < text_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  bool take(std::string_view token) {
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }
  std::string place(size_t at) const {
    const std::string_view before = text_.substr(0, at);
    const auto line = std::count(before.begin(), before.end(), '\n');
    const size_t begin = before.rfind('\n');
    return fmt::format("line {}, column {}: ", line + 1, at - (begin == std::string_view::npos ? 0 : begin + 1) + 1);
  }
  ExprId fail(size_t at, std::string_view what) {
    if (error_.empty()) error_ = place(std::min(at, text_.size())) + std::string(what);
    return ast_.nothing();
  }
  std::string found() const {
    if (!more()) return "the end";
    const auto c = unicode::decode(text_.data() + at_, text_.data() + text_.size());
    return c.code < 0x20 ? "a control character" : fmt::format("\"{}\"", text_.substr(at_, c.bytes));
  }

  void skip() {  // blanks, line ends, comments
    while (more()) {
      if (peek() == '#') {
        while (more() && peek() != '\n') at_++;
      } else if (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') {
        at_++;
      } else {
        return;
      }
    }
  }

  static bool is_name_char(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  }
  std::string_view name() {
    const size_t begin = at_;
    while (is_name_char(peek())) at_++;
    return text_.substr(begin, at_ - begin);
  }
  bool at_definition() {  // "name ::="
    const size_t begin = at_;
    const bool named = !name().empty();
    skip();
    const bool definition = named && text_.substr(at_).starts_with("::=");
    at_ = begin;
    return definition;
  }
  RuleId rule_named(std::string_view rule_name) {
    auto [it, fresh] = rules_.try_emplace(std::string(rule_name), 0);
    if (fresh) it->second = ast_.add_rule(it->first);
    return it->second;
  }

  void rule() {
    const size_t start = at_;
    const std::string_view rule_name = name();
    if (rule_name.empty()) {
      fail(start, fmt::format("expected the name of a rule, found {}", found()));
      return;
    }
    skip();
    if (!take("::=")) {
      fail(at_, fmt::format("expected ::= behind rule name \"{}\", found {}", rule_name.substr(0, 64), found()));
      return;
    }
    const RuleId id = rule_named(rule_name);
    if (ast_.rules()[id].defined) {
      fail(start, fmt::format("expected one definition of rule \"{}\", found a second", rule_name.substr(0, 64)));
      return;
    }
    if (ast_.rules().size() > kMaxRules) {
      fail(start, fmt::format("expected at most {} rules", kMaxRules));
      return;
    }
    skip();
    const ExprId body = text_.substr(at_).starts_with("%json") ? json_schema() : alternatives(0);
    if (!error_.empty()) return;
    ast_.define(id, body);
    skip();
    if (more() && !at_definition()) fail(at_, fmt::format("expected a rule (name ::= ...), found {}", found()));
  }

  ExprId json_schema() {
    const size_t start = at_;
    at_ += 5;
    skip();
    if (peek() != '{') return fail(start, "expected %json{ ...schema... }");
    const size_t begin = at_;
    int depth = 0;
    bool string = false;
    for (; more(); at_++) {
      const char c = peek();
      if (string) {
        if (c == '\\') at_++;
        else if (c == '"') string = false;
      } else if (c == '"') {
        string = true;
      } else if (c == '{') {
        depth++;
      } else if (c == '}' && --depth == 0) {
        at_++;
        auto schema = add_schema(ast_, text_.substr(begin, at_ - begin));
        if (!schema.ok()) return fail(start, "%json " + schema.error().message);
        return ast_.call(*schema);
      }
    }
    at_ = text_.size();
    return fail(start, "%json{ without its closing }");
  }

  ExprId alternatives(int depth) {
    std::vector<ExprId> options{sequence(depth)};
    while (error_.empty()) {
      skip();
      if (!take("|")) break;
      options.push_back(sequence(depth));
    }
    return ast_.alt(std::move(options));
  }

  ExprId sequence(int depth) {
    std::vector<ExprId> items;
    while (error_.empty()) {
      skip();
      if (!more() || peek() == '|' || peek() == ')' || at_definition()) break;
      const ExprId item = atom(depth);
      if (error_.empty()) items.push_back(quantified(item));
    }
    return ast_.seq(std::move(items));
  }

  ExprId atom(int depth) {
    const size_t start = at_;
    if (peek() == '"') return literal();
    if (peek() == '[') return char_class();
    if (take("<[")) {
      const size_t close = text_.find("]>", at_);
      if (close == std::string_view::npos || close == at_) return fail(start, "expected <[CONTENT]>");
      const std::string_view content = text_.substr(at_, close - at_);
      at_ = close + 2;
      const auto id = find_added_(content);
      return id ? ast_.token(*id) : ast_.text(content);
    }
    if (take(".")) return ast_.chars({{0, unicode::kMaxCodePoint}});
    if (take("(")) {
      if (depth >= kMaxParentheses) return fail(start, fmt::format("expected at most {} nested groups", kMaxParentheses));
      const ExprId body = alternatives(depth + 1);
      skip();
      if (error_.empty() && !take(")")) return fail(at_, fmt::format("expected ) of the group, found {}", found()));
      return body;
    }
    const std::string_view rule_name = name();
    if (rule_name.empty())
      return fail(start, fmt::format("expected \"text\", [class], (group), <[token]> or a rule name, found {}", found()));
    const RuleId id = rule_named(rule_name);
    first_use_.try_emplace(std::string(rule_name), start);
    return ast_.call(id);
  }

  ExprId quantified(ExprId item) {
    for (int quantifiers = 0; error_.empty(); quantifiers++) {
      const size_t start = at_;
      uint32_t min = 0, max = kUnlimited;
      if (take("?")) max = 1;
      else if (take("+")) min = 1;
      else if (!take("*") && !(peek() == '{' && interval(min, max))) break;
      if (quantifiers >= 4) return fail(start, "expected at most 4 quantifiers in a row");
      if (error_.empty()) item = ast_.repeat(item, min, max);
    }
    return item;
  }

  bool interval(uint32_t& min, uint32_t& max) {
    const size_t start = at_++;
    auto number = [&](uint32_t& value) {
      const size_t first = at_;
      uint64_t v = 0;
      for (; peek() >= '0' && peek() <= '9'; at_++) v = std::min<uint64_t>(v * 10 + static_cast<uint64_t>(peek() - '0'), kMaxRepeat + 1);
      if (at_ > first) value = static_cast<uint32_t>(v);
      return at_ > first;
    };
    skip_blanks();
    const bool has_min = number(min);
    skip_blanks();
    if (take(",")) {
      skip_blanks();
      number(max);
      skip_blanks();
    } else {
      if (!has_min) fail(start, "expected {m}, {m,} or {m,n}");
      max = min;
    }
    if (!take("}")) fail(at_, fmt::format("expected }} of the repetition, found {}", found()));
    else if (min > max) fail(start, "expected {m,n} with m <= n");
    else if (min > kMaxRepeat || (max != kUnlimited && max > kMaxRepeat))
      fail(start, fmt::format("expected at most {} repetitions", kMaxRepeat));
    return true;
  }
  void skip_blanks() {
    while (peek() == ' ' || peek() == '\t') at_++;
  }

  ExprId literal() {
    const size_t start = at_++;
    std::string bytes;
    while (more() && peek() != '"' && peek() != '\n' && error_.empty()) unicode::append_utf8(bytes, character());
    if (error_.empty() && !take("\"")) return fail(start, "literal without its closing quote");
    return ast_.text(bytes);
  }

  ExprId char_class() {
    const size_t start = at_++;
    const bool negative = take("^");
    unicode::Ranges set;
    while (more() && peek() != ']' && peek() != '\n' && error_.empty()) {
      const size_t item = at_;
      const char32_t low = character();
      char32_t high = low;
      if (peek() == '-' && peek(1) != ']') {
        at_++;
        if (more()) high = character();
      }
      if (high < low) return fail(item, "character range runs backwards");
      set.push_back({low, high});
    }
    if (error_.empty() && !take("]")) return fail(start, "character class without ]");
    unicode::tidy(set);
    return ast_.chars(negative ? unicode::complement(set) : std::move(set));
  }

  char32_t character() {
    const size_t start = at_;
    if (!take("\\")) {
      const auto c = unicode::decode(text_.data() + at_, text_.data() + text_.size());
      at_ += c.bytes;
      return c.code;
    }
    const char c = peek();
    at_ = std::min(at_ + 1, text_.size());
    switch (c) {
      case 'n': return U'\n';
      case 'r': return U'\r';
      case 't': return U'\t';
      case '\\':
      case '"':
      case '[':
      case ']':
      case '-':
      case '^': return static_cast<unsigned char>(c);
      case 'x': return hex(2, start);
      case 'u': return hex(4, start);
      case 'U': return hex(8, start);
      default: fail(start, "expected an escape \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ \\xHH \\uHHHH or \\UHHHHHHHH"); return 0;
    }
  }
  char32_t hex(int digits, size_t start) {
    uint64_t value = 0;
    for (int i = 0; i < digits; i++, at_++) {
      const char c = peek();
      if (c >= '0' && c <= '9') value = value * 16 + static_cast<uint64_t>(c - '0');
      else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') value = value * 16 + static_cast<uint64_t>((c | 0x20) - 'a' + 10);
      else value = UINT32_MAX;
    }
    at_ = std::min(at_, text_.size());
    if (value <= unicode::kMaxCodePoint && (value < 0xd800 || value > 0xdfff)) return static_cast<char32_t>(value);
    fail(start, "expected the hexadecimal digits of a code point");
    return 0;
  }

  Ast& ast_;
  std::string_view text_;
  const std::function<std::optional<int32_t>(std::string_view)>& find_added_;
  size_t at_ = 0;
  std::string error_;
  std::map<std::string, RuleId> rules_;
  std::map<std::string, size_t> first_use_;
};

}  // namespace

Result<RuleId> add_ebnf(Ast& ast, std::string_view text, const std::function<std::optional<int32_t>(std::string_view)>& find_added) {
  return EbnfParser(ast, text, find_added).run();
}

}  // namespace dg::grammar
