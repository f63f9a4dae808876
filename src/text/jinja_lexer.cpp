#include "text/jinja_lexer.h"

#include <fmt/core.h>

#include <charconv>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

namespace dg::jinja {
namespace {

bool name_start(unsigned char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80; }
bool digit(unsigned char c) { return c >= '0' && c <= '9'; }
bool name_part(unsigned char c) { return name_start(c) || digit(c); }

std::string normalise_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); i++) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') i++;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();  // keep_trailing_newline is off
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalise_newlines(source)), src_(source_) {}

  std::vector<Token> run() {
    while (at_ < src_.size()) {
      size_t tag = find_tag(at_);
      if (tag == std::string_view::npos) {
        add_text(src_.substr(at_));
        at_ = src_.size();
        break;
      }
      read_tag(tag);
    }
    add(TokenKind::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string message) const { throw Failure{std::move(message), line_}; }

  size_t find_tag(size_t from) const {
    for (size_t i = src_.find('{', from); i != std::string_view::npos && i + 1 < src_.size(); i = src_.find('{', i + 1))
      if (src_[i + 1] == '{' || src_[i + 1] == '%' || src_[i + 1] == '#') return i;
    return std::string_view::npos;
  }

  Token& add(TokenKind kind) {
    Token token;
    token.kind = kind;
    token.line = line_;
    tokens_.push_back(std::move(token));
    return tokens_.back();
  }

  void advance(size_t to) {
    for (; at_ < to; at_++)
      if (src_[at_] == '\n') line_++;
  }

  void add_text(std::string_view text) {
    if (!text.empty()) add(TokenKind::kText).text = text;
  }

  // The text before a tag, after the control of `sign` and lstrip_blocks.
  std::string_view control_left(std::string_view text, char sign, bool print) const {
    if (sign == '-') return strip_right(text);
    if (sign == '+' || print) return text;
    size_t newline = text.rfind('\n');
    size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
    if ((line_start > 0 || line_starting_) && strip_left(text.substr(line_start)).empty()) return text.substr(0, line_start);
    return text;
  }

  size_t skip_space(size_t i) const {
    while (i < src_.size() && is_space(decode_character(src_, i))) i += sequence_length(src_, i);
    return i;
  }

  // If a tag ends at `i` ("-%}", "+%}", "%}" and so on for `close`), the position after it and after the white space it
  // removes; otherwise npos. trim: a plain end removes one newline.
  size_t end_of_tag(size_t i, std::string_view close, bool trim, bool plus) const {
    auto rest = src_.substr(i);
    if (rest.size() > close.size() && rest[0] == '-' && rest.substr(1, close.size()) == close) return skip_space(i + 1 + close.size());
    if (plus && rest.size() > close.size() && rest[0] == '+' && rest.substr(1, close.size()) == close) return i + 1 + close.size();
    if (rest.substr(0, close.size()) != close) return std::string_view::npos;
    size_t end = i + close.size();
    return trim && end < src_.size() && src_[end] == '\n' ? end + 1 : end;
  }

  void finish_tag(size_t end) {
    advance(end);
    line_starting_ = end > 0 && src_[end - 1] == '\n';
  }

  void read_tag(size_t tag) {
    char type = src_[tag + 1];
    char sign = tag + 2 < src_.size() && (src_[tag + 2] == '-' || src_[tag + 2] == '+') ? src_[tag + 2] : 0;
    size_t inside = tag + 2 + (sign ? 1 : 0);
    add_text(control_left(src_.substr(at_, tag - at_), sign, type == '{'));
    advance(inside);
    if (type == '#') return read_comment();
    if (type == '%' && read_raw()) return;
    add(type == '{' ? TokenKind::kPrintBegin : TokenKind::kBlockBegin);
    read_code(type == '{');
  }

  void read_comment() {
    size_t close = src_.find("#}", at_);
    if (close == std::string_view::npos) fail("missing end of comment tag '#}'");
    bool signed_end = close > at_ && (src_[close - 1] == '-' || src_[close - 1] == '+');
    finish_tag(end_of_tag(signed_end ? close - 1 : close, "#}", true, true));
  }

  // {% raw %} ... {% endraw %}: at_ is after "{%" and its sign.
  bool read_raw() {
    size_t word = skip_space(at_);
    if (src_.substr(word, 3) != "raw") return false;
    size_t begin = end_of_tag(skip_space(word + 3), "%}", false, false);
    if (begin == std::string_view::npos) return false;
    advance(begin);
    line_starting_ = src_[begin - 1] == '\n';
    for (size_t i = src_.find("{%", begin); i != std::string_view::npos; i = src_.find("{%", i + 2)) {
      size_t j = i + 2;
      char sign = j < src_.size() && (src_[j] == '-' || src_[j] == '+') ? src_[j] : 0;
      if (sign) j++;
      j = skip_space(j);
      if (src_.substr(j, 6) != "endraw") continue;
      size_t end = end_of_tag(skip_space(j + 6), "%}", true, true);
      if (end == std::string_view::npos) continue;
      add_text(control_left(src_.substr(begin, i - begin), sign, false));
      finish_tag(end);
      return true;
    }
    fail("missing end of raw directive: write {% endraw %}");
  }

  void read_code(bool print) {
    std::string open;  // brackets not closed yet: "}}" inside {{ {'a': {}} }} does not end the tag
    for (;;) {
      advance(skip_space(at_));
      if (at_ >= src_.size()) fail(print ? "unexpected end of template: '}}' is missing" : "unexpected end of template: '%}' is missing");
      if (open.empty()) {
        size_t end = print ? end_of_tag(at_, "}}", false, false) : end_of_tag(at_, "%}", true, true);
        if (end != std::string_view::npos) {
          add(print ? TokenKind::kPrintEnd : TokenKind::kBlockEnd);
          finish_tag(end);
          return;
        }
      }
      unsigned char c = static_cast<unsigned char>(src_[at_]);
      if (digit(c)) read_number();
      else if (name_start(c)) read_name();
      else if (c == '\'' || c == '"') read_string(static_cast<char>(c));
      else read_operator(open);
    }
  }

  void read_name() {
    size_t end = at_;
    while (end < src_.size() && name_part(static_cast<unsigned char>(src_[end]))) end++;
    add(TokenKind::kName).text = src_.substr(at_, end - at_);
    advance(end);
  }

  void read_number() {
    size_t i = at_;
    int base = 10;
    if (src_[i] == '0' && i + 1 < src_.size()) {
      char kind = static_cast<char>(src_[i + 1] | 0x20);
      base = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
      if (base != 10) i += 2;
    }
    std::string digits;
    auto digit_here = [&](size_t j) {
      if (j >= src_.size()) return false;
      char c = src_[j];
      return digit(static_cast<unsigned char>(c)) || (base == 16 && ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'));
    };
    auto read_digits = [&] {
      for (; digit_here(i) || (i < src_.size() && src_[i] == '_' && digit_here(i + 1)); i++)
        if (src_[i] != '_') digits += src_[i];
    };
    read_digits();
    bool real = false;
    if (base == 10) {
      if (i + 1 < src_.size() && src_[i] == '.' && digit_here(i + 1)) {
        real = true;
        digits += '.';
        i++;
        read_digits();
      }
      if (i < src_.size() && (src_[i] | 0x20) == 'e') {
        size_t j = i + 1;
        bool sign = j < src_.size() && (src_[j] == '-' || src_[j] == '+');
        if (digit_here(j + (sign ? 1 : 0))) {
          real = true;
          digits += 'e';
          if (sign && src_[j] == '-') digits += '-';
          i = j + (sign ? 1 : 0);
          read_digits();
        }
      }
    }
    Token& token = add(real ? TokenKind::kFloat : TokenKind::kInteger);
    const char* end = digits.data() + digits.size();
    auto parsed = real ? std::from_chars(digits.data(), end, token.real) : std::from_chars(digits.data(), end, token.integer, base);
    if (parsed.ec != std::errc() || parsed.ptr != end) fail("a number that is out of range or malformed");
    token.text = std::move(digits);
    advance(i);
  }

  uint32_t read_hex(size_t& i, size_t count) const {
    uint32_t code = 0;
    size_t end = i + count;
    if (end > src_.size() || std::from_chars(src_.data() + i, src_.data() + end, code, 16).ptr != src_.data() + end)
      fail("a string with a malformed \\x, \\u or \\U escape");
    i = end;
    return code;
  }

  void read_string(char quote) {
    std::string text;
    size_t i = at_ + 1;
    for (;;) {
      if (i >= src_.size()) fail("a string that is not closed");
      char c = src_[i++];
      if (c == quote) break;
      if (c != '\\') {
        text += c;
        continue;
      }
      if (i >= src_.size()) fail("a string that is not closed");
      c = src_[i++];
      switch (c) {
        case 'n': text += '\n'; break;
        case 't': text += '\t'; break;
        case 'r': text += '\r'; break;
        case 'a': text += '\a'; break;
        case 'b': text += '\b'; break;
        case 'f': text += '\f'; break;
        case 'v': text += '\v'; break;
        case '\n': break;
        case '\\':
        case '\'':
        case '"': text += c; break;
        case 'x': append_character(read_hex(i, 2), text); break;
        case 'u': {
          uint32_t code = read_hex(i, 4);
          if (code >= 0xd800 && code < 0xdc00 && src_.substr(i, 2) == "\\u") {
            size_t next = i + 2;
            uint32_t low = read_hex(next, 4);
            if (low >= 0xdc00 && low < 0xe000) {
              code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
              i = next;
            }
          }
          append_character(code >= 0xd800 && code < 0xe000 ? 0xfffd : code, text);
          break;
        }
        case 'U': append_character(read_hex(i, 8), text); break;
        default:
          if (c >= '0' && c <= '7') {
            uint32_t code = static_cast<uint32_t>(c - '0');
            for (int n = 0; n < 2 && i < src_.size() && src_[i] >= '0' && src_[i] <= '7'; n++)
              code = code * 8 + static_cast<uint32_t>(src_[i++] - '0');
            append_character(code, text);
          } else {
            text += '\\';
            text += c;
          }
      }
    }
    add(TokenKind::kString).text = std::move(text);
    advance(i);
  }

  void read_operator(std::string& open) {
    static constexpr std::string_view kTwo[] = {"//", "**", "==", "!=", ">=", "<="};
    std::string_view rest = src_.substr(at_);
    size_t n = 1;
    for (auto two : kTwo)
      if (rest.substr(0, 2) == two) n = 2;
    char c = rest[0];
    if (n == 1 && std::string_view("+-*/%~<>=|.,:()[]{}").find(c) == std::string_view::npos)
      fail(fmt::format("unexpected character {}", python_repr(rest.substr(0, sequence_length(rest, 0)))));
    if (c == '(' || c == '[' || c == '{') {
      open += c;
    } else if (c == ')' || c == ']' || c == '}') {
      char expected = c == ')' ? '(' : c == ']' ? '[' : '{';
      if (open.empty() || open.back() != expected) fail(fmt::format("unexpected '{}'", c));
      open.pop_back();
    }
    add(TokenKind::kOperator).text = rest.substr(0, n);
    advance(at_ + n);
  }

  std::string source_;
  std::string_view src_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace dg::jinja
