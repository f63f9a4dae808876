#include "text/grammar_regex.h"

#include <fmt/core.h>

#include <algorithm>
#include <optional>

namespace dg::grammar {
namespace {

using unicode::Ranges;

constexpr int kMaxGroups = 100;
constexpr size_t kMaxPatternBytes = size_t{64} << 10;
constexpr size_t kMaxAlternatives = 4096;  // made by ^ and $ inside groups

struct RegexNode {
  enum Kind : uint8_t { kEmpty, kSet, kCat, kAlt, kRepeat, kBegin, kEnd } kind = kEmpty;
  uint32_t min = 0, max = 0;
  Ranges set;
  std::vector<uint32_t> children;
  bool anchored = false;  // contains ^ or $
};

class RegexParser {
 public:
  explicit RegexParser(std::string_view pattern) : pattern_(pattern) {}

  Result<uint32_t> run() {
    if (pattern_.size() > kMaxPatternBytes)
      return input_error(fmt::format("offset 0: expected at most {} bytes, found {}", kMaxPatternBytes, pattern_.size()));
    const size_t bad = unicode::first_invalid(pattern_);
    if (bad != std::string_view::npos) return input_error(fmt::format("offset {}: expected UTF-8", bad));
    const uint32_t root = alternatives(0);
    if (error_.empty() && more()) fail("unmatched )", at_);
    if (!error_.empty()) return input_error(error_);
    return root;
  }
  std::vector<RegexNode> nodes;

 private:
  bool more() const { return at_ < pattern_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  bool take(std::string_view text) {
    if (!pattern_.substr(at_).starts_with(text)) return false;
    at_ += text.size();
    return true;
  }
  uint32_t fail(std::string_view what, size_t at) {
    if (error_.empty()) error_ = fmt::format("offset {}: {}", at, what);
    at_ = pattern_.size();
    return 0;
  }
  char32_t take_code() {
    const auto decoded = unicode::decode(pattern_.data() + at_, pattern_.data() + pattern_.size());
    at_ += decoded.bytes;
    return decoded.code;
  }
  uint32_t add(RegexNode node) {
    node.anchored = node.kind == RegexNode::kBegin || node.kind == RegexNode::kEnd;
    for (uint32_t child : node.children) node.anchored |= nodes[child].anchored;
    nodes.push_back(std::move(node));
    return static_cast<uint32_t>(nodes.size() - 1);
  }
  uint32_t add_set(Ranges set) {
    unicode::tidy(set);
    return add({.kind = RegexNode::kSet, .set = std::move(set)});
  }

  uint32_t alternatives(int depth) {
    if (depth > kMaxGroups) return fail(fmt::format("expected at most {} nested groups", kMaxGroups), at_);
    std::vector<uint32_t> options{sequence(depth)};
    while (error_.empty() && take("|")) options.push_back(sequence(depth));
    if (!error_.empty()) return 0;
    return options.size() == 1 ? options[0] : add({.kind = RegexNode::kAlt, .children = std::move(options)});
  }

  uint32_t sequence(int depth) {
    std::vector<uint32_t> items;
    while (error_.empty() && more() && peek() != '|' && peek() != ')') {
      const size_t start = at_;
      const uint32_t item = atom(depth);
      if (!error_.empty()) return 0;
      items.push_back(quantified(item, start));
    }
    if (!error_.empty()) return 0;
    return items.size() == 1 ? items[0] : add({.kind = items.empty() ? RegexNode::kEmpty : RegexNode::kCat, .children = std::move(items)});
  }

  uint32_t atom(int depth) {
    const size_t start = at_;
    switch (peek()) {
      case '(': return group(depth);
      case '[': return char_class();
      case '.': at_++; return add_set(unicode::complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}));
      case '^': at_++; return add({.kind = RegexNode::kBegin});
      case '$': at_++; return add({.kind = RegexNode::kEnd});
      case '*':
      case '+':
      case '?': return fail("nothing to repeat before the quantifier", start);
      case '\\': {
        if (peek(1) == 'b' || peek(1) == 'B') return fail("word boundaries (\\b, \\B) cannot be enforced; write the characters out", start);
        Ranges set;
        if (auto c = escape(set, false)) set = {{*c, *c}};
        return error_.empty() ? add_set(std::move(set)) : 0;
      }
      default: {
        const char32_t c = take_code();
        return add_set({{c, c}});
      }
    }
  }

