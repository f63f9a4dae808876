// Recursive descent over the pattern; the recursion is bounded by kMaxNesting.
#include <fmt/core.h>

#include <algorithm>
#include <optional>
#include <string>

#include "text/regex_ast.h"

namespace dg::regex {
namespace {

using unicode::Ranges;

struct Flags {
  bool ignore_case = false, dot_all = false, extended = false;
};

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern) {}

  Result<Ast> run() {
    if (pattern_.size() > kMaxPatternBytes)
      return input_error(fmt::format("regular expression of {} bytes, at most {} are accepted", pattern_.size(), kMaxPatternBytes));
    if (size_t bad = unicode::first_invalid(pattern_); bad != std::string_view::npos)
      return input_error(fmt::format("regular expression is not UTF-8 at byte {}", bad));
    uint32_t root = alternation(0);
    if (!failed() && at_ < pattern_.size()) fail("unmatched )");
    if (failed()) return input_error(std::move(error_));
    ast_.root = root;
    return std::move(ast_);
  }

 private:
  bool failed() const { return !error_.empty(); }
  uint32_t fail(std::string_view what, size_t at = std::string_view::npos) {
    if (!failed()) {
      if (at == std::string_view::npos) at = at_;
      error_ = fmt::format("regular expression, byte {}: {}", at, what);
    }
    at_ = pattern_.size();  // every loop ends
    return 0;
  }

  std::nullopt_t refuse(std::string_view what, size_t at) {
    fail(what, at);
    return std::nullopt;
  }

