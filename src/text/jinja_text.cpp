#include "text/jinja_text.h"

#include <fmt/core.h>

#include <algorithm>

#include "text/unicode.h"

namespace dg::jinja {
namespace {

bool continuation(std::string_view text, size_t at) { return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80; }

uint32_t upper_code(uint32_t c) {
  if (c >= 'a' && c <= 'z') return c - 32;
  if ((c >= 0xe0 && c <= 0xfe && c != 0xf7) || (c >= 0x3b1 && c <= 0x3cb && c != 0x3c2) || (c >= 0x430 && c <= 0x44f)) return c - 32;
  if (c >= 0x450 && c <= 0x45f) return c - 80;
  return c;
}

uint32_t lower_code(uint32_t c) {
  if (c >= 'A' && c <= 'Z') return c + 32;
  if ((c >= 0xc0 && c <= 0xde && c != 0xd7) || (c >= 0x391 && c <= 0x3ab && c != 0x3a2) || (c >= 0x410 && c <= 0x42f)) return c + 32;
  if (c >= 0x400 && c <= 0x40f) return c + 80;
  return c;
}

bool is_cased(uint32_t c) { return upper_code(c) != c || lower_code(c) != c; }

bool in_set(uint32_t code, const std::string* set) {
  if (!set) return is_space(code);
  for (size_t i = 0; i < set->size(); i += sequence_length(*set, i))
    if (decode_character(*set, i) == code) return true;
  return false;
}

// Applies f(code, previous character was a letter) to each character.
template <class F>
std::string map_characters(std::string_view text, F f) {
  std::string out;
  out.reserve(text.size());
  bool after_letter = false;
  for (size_t i = 0; i < text.size();) {
    size_t n = sequence_length(text, i);
    uint32_t code = decode_character(text, i);
    uint32_t mapped = f(code, after_letter);
    if (mapped == code) out += text.substr(i, n);  // keeps invalid bytes as they are
    else append_character(mapped, out);
    after_letter = is_cased(code);
    i += n;
  }
  return out;
}

bool printable(uint32_t c) {
  if (c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad) return false;
  if (is_space(c)) return c == ' ';
  return !((c >= 0x200b && c <= 0x200f) || (c >= 0x202a && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff ||
           (c >= 0xd800 && c <= 0xf8ff) || (c >= 0xfff0 && c <= 0xfffb) || c >= 0xe0000);
}

}  // namespace

size_t sequence_length(std::string_view text, size_t at) {
  unsigned char c = static_cast<unsigned char>(text[at]);
  size_t n = c >= 0xf0 && c <= 0xf4 ? 4 : c >= 0xe0 ? 3 : c >= 0xc2 ? 2 : 1;
  if (c > 0xf4) return 1;
  for (size_t i = 1; i < n; i++)
    if (!continuation(text, at + i)) return 1;
  return n;
}

uint32_t decode_character(std::string_view text, size_t at) {
  size_t n = sequence_length(text, at);
  uint32_t c = static_cast<unsigned char>(text[at]);
  if (n == 1) return c < 0x80 ? c : 0xfffd;
  uint32_t code = c & (n == 2 ? 0x1fu : n == 3 ? 0x0fu : 0x07u);
  for (size_t i = 1; i < n; i++) code = (code << 6) | (static_cast<unsigned char>(text[at + i]) & 0x3fu);
  return code;
}

void append_character(uint32_t code, std::string& out) {
  unicode::append_utf8(out, code > unicode::kMaxCodePoint ? unicode::kReplacement : code);
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

size_t count_characters(std::string_view text) {
  size_t count = 0;
  for (size_t i = 0; i < text.size(); i += sequence_length(text, i)) count++;
  return count;
}

size_t byte_offset(std::string_view text, size_t character) {
  size_t i = 0;
  for (; character > 0 && i < text.size(); character--) i += sequence_length(text, i);
  return i;
}

bool is_space(uint32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
         c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::string_view strip_left(std::string_view text, const std::string* set) {
  size_t i = 0;
  while (i < text.size() && in_set(decode_character(text, i), set)) i += sequence_length(text, i);
  return text.substr(i);
}

std::string_view strip_right(std::string_view text, const std::string* set) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    for (int back = 0; back < 3 && start > 0 && continuation(text, start); back++) start--;
    if (start + sequence_length(text, start) != text.size()) start = text.size() - 1;  // a stray byte
    if (!in_set(decode_character(text, start), set)) break;
    text = text.substr(0, start);
  }
  return text;
}

std::string upper(std::string_view text) {
  return map_characters(text, [](uint32_t c, bool) { return upper_code(c); });
}
std::string lower(std::string_view text) {
  return map_characters(text, [](uint32_t c, bool) { return lower_code(c); });
}
std::string capitalize(std::string_view text) {
  bool first = true;
  return map_characters(text, [&first](uint32_t c, bool) {
    bool here = first;
    first = false;
    return here ? upper_code(c) : lower_code(c);
  });
}
std::string title(std::string_view text) {
  return map_characters(text, [](uint32_t c, bool after_letter) { return after_letter ? lower_code(c) : upper_code(c); });
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator, int64_t max_splits, bool from_right) {
  std::vector<std::string_view> parts;
  if (!from_right) {
    while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
      size_t at = text.find(separator);
      if (at == std::string_view::npos) break;
      parts.push_back(text.substr(0, at));
      text.remove_prefix(at + separator.size());
    }
    parts.push_back(text);
    return parts;
  }
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    size_t at = text.rfind(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(at + separator.size()));
    text = text.substr(0, at);
  }
  parts.push_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_space(std::string_view text, int64_t max_splits, bool from_right) {
  std::vector<std::string_view> parts;
  if (from_right) {
    text = strip_right(text);
    while (!text.empty()) {
      if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
        parts.push_back(text);
        break;
      }
      size_t start = 0;  // of the last word
      for (size_t i = 0; i < text.size(); i += sequence_length(text, i))
        if (is_space(decode_character(text, i))) start = i + sequence_length(text, i);
      parts.push_back(text.substr(start));
      text = strip_right(text.substr(0, start));
      if (max_splits < 0) {  // the rest in one pass from the left
        auto rest = split_space(text, -1, false);
        parts.insert(parts.end(), rest.rbegin(), rest.rend());
        break;
      }
    }
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  text = strip_left(text);
  while (!text.empty()) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
      parts.push_back(text);
      break;
    }
    size_t end = 0;
    while (end < text.size() && !is_space(decode_character(text, end))) end += sequence_length(text, end);
    parts.push_back(text.substr(0, end));
    text = strip_left(text.substr(end));
  }
  return parts;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t max_count) {
  std::string out;
  if (from.empty()) {  // Python: between all characters
    for (size_t i = 0; i <= text.size() && max_count != 0; max_count--) {
      out += to;
      if (i == text.size()) return out;
      size_t n = sequence_length(text, i);
      out += text.substr(i, n);
      text.remove_prefix(i + n);
    }
    return out += text;
  }
  while (max_count != 0) {
    size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out += text.substr(0, at);
    out += to;
    text.remove_prefix(at + from.size());
    max_count--;
  }
  return out += text;
}

std::string python_repr(std::string_view text) {
  char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (size_t i = 0; i < text.size();) {
    size_t n = sequence_length(text, i);
    uint32_t code = decode_character(text, i);
    if (code == static_cast<unsigned char>(quote) || code == '\\') {
      out += '\\';
      out += static_cast<char>(code);
    } else if (code == '\n') {
      out += "\\n";
    } else if (code == '\r') {
      out += "\\r";
    } else if (code == '\t') {
      out += "\\t";
    } else if (printable(code)) {
      out += text.substr(i, n);
    } else if (code < 0x100) {
      out += fmt::format("\\x{:02x}", code);
    } else if (code < 0x10000) {
      out += fmt::format("\\u{:04x}", code);
    } else {
      out += fmt::format("\\U{:08x}", code);
    }
    i += n;
  }
  return out += quote;
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

std::string url_encode(std::string_view text) {
  std::string out;
  for (char c : text) {
    bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' || c == '-' ||
                 c == '~' || c == '/';
    if (plain) out += c;
    else out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

}  // namespace dg::jinja