  uint32_t group(int depth) {
    const size_t start = at_;
    at_++;
    if (take("?")) {
      if (take("=") || take("!")) return fail("look-ahead (?= (?! cannot be enforced", start);
      if (take("<=") || take("<!")) return fail("look-behind (?<= (?<! cannot be enforced", start);
      if (take("<") || take("P<")) {
        const size_t close = pattern_.find('>', at_);
        if (close == std::string_view::npos) return fail("group name without >", start);
        at_ = close + 1;
      } else if (!take(":")) {
        return fail("unsupported group; expected ( (?: or (?<name>", start);
      }
    }
    const uint32_t body = alternatives(depth + 1);
    if (!error_.empty()) return 0;
    if (!take(")")) return fail("group without )", start);
    return body;
  }

  uint32_t quantified(uint32_t item, size_t start) {
    RegexNode repeat{.kind = RegexNode::kRepeat, .children = {item}};
    const size_t at = at_;
    if (take("*")) repeat.max = kUnlimited;
    else if (take("+")) repeat.min = 1, repeat.max = kUnlimited;
    else if (take("?")) repeat.max = 1;
    else if (peek() != '{' || !interval(repeat)) return item;
    if (!error_.empty()) return 0;
    if (repeat.max < repeat.min) return fail("repetition {m,n} with n < m", at);
    if (repeat.min > kMaxRepeat || (repeat.max != kUnlimited && repeat.max > kMaxRepeat))
      return fail(fmt::format("repetition above {}", kMaxRepeat), at);
    take("?");  // lazy: the same texts
    if (peek() == '*' || peek() == '+' || peek() == '?') return fail("two quantifiers in a row", at_);
    if (nodes[item].anchored) return fail("a repeated ^ or $ cannot be enforced", start);
    return add(std::move(repeat));
  }

  bool interval(RegexNode& repeat) {  // "{" that begins no interval is literal
    size_t at = at_ + 1;
    auto number = [&](uint32_t& value) {
      const size_t first = at;
      uint64_t v = 0;
      for (; at < pattern_.size() && pattern_[at] >= '0' && pattern_[at] <= '9'; at++)
        v = std::min<uint64_t>(v * 10 + static_cast<uint64_t>(pattern_[at] - '0'), kMaxRepeat + 1);
      value = static_cast<uint32_t>(v);
      return at > first;
    };
    if (!number(repeat.min)) return false;
    repeat.max = repeat.min;
    if (at < pattern_.size() && pattern_[at] == ',') {
      at++;
      if (!number(repeat.max)) repeat.max = kUnlimited;
    }
    if (at >= pattern_.size() || pattern_[at] != '}') return false;
    at_ = at + 1;
    return true;
  }

  uint32_t char_class() {
    const size_t start = at_;
    at_++;
    const bool negative = take("^");
    Ranges set;
    while (error_.empty() && more() && peek() != ']') {
      const size_t item = at_;
      std::optional<char32_t> low = class_char(set);
      if (!low || !error_.empty() || peek() != '-' || peek(1) == ']' || at_ + 1 >= pattern_.size()) {
        if (low) set.push_back({*low, *low});
        continue;
      }
      at_++;
      std::optional<char32_t> high = class_char(set);
      if (!high) set.push_back({*low, *low}), set.push_back({'-', '-'});
      else if (*high < *low) return fail("character range runs backwards", item);
      else set.push_back({*low, *high});
    }
    if (!error_.empty()) return 0;
    if (!take("]")) return fail("character class without ]", start);
    unicode::tidy(set);
    return add_set(negative ? unicode::complement(set) : std::move(set));
  }