  bool more() const { return at_ < pattern_.size(); }
  char peek(size_t ahead = 0) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  bool take(std::string_view text) {
    if (pattern_.substr(at_).substr(0, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }
  char32_t take_code() {
    unicode::Decoded d = unicode::decode(pattern_.data() + at_, pattern_.data() + pattern_.size());
    at_ += d.bytes;
    return d.code;
  }

  uint32_t add(Node node) {
    for (uint32_t child : node.children) node.depth = std::max<uint16_t>(node.depth, ast_.nodes[child].depth + 1);
    if (node.depth > 2 * kMaxNesting) return fail("nested too deeply");
    if (ast_.nodes.size() >= kMaxNodes) return fail(fmt::format("more than {} elements", kMaxNodes));
    ast_.nodes.push_back(std::move(node));
    return static_cast<uint32_t>(ast_.nodes.size() - 1);
  }
  uint32_t add_set(Ranges set) {
    Node node;
    node.kind = Kind::kSet;
    node.set = std::move(set);
    return add(std::move(node));
  }
  uint32_t add_assertion(Assertion assertion) {
    Node node;
    node.kind = Kind::kAssert;
    node.assertion = assertion;
    return add(std::move(node));
  }
  uint32_t add_char(char32_t c) {
    if (flags_.ignore_case) {
      const auto& variants = unicode::case_variants(c);
      if (variants.size() > 1) {
        Ranges set;
        for (char32_t v : variants) set.push_back({v, v});
        unicode::tidy(set);
        return add_set(std::move(set));
      }
    }
    Node node;
    node.kind = Kind::kChar;
    node.code = c;
    return add(std::move(node));
  }
  uint32_t add_list(Kind kind, std::vector<uint32_t> children) {
    if (children.size() == 1) return children[0];
    Node node;
    node.kind = children.empty() ? Kind::kEmpty : kind;
    node.children = std::move(children);
    return add(std::move(node));
  }

  uint32_t alternation(int nesting) {
    if (nesting > kMaxNesting) return fail(fmt::format("more than {} nested groups", kMaxNesting));
    const Flags outer = flags_;
    std::vector<uint32_t> branches{sequence(nesting)};
    while (!failed() && take("|")) branches.push_back(sequence(nesting));
    flags_ = outer;  // (?i) lasts to the end of its group
    return failed() ? 0 : add_list(Kind::kAlt, std::move(branches));
  }

  uint32_t sequence(int nesting) {
    std::vector<uint32_t> items;
    while (!failed() && more() && peek() != '|' && peek() != ')') {
      if (flags_.extended && skip_extended()) continue;
      if (set_flags()) {
        // (?i) in the middle: Ruby lets it hold for the rest of the group, alternatives included
        items.push_back(alternation(nesting + 1));
        break;
      }
      if (take("(?#")) {
        size_t close = pattern_.find(')', at_);
        if (close == std::string_view::npos) return fail("comment without )");
        at_ = close + 1;
        continue;
      }
      uint32_t item = atom(nesting);
      if (failed()) return 0;
      items.push_back(quantified(item));
    }
    return failed() ? 0 : add_list(Kind::kCat, std::move(items));
  }

  bool skip_extended() {
    char c = peek();
    if (c == ' ' || (c >= '\t' && c <= '\r')) {
      at_++;
      return true;
    }
    if (c == '#') {
      while (more() && peek() != '\n') at_++;
      return true;
    }
    return false;
  }

  // "(?i)": consumes it, sets flags_ and answers true; "(?i:" is left to atom().
  bool set_flags() {
    size_t start = at_;
    if (!take("(?")) return false;
    Flags flags = flags_;
    if (read_flags(flags) && take(")")) {
      flags_ = flags;
      return true;
    }
    at_ = start;
    return false;
  }
  bool read_flags(Flags& flags) {
    bool on = true, any = false;
    for (; more(); at_++, any = true) {
      switch (peek()) {
        case '-': on = false; break;
        case 'i': flags.ignore_case = on; break;
        case 'm':
        case 's': flags.dot_all = on; break;
        case 'x': flags.extended = on; break;
        default: return any;
      }
    }
    return false;
  }

  uint32_t group(int nesting) {
    size_t start = at_ - 1;
    Node wrap;
    if (take("?:")) {
    } else if (take("?>")) {
      wrap.kind = Kind::kAtomic;
    } else if (take("?=") || take("?!")) {
      wrap.kind = Kind::kLook;
      wrap.negative = pattern_[at_ - 1] == '!';
    } else if (take("?<=") || take("?<!")) {
      wrap.kind = Kind::kLook;
      wrap.ahead = false;
      wrap.negative = pattern_[at_ - 1] == '!';
    } else if (peek() == '?' && (peek(1) == '<' || peek(1) == '\'' || peek(1) == 'P')) {
      size_t close = pattern_.find_first_of(">'", at_ + 3);
      if (close == std::string_view::npos) return fail("group name without end", start);
      at_ = close + 1;  // the name is of no use without back-references
    } else if (take("?")) {
      Flags flags = flags_;
      if (!read_flags(flags) || !take(":")) return fail("unsupported group; expected (?: (?= (?! (?<= (?<! (?> or (?imx:", start);
      const Flags outer = flags_;
      flags_ = flags;
      uint32_t body = alternation(nesting + 1);
      flags_ = outer;
      if (!failed() && !take(")")) return fail("group without )", start);
      return body;
    }
    uint32_t body = alternation(nesting + 1);
    if (failed()) return 0;
    if (!take(")")) return fail("group without )", start);
    if (wrap.kind == Kind::kEmpty) return body;
    wrap.children = {body};
    return add(std::move(wrap));
  }

  uint32_t atom(int nesting) {
    switch (peek()) {
      case '(': at_++; return group(nesting);
      case '[': at_++; return add_set(char_class(0));
      case '.': at_++; return add_set(flags_.dot_all ? Ranges{{0, unicode::kMaxCodePoint}} : unicode::complement({{'\n', '\n'}}));
      case '^': at_++; return add_assertion(Assertion::kLineBegin);
      case '$': at_++; return add_assertion(Assertion::kLineEnd);
      case '\\': return escape();
      case '*':
      case '+':
      case '?': return fail("nothing to repeat");
      default: return add_char(take_code());
    }
  }

  uint32_t escape() {
    size_t start = at_;
    at_++;
    switch (peek()) {
      case 'b': at_++; return add_assertion(Assertion::kWordBoundary);
      case 'B': at_++; return add_assertion(Assertion::kNotWordBoundary);
      case 'A': at_++; return add_assertion(Assertion::kTextBegin);
      case 'z': at_++; return add_assertion(Assertion::kTextEnd);
      case 'Z': at_++; return add_assertion(Assertion::kTextEndOrNewline);
      case 'R': at_++; return line_break();
      case 'w':
      case 'W': {
        at_++;
        Ranges word = unicode::lone_word();
        return add_set(pattern_[at_ - 1] == 'w' ? std::move(word) : unicode::complement(word));
      }
      default: break;
    }
    at_ = start;
    Ranges set;
    std::optional<char32_t> single = escape_in_class(set);
    if (failed()) return 0;
    if (single) return add_char(*single);
    if (flags_.ignore_case) unicode::close_over_case(set);
    return add_set(std::move(set));
  }

  uint32_t line_break() {  // (?>\r\n|[\n-\r\x{85}\x{2028}\x{2029}])
    const uint32_t pair = add_list(Kind::kCat, {add_char('\r'), add_char('\n')});
    Node atomic;
    atomic.kind = Kind::kAtomic;
    atomic.children = {add_list(Kind::kAlt, {pair, add_set({{'\n', '\r'}, {0x85, 0x85}, {0x2028, 0x2029}})})};
    return failed() ? 0 : add(std::move(atomic));
  }

  uint32_t quantified(uint32_t item) {
    while (!failed()) {
      if (flags_.extended && more() && skip_extended()) continue;
      Node repeat;
      repeat.kind = Kind::kRepeat;
      bool interval = false, fixed = false;
      size_t start = at_;
      if (take("*")) repeat.max = kUnlimited;
      else if (take("+")) repeat.min = 1, repeat.max = kUnlimited;
      else if (take("?")) repeat.max = 1;
      else if (peek() == '{' && read_interval(repeat, fixed)) interval = true;
      else break;
      if (repeat.min > kMaxRepeat || (repeat.max > kMaxRepeat && repeat.max != kUnlimited))
        return fail(fmt::format("repetition above {}", kMaxRepeat), start);
      if (repeat.max < repeat.min) return fail("repetition {m,n} with n < m", start);
      // As in Ruby: {m}? makes the m-fold optional, {m,n}+ repeats it; both come round as a further quantifier.
      if (!(interval && fixed) && take("?")) repeat.mode = Mode::kLazy;
      else if (!interval && take("+")) repeat.mode = Mode::kPossessive;
      repeat.children = {item};
      item = add(std::move(repeat));
    }
    return failed() ? 0 : item;
  }

  bool read_interval(Node& repeat, bool& fixed) {  // leaves at_ where it was when "{" is literal
    size_t at = at_ + 1;
    auto number = [&](uint32_t& value) {
      size_t digits = 0;
      uint64_t v = 0;
      for (; at < pattern_.size() && pattern_[at] >= '0' && pattern_[at] <= '9'; at++, digits++)
        v = std::min<uint64_t>(v * 10 + static_cast<uint64_t>(pattern_[at] - '0'), 1000000);
      value = static_cast<uint32_t>(v);
      return digits > 0;
    };
    bool has_min = number(repeat.min), has_max = false;
    fixed = true;
    if (at < pattern_.size() && pattern_[at] == ',') {
      at++;
      fixed = false;
      has_max = number(repeat.max);
      if (!has_max) repeat.max = kUnlimited;
    } else {
      repeat.max = repeat.min;
    }
    if (at >= pattern_.size() || pattern_[at] != '}' || (!has_min && !has_max)) return false;
    at_ = at + 1;
    return true;
  }

  // After "[". Intersections (&&) bind looser than the union of items.
  Ranges char_class(int nesting) {
    const size_t start = at_ - 1;
    if (nesting > kMaxNesting) {
      fail("character classes nested too deeply", start);
      return {};
    }
    bool negative = take("^");
    std::optional<Ranges> left;
    Ranges items;
    for (bool first = true;; first = false) {
      if (!more()) {
        fail("character class without ]", start);
        return {};
      }
      if (peek() == ']' && !first) {
        at_++;
        break;
      }
      if (take("&&")) {
        unicode::tidy(items);
        left = left ? unicode::intersection(*left, items) : std::move(items);
        items.clear();
        continue;
      }
      class_item(items, nesting);
      if (failed()) return {};
      if (items.size() > 65536) unicode::tidy(items);
    }
    unicode::tidy(items);
    if (left) items = unicode::intersection(*left, items);
    if (flags_.ignore_case) unicode::close_over_case(items);
    return negative ? unicode::complement(items) : items;
  }

  void class_item(Ranges& items, int nesting) {
    size_t start = at_;
    if (take("[:")) {
      size_t close = pattern_.find(":]", at_);
      if (close != std::string_view::npos && close - at_ < 20) {
        bool negative = take("^");
        auto set = unicode::property(pattern_.substr(at_, close - at_));
        if (set) {
          at_ = close + 2;
          Ranges chosen = negative ? unicode::complement(*set) : *set;
          items.insert(items.end(), chosen.begin(), chosen.end());
          return;
        }
      }
      at_ = start;
    }
    if (take("[")) {
      Ranges inner = char_class(nesting + 1);
      items.insert(items.end(), inner.begin(), inner.end());
      return;
    }
    std::optional<char32_t> low = class_char(items);
    if (failed() || !low) return;
    char32_t high = *low;
    if (peek() == '-' && peek(1) != ']' && at_ + 1 < pattern_.size()) {
      size_t dash = at_;
      at_++;
      Ranges set;
      std::optional<char32_t> upper;
      if (peek() != '[') upper = class_char(set);
      if (failed()) return;
      if (upper) {
        high = *upper;
        if (high < *low) {
          fail("character range runs backwards", start);
          return;
        }
      } else {
        at_ = dash + 1;  // "a-\d": the dash stands for itself
        items.push_back({'-', '-'});
      }
    }
    items.push_back({*low, high});
  }

  // One character of a class; a set such as \p{L} is added to `items` and answers nullopt.
  std::optional<char32_t> class_char(Ranges& items) {
    if (peek() != '\\') return take_code();
    if (peek(1) == 'b') {
      at_ += 2;
      return U'\b';
    }
    return escape_in_class(items);
  }

  std::optional<char32_t> escape_in_class(Ranges& items) {
    const size_t start = at_;
    at_++;
    if (!more()) return refuse("backslash at the end", start);
    auto put = [&](std::string_view name, bool negative) -> std::optional<char32_t> {
      Ranges set = *unicode::property(name);
      if (negative) set = unicode::complement(set);
      items.insert(items.end(), set.begin(), set.end());
      return std::nullopt;
    };
    char32_t c = take_code();
    switch (c) {
      case 't': return U'\t';
      case 'n': return U'\n';
      case 'r': return U'\r';
      case 'f': return U'\f';
      case 'v': return U'\v';
      case 'a': return U'\a';
      case 'e': return char32_t{0x1b};
      case 's': return put("White_Space", false);
      case 'S': return put("White_Space", true);
      case 'd': return put("Nd", false);
      case 'D': return put("Nd", true);
      case 'w': return put("Word", false);
      case 'W': return put("Word", true);
      case 'h': return put("xdigit", false);
      case 'H': return put("xdigit", true);
      case 'p':
      case 'P': return property_escape(items, c == 'P', start);
      case 'x': return hex_escape(start);
      case 'u': return hex_digits(4, 4, start);
      case '0': return octal_escape();
      default: break;
    }
    if ((c >= '1' && c <= '9') || c == 'k' || c == 'g') return refuse("back-references are not supported", start);
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
      return refuse(fmt::format("unsupported escape \\{}", static_cast<char>(c)), start);
    return c;
  }

  std::optional<char32_t> property_escape(Ranges& items, bool negative, size_t start) {
    std::string_view name;
    if (take("{")) {
      size_t close = pattern_.find('}', at_);
      if (close == std::string_view::npos) return refuse("\\p{ without }", start);
      if (take("^")) negative = !negative;
      name = pattern_.substr(at_, close - at_);
      at_ = close + 1;
    } else {
      name = pattern_.substr(at_, 1);
      at_ += name.size();
    }
    for (std::string_view prefix : {"Script=", "sc=", "General_Category=", "gc="})
      if (name.substr(0, prefix.size()) == prefix) name.remove_prefix(prefix.size());
    auto set = name.size() <= 64 ? unicode::property(name) : std::nullopt;
    if (!set) {
      fail(fmt::format("unknown property \\p{{{}}}; expected a general category (L, Lu, ...) or a script (Han, ...)", name.substr(0, 64)),
           start);
      return std::nullopt;
    }
    if (negative) *set = unicode::complement(*set);
    items.insert(items.end(), set->begin(), set->end());
    return std::nullopt;
  }

  std::optional<char32_t> hex_escape(size_t start) {
    if (!take("{")) return hex_digits(1, 2, start);
    auto value = hex_digits(1, 6, start);
    if (!failed() && !take("}")) fail("\\x{ without }", start);
    return failed() ? std::nullopt : value;
  }

  std::optional<char32_t> hex_digits(int least, int most, size_t start) {
    char32_t value = 0;
    int n = 0;
    for (; n < most; n++, at_++) {
      char c = peek();
      if (c >= '0' && c <= '9') value = value * 16 + static_cast<char32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') value = value * 16 + static_cast<char32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') value = value * 16 + static_cast<char32_t>(c - 'A' + 10);
      else break;
    }
    if (n < least || value > unicode::kMaxCodePoint) return refuse("expected hexadecimal digits of a code point", start);
    return value;
  }

  char32_t octal_escape() {
    char32_t value = 0;
    for (int n = 0; n < 2 && peek() >= '0' && peek() <= '7'; n++, at_++) value = value * 8 + static_cast<char32_t>(peek() - '0');
    return value;
  }

  std::string_view pattern_;
  size_t at_ = 0;
  Flags flags_;
  Ast ast_;
  std::string error_;
};

}  // namespace

Result<Ast> parse(std::string_view pattern) { return Parser(pattern).run(); }

}  // namespace dg::regex
