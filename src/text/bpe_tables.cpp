#include "text/bpe_tables.h"

#include <fmt/core.h>

#include <array>

#include "text/unicode.h"

namespace dg {
namespace {

constexpr size_t kNone = std::string_view::npos;

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// Offset behind the string that begins at `at` (a quote), or kNone.
size_t string_end(std::string_view text, size_t at) {
  for (at++; at < text.size(); at++) {
    if (text[at] == '"') return at + 1;
    if (text[at] == '\\') at++;
  }
  return kNone;
}

// Offset behind the object or array that begins at `at`, or kNone.
size_t structure_end(std::string_view text, size_t at) {
  size_t depth = 0;
  while (at < text.size()) {
    const char c = text[at];
    if (c == '"') {
      at = string_end(text, at);
      if (at == kNone) return kNone;
      continue;
    }
    if (c == '{' || c == '[') depth++;
    if ((c == '}' || c == ']') && --depth == 0) return at + 1;
    at++;
  }
  return kNone;
}

// Reads one of the two parts: strict JSON of exactly the shapes that occur there.
class Reader {
 public:
  Reader(std::string_view document, size_t begin, size_t end, std::string path, BpeTables& tables)
      : text_(document.substr(0, end)), at_(begin), path_(std::move(path)), tables_(tables) {}

  Result<void> vocabulary() {
    DG_TRY(check_utf8());
    at_++;  // {
    if (next_is('}')) return {};
    for (;;) {
      BpeTables::Token token;
      if (!string(token.text) || !next_is(':')) return error("a token and its id");
      skip_blanks();
      const size_t begin = at_;
      while (at_ < text_.size() && text_[at_] != ',' && text_[at_] != '}' && !is_blank(text_[at_])) at_++;
      token.id = text_.substr(begin, at_ - begin);
      tables_.tokens.push_back(token);
      if (next_is('}')) return {};
      if (!next_is(',')) return error("a comma or }");
    }
  }

  Result<void> merges() {
    DG_TRY(check_utf8());
    at_++;  // [
    if (next_is(']')) return {};
    for (;;) {
      BpeTables::Merge merge;
      if (next_is('[')) {
        if (!string(merge.left) || !next_is(',') || !string(merge.right) || !next_is(']')) return entry_error();
      } else {
        std::string_view both;
        if (!string(both)) return entry_error();
        const size_t space = both.find(' ');
        if (space == kNone || both.find(' ', space + 1) != kNone) return entry_error();
        merge = {both.substr(0, space), both.substr(space + 1)};
      }
      tables_.merges.push_back(merge);
      if (next_is(']')) return {};
      if (!next_is(',')) return error("a comma or ]");
    }
  }

 private:
  void skip_blanks() {
    while (at_ < text_.size() && is_blank(text_[at_])) at_++;
  }
  bool next_is(char c) {
    skip_blanks();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }
  Error error(std::string_view expected) const { return input_error(fmt::format("{}: byte {}: expected {}", path_, at_, expected)); }
  Error entry_error() const {
    return input_error(fmt::format("{}[{}]: expected \"a b\" or [\"a\", \"b\"] (byte {})", path_, tables_.merges.size(), at_));
  }
  Result<void> check_utf8() const {
    const size_t bad = unicode::first_invalid(text_.substr(at_));
    if (bad == kNone) return {};
    return input_error(fmt::format("{}: byte {}: not UTF-8", path_, at_ + bad));
  }

  // A string: a view of the document, or of an unescaped copy when it has escapes.
  bool string(std::string_view& out) {
    if (!next_is('"')) return false;
    const size_t begin = at_;
    for (; at_ < text_.size(); at_++) {
      const unsigned char c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') {
        out = text_.substr(begin, at_ - begin);
        at_++;
        return true;
      }
      if (c < 0x20) return false;
      if (c == '\\') return escaped_string(begin, out);
    }
    return false;
  }

  bool escaped_string(size_t begin, std::string_view& out) {
    std::string copy(text_.substr(begin, at_ - begin));
    while (at_ < text_.size()) {
      const char c = text_[at_++];
      if (c == '"') {
        out = tables_.unescaped.emplace_back(std::move(copy));
        return true;
      }
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c != '\\') {
        copy += c;
        continue;
      }
      if (at_ >= text_.size()) return false;
      const char kind = text_[at_++];
      constexpr std::string_view kKinds = "\"\\/bfnrt", kValues = "\"\\/\b\f\n\r\t";
      if (const size_t found = kKinds.find(kind); found != kNone) copy += kValues[found];
      else if (kind != 'u' || !unicode_escape(copy)) return false;
    }
    return false;
  }

  bool unicode_escape(std::string& copy) {
    char32_t code = 0, low = 0;
    if (!hex4(code)) return false;
    if (code >= 0xdc00 && code < 0xe000) return false;
    if (code >= 0xd800 && code < 0xdc00) {
      if (text_.substr(at_, 2) != "\\u") return false;
      at_ += 2;
      if (!hex4(low) || low < 0xdc00 || low >= 0xe000) return false;
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    unicode::append_utf8(copy, code);
    return true;
  }

  bool hex4(char32_t& value) {
    value = 0;
    for (int i = 0; i < 4; i++, at_++) {
      const char c = at_ < text_.size() ? text_[at_] : '\0';
      if (c >= '0' && c <= '9') value = value * 16 + static_cast<char32_t>(c - '0');
      else if (c >= 'a' && c <= 'f') value = value * 16 + static_cast<char32_t>(c - 'a' + 10);
      else if (c >= 'A' && c <= 'F') value = value * 16 + static_cast<char32_t>(c - 'A' + 10);
      else return false;
    }
    return true;
  }

  std::string_view text_;
  size_t at_;
  std::string path_;
  BpeTables& tables_;
};

}  // namespace

Result<BpeTables> split_tokenizer_json(std::string_view document, std::string_view origin) {
  BpeTables tables;
  size_t copied = 0, depth = 0;
  bool in_model = false;
  for (size_t at = 0; at < document.size();) {
    const char c = document[at];
    if (c == '{' || c == '[') depth++;
    if ((c == '}' || c == ']') && depth > 0) depth--;
    if (c != '"') {
      at++;
      continue;
    }
    const size_t end = string_end(document, at);
    if (end == kNone) break;  // the parser of the rest reports it
    const std::string_view key = document.substr(at + 1, end - at - 2);
    at = end;
    while (at < document.size() && is_blank(document[at])) at++;
    if (at >= document.size() || document[at] != ':') continue;  // a value
    at++;
    if (depth == 1) in_model = key == "model";
    const bool vocab = key == "vocab", merges = key == "merges";
    if (depth != 2 || !in_model || (!vocab && !merges)) continue;
    while (at < document.size() && is_blank(document[at])) at++;
    if (at >= document.size() || document[at] != (vocab ? '{' : '[')) continue;
    const size_t stop = structure_end(document, at);
    if (stop == kNone) break;
    Reader reader(document, at, stop, fmt::format("{}: $.model.{}", origin, key), tables);
    if (vocab) {
      tables.tokens.clear();  // a repeated key: the last one holds, as in any JSON parser
      DG_TRY(reader.vocabulary());
    } else {
      tables.merges.clear();
      DG_TRY(reader.merges());
    }
    tables.rest.append(document.substr(copied, at - copied)).append(vocab ? "{}" : "[]");
    copied = at = stop;
  }
  tables.rest.append(document.substr(copied));
  return tables;
}

}  // namespace dg