  std::optional<char32_t> class_char(Ranges& set) {
    if (peek() != '\\') return take_code();
    return escape(set, true);
  }

  // One character, or a set that is added to `set`.
  std::optional<char32_t> escape(Ranges& set, bool in_class) {
    const size_t start = at_;
    at_++;
    if (!more()) {
      fail("backslash at the end", start);
      return std::nullopt;
    }
    auto put = [&](Ranges ranges, bool negative) -> std::optional<char32_t> {
      unicode::tidy(ranges);
      if (negative) ranges = unicode::complement(ranges);
      set.insert(set.end(), ranges.begin(), ranges.end());
      return std::nullopt;
    };
    const char32_t c = take_code();
    switch (c) {
      case 't': return U'\t';
      case 'n': return U'\n';
      case 'r': return U'\r';
      case 'f': return U'\f';
      case 'v': return U'\v';
      case '0': return U'\0';
      case 'b':
        if (in_class) return U'\b';
        break;
      case 'd':
      case 'D': return put({{'0', '9'}}, c == 'D');
      case 'w':
      case 'W': return put({{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}, c == 'W');
      case 's':
      case 'S':
        return put({{'\t', '\r'},
                    {' ', ' '},
                    {0xa0, 0xa0},
                    {0x1680, 0x1680},
                    {0x2000, 0x200a},
                    {0x2028, 0x2029},
                    {0x202f, 0x202f},
                    {0x205f, 0x205f},
                    {0x3000, 0x3000},
                    {0xfeff, 0xfeff}},
                   c == 'S');
      case 'p':
      case 'P': return property(set, c == 'P', start);
      case 'x': return hex(2, 2, start);
      case 'u': return take("{") ? hex(1, 6, start, true) : utf16(start);
      case 'c':
        if ((peek() | 0x20) >= 'a' && (peek() | 0x20) <= 'z') return static_cast<char32_t>(pattern_[at_++] & 31);
        break;
      default: break;
    }
    if ((c >= '1' && c <= '9') || c == 'k') {
      fail("back-references cannot be enforced", start);
    } else if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      fail(fmt::format("unsupported escape \\{}", static_cast<char>(c)), start);
    } else {
      return c;
    }
    return std::nullopt;
  }

  std::optional<char32_t> property(Ranges& set, bool negative, size_t start) {
    const size_t close = pattern_.find('}', at_);
    if (!take("{") || close == std::string_view::npos) {
      fail("expected \\p{...}", start);
      return std::nullopt;
    }
    std::string_view name = pattern_.substr(at_, close - at_);
    at_ = close + 1;
    for (std::string_view prefix : {"Script=", "sc=", "Script_Extensions=", "General_Category=", "gc="})
      if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
    auto ranges = name.size() <= 64 ? unicode::property(name) : std::nullopt;
    if (!ranges) {
      fail(fmt::format("unknown property \\p{{{}}}; expected a general category (L, Lu, ...) or a script (Han, ...)", name.substr(0, 64)),
           start);
      return std::nullopt;
    }
    if (negative) *ranges = unicode::complement(*ranges);
    set.insert(set.end(), ranges->begin(), ranges->end());
    return std::nullopt;
  }

  std::optional<char32_t> hex(int least, int most, size_t start, bool braces = false) {
    char32_t value = 0;
    int n = 0;
    for (; n < most; n++, at_++) {
      const char c = peek();
      if (c >= '0' && c <= '9') value = value * 16 + static_cast<char32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') value = value * 16 + static_cast<char32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') value = value * 16 + static_cast<char32_t>(c - 'A' + 10);
      else break;
    }
    if (n < least || value > unicode::kMaxCodePoint || (braces && !take("}"))) {
      fail("expected hexadecimal digits of a code point", start);
      return std::nullopt;
    }
    return value;
  }

