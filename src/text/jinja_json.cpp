// json.dumps for template values (the tojson filter).
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "text/jinja_text.h"
#include "text/jinja_value.h"

namespace dg::jinja {
namespace {

constexpr int kMaxJsonNesting = 100;

void append_string(std::string_view text, bool ensure_ascii, std::string& out) {
  out += '"';
  for (size_t i = 0; i < text.size();) {
    unsigned char c = static_cast<unsigned char>(text[i]);
    if (c < 0x80) {
      i++;
      switch (c) {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        case '\b': out += "\\b"; break;
        case '\f': out += "\\f"; break;
        default:
          if (c < 0x20 || (c == 0x7f && ensure_ascii)) out += fmt::format("\\u{:04x}", c);
          else out += static_cast<char>(c);
      }
      continue;
    }
    size_t n = sequence_length(text, i);
    if (!ensure_ascii) {
      out += text.substr(i, n);
    } else {
      uint32_t code = decode_character(text, i);
      if (code >= 0x10000) {
        code -= 0x10000;
        out += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (code >> 10), 0xdc00 + (code & 0x3ff));
      } else {
        out += fmt::format("\\u{:04x}", code);
      }
    }
    i += n;
  }
  out += '"';
}

class Dumper {
 public:
  Dumper(Heap& heap, const JsonStyle& style) : heap_(heap), style_(style) {
    pretty_ = style.indent >= 0 || !style.indent_text.empty();
    unit_ = style.indent >= 0 ? std::string(static_cast<size_t>(std::min(style.indent, 64)), ' ') : style.indent_text;
  }

  void dump(const Value& value, int depth) {
    if (depth > kMaxJsonNesting) throw Failure{fmt::format("tojson: the value is nested deeper than {} levels", kMaxJsonNesting)};
    heap_.charge(1);
    size_t before = out.size();
    switch (value.kind()) {
      case Kind::kNone: out += "null"; break;
      case Kind::kBool: out += value.as_bool() ? "true" : "false"; break;
      case Kind::kInt: out += std::to_string(value.as_integer()); break;
      case Kind::kFloat: out += value.written() ? *value.written() : number(value.as_real()); break;
      case Kind::kString: append_string(value.text(), style_.ensure_ascii, out); break;
      case Kind::kList:
      case Kind::kTuple: return list(value, depth);
      case Kind::kDict: return dict(value, depth);
      default:
        if (value.is_undefined()) throw Failure{fmt::format("tojson: {}", value.text())};
        throw Failure{fmt::format("Object of type {} is not JSON serializable", type_name(value))};
    }
    heap_.charge_bytes(out.size() - before);
  }

  std::string out;

 private:
  static std::string number(double d) {
    if (std::isnan(d)) return "NaN";
    if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
    return real_text(d);
  }

  void newline(int depth) {
    if (!pretty_) return;
    heap_.charge_bytes(unit_.size() * static_cast<size_t>(depth) + 1);
    out += '\n';
    for (int i = 0; i < depth; i++) out += unit_;
  }

  void list(const Value& value, int depth) {
    if (value.items().empty()) {
      out += "[]";
      return;
    }
    out += '[';
    bool first = true;
    for (auto& item : value.items()) {
      if (!first) out += style_.item_separator;
      first = false;
      newline(depth + 1);
      dump(item, depth + 1);
    }
    newline(depth);
    out += ']';
  }

  std::string key_text(const Value& key) {
    switch (key.kind()) {
      case Kind::kString: return key.text();
      case Kind::kNone: return "null";
      case Kind::kBool: return key.as_bool() ? "true" : "false";
      case Kind::kInt: return std::to_string(key.as_integer());
      case Kind::kFloat: return number(key.as_real());
      default: throw Failure{fmt::format("tojson: keys must be str, int, float, bool or None, not {}", type_name(key))};
    }
  }

  void dict(const Value& value, int depth) {
    if (value.dict().items.empty()) {
      out += "{}";
      return;
    }
    std::vector<std::pair<std::string, const Value*>> entries;
    for (auto& [key, item] : value.dict().items) entries.emplace_back(key_text(key), &item);
    heap_.charge_bytes(entries.size() * sizeof(entries[0]));
    if (style_.sort_keys) std::stable_sort(entries.begin(), entries.end(), [](auto& a, auto& b) { return a.first < b.first; });
    out += '{';
    bool first = true;
    for (auto& [key, item] : entries) {
      if (!first) out += style_.item_separator;
      first = false;
      newline(depth + 1);
      append_string(key, style_.ensure_ascii, out);
      heap_.charge_bytes(key.size());
      out += style_.key_separator;
      dump(*item, depth + 1);
    }
    newline(depth);
    out += '}';
  }

  Heap& heap_;
  const JsonStyle& style_;
  bool pretty_ = false;
  std::string unit_;
};

}  // namespace

std::string to_json(Heap& heap, const Value& value, const JsonStyle& style) {
  Dumper dumper(heap, style);
  dumper.dump(value, 0);
  return std::move(dumper.out);
}

}  // namespace dg::jinja