  std::optional<char32_t> utf16(size_t start) {  // \uD83D\uDE00 is one code point
    auto high = hex(4, 4, start);
    if (!high || *high < 0xd800 || *high > 0xdbff || !take("\\u")) return high;
    auto low = hex(4, 4, start);
    if (low && *low >= 0xdc00 && *low <= 0xdfff) return 0x10000 + ((*high - 0xd800) << 10) + (*low - 0xdc00);
    fail("expected a low surrogate behind the high one", start);
    return std::nullopt;
  }

  std::string_view pattern_;
  size_t at_ = 0;
  std::string error_;
};

class RegexLowering {
 public:
  RegexLowering(Ast& ast, std::vector<RegexNode> nodes, bool json_string)
      : ast_(ast), nodes_(std::move(nodes)), json_string_(json_string) {}

  // The texts "x match y" with x empty unless `before`, y empty unless `after`; ^ demands an empty x, $ an empty y.
  Result<ExprId> placed(uint32_t node, bool before, bool after) {
    std::vector<uint32_t> items{node};
    std::vector<ExprId> ways;
    DG_TRY(place(std::move(items), before, after, ways, 0));
    return ast_.alt(std::move(ways));
  }

 private:
  Result<void> place(std::vector<uint32_t> items, bool before, bool after, std::vector<ExprId>& ways, int depth) {
    if (depth > 2 * kMaxGroups || ways.size() > kMaxAlternatives)
      return input_error("offset 0: ^ and $ stand in too many alternatives; expected them at the ends of the pattern");
    // Opens what stands at either end until it is free of anchors.
    for (bool front : {true, false}) {
      while (!items.empty()) {
        const size_t end = front ? 0 : items.size() - 1;
        const RegexNode& node = nodes_[items[end]];
        if (!node.anchored) break;
        if (node.kind == (front ? RegexNode::kBegin : RegexNode::kEnd)) {
          (front ? before : after) = false;
          items.erase(items.begin() + static_cast<std::ptrdiff_t>(end));
        } else if (node.kind == RegexNode::kCat) {
          const std::vector<uint32_t> children = node.children;
          items.erase(items.begin() + static_cast<std::ptrdiff_t>(end));
          items.insert(front ? items.begin() : items.end(), children.begin(), children.end());
        } else if (node.kind == RegexNode::kAlt) {
          const std::vector<uint32_t> options = node.children;
          for (uint32_t option : options) {
            items[end] = option;
            DG_TRY(place(items, before, after, ways, depth + 1));
          }
          return {};
        } else {
          break;  // $ in front or ^ behind
        }
      }
    }
    std::vector<ExprId> parts;
    if (before) parts.push_back(any_text());
    for (uint32_t item : items) {
      if (nodes_[item].anchored) return input_error("offset 0: ^ and $ can be enforced only where the pattern begins or ends");
      parts.push_back(plain(item));
    }
    if (after) parts.push_back(any_text());
    ways.push_back(ast_.seq(std::move(parts)));
    return {};
  }

  ExprId any_text() { return ast_.repeat(json_string_ ? json_any_char(ast_) : ast_.chars({{0, unicode::kMaxCodePoint}}), 0, kUnlimited); }

  ExprId plain(uint32_t id) {
    const RegexNode& node = nodes_[id];
    std::vector<ExprId> children;
    for (uint32_t child : node.children) children.push_back(plain(child));
    switch (node.kind) {
      case RegexNode::kSet: return json_string_ ? json_chars(ast_, node.set) : ast_.chars(node.set);
      case RegexNode::kCat: return ast_.seq(std::move(children));
      case RegexNode::kAlt: return ast_.alt(std::move(children));
      case RegexNode::kRepeat: return ast_.repeat(children[0], node.min, node.max);
      default: return ast_.empty();
    }
  }

  Ast& ast_;
  std::vector<RegexNode> nodes_;
  bool json_string_;
};

}  // namespace

Result<ExprId> add_regex(Ast& ast, std::string_view pattern, RegexUse use) {
  RegexParser parser(pattern);
  DG_ASSIGN(const uint32_t root, parser.run());
  return RegexLowering(ast, std::move(parser.nodes), use.json_string).placed(root, use.search, use.search);
}

}  // namespace dg::grammar
