// Filters on text, numbers and JSON.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/json.h"
#include "text/jinja_filters.h"
#include "text/jinja_format.h"
#include "text/jinja_methods.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

// The input as text, charged for the work a filter does on it.
std::string soft_text(Interpreter& in, const Value& input) {
  std::string text = to_text(in.heap, input);
  in.heap.charge_bytes(text.size());
  return text;
}

template <std::string (*F)(std::string_view)>
Value mapped(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("the filter", args, {});
  std::string text = soft_text(in, input);
  in.heap.charge(text.size() / 8);
  return in.heap.string(F(text));
}

Value trim(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("trim", args, {"chars"});
  std::string text = soft_text(in, input);
  const std::string* set = bound[0] && !bound[0]->is_none() ? &bound.text(0) : nullptr;
  in.heap.charge_search(text.size(), set ? set->size() * 64 : 1);
  return in.heap.string(std::string(strip_right(strip_left(text, set), set)));
}

// Jinja's own title(): a word begins after white space or one of - ( { [ <.
Value title_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("title", args, {});
  std::string text = soft_text(in, input), out;
  bool start = true;
  for (size_t i = 0; i < text.size();) {
    size_t n = sequence_length(text, i);
    std::string_view character = std::string_view(text).substr(i, n);
    out += start ? upper(character) : lower(character);
    uint32_t code = decode_character(text, i);
    start = is_space(code) || code == '-' || code == '(' || code == '{' || code == '[' || code == '<';
    i += n;
  }
  return in.heap.string(std::move(out));
}

Value replace_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("replace", args, {"old", "new", "count"});
  return in.heap.string(replace_checked(in.heap, soft_text(in, input), soft_text(in, bound.required(0)), soft_text(in, bound.required(1)),
                                        bound.integer(2, -1)));
}

Value indent(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("indent", args, {"width", "first", "blank"});
  std::string unit;
  if (bound[0] && bound[0]->is_string()) unit = bound[0]->text();
  else unit = std::string(static_cast<size_t>(std::clamp<int64_t>(bound.integer(0, 4), 0, 1000)), ' ');
  bool first = bound.flag(1, false), blank = bound.flag(2, false);
  std::string text = soft_text(in, input), out;
  bool first_line = true;
  for (auto line : split(text, "\n", -1, false)) {
    if (!first_line) out += '\n';
    if (first_line ? first : (blank || !line.empty())) {
      in.heap.charge_bytes(unit.size());
      out += unit;
    }
    first_line = false;
    out += line;
  }
  return in.heap.string(std::move(out));
}

Value wordcount(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("wordcount", args, {});
  std::string text = soft_text(in, input);
  int64_t words = 0;
  bool inside = false;
  for (char c : text) {
    unsigned char u = static_cast<unsigned char>(c);
    bool word = (u >= '0' && u <= '9') || (u >= 'a' && u <= 'z') || (u >= 'A' && u <= 'Z') || u == '_' || u >= 0x80;
    if (word && !inside) words++;
    inside = word;
  }
  return Value::integer(words);
}

Value to_string_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("string", args, {});
  return input.is_string() ? input : in.heap.string(to_text(in.heap, input));
}

Value same(Interpreter&, const Value& input, const Args& args) {
  Bound bound("safe", args, {});
  return input;
}

Value format_filter(Interpreter& in, const Value& input, const Args& args) {
  Value values = in.heap.list(args.positional, Kind::kTuple);
  if (!args.named.empty()) {
    values = in.heap.dict();
    for (auto& [name, value] : args.named) assign_text(in.heap, values.dict(), name, value);
  }
  return in.heap.string(percent_format(in.heap, soft_text(in, input), values));
}

// int("0x1f", 16), "12.7"|int == 12; the default for anything else.
Value to_integer(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("int", args, {"default", "base"});
  Value otherwise = bound[0] ? *bound[0] : Value::integer(0);
  if (input.is_integer()) return Value::integer(input.as_integer());
  double real = 0;
  if (input.kind() == Kind::kFloat) {
    real = input.as_real();
  } else if (input.is_string()) {
    std::string text(strip_right(strip_left(input.text())));
    in.heap.charge(text.size());
    int64_t base = bound.integer(1, 10);
    if (base < 2 || base > 36) return otherwise;
    const char* begin = text.data();
    const char* end = begin + text.size();
    bool negative = begin < end && *begin == '-';
    if (begin < end && (*begin == '-' || *begin == '+')) begin++;
    if (base == 16 && end - begin > 2 && begin[0] == '0' && (begin[1] | 0x20) == 'x') begin += 2;
    int64_t i = 0;
    if (begin < end && *begin == '-') return otherwise;
    auto parsed = std::from_chars(begin, end, i, static_cast<int>(base));
    if (parsed.ec == std::errc() && parsed.ptr == end && begin != end) return Value::integer(negative ? -i : i);
    auto parsed_real = std::from_chars(begin, end, real);
    if (parsed_real.ec != std::errc() || parsed_real.ptr != end || begin == end) return otherwise;
    if (negative) real = -real;
  } else {
    return otherwise;
  }
  if (!(std::fabs(real) < 9.2e18)) return otherwise;
  return Value::integer(static_cast<int64_t>(real));
}

Value to_real(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("float", args, {"default"});
  if (input.is_number()) return Value::real(input.as_real());
  if (input.is_string()) {
    std::string_view text = strip_right(strip_left(input.text()));
    in.heap.charge(text.size());
    if (text.starts_with("+")) text.remove_prefix(1);
    double real = 0;
    auto parsed = std::from_chars(text.data(), text.data() + text.size(), real);
    if (parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && !text.empty()) return Value::real(real);
  }
  return bound[0] ? *bound[0] : Value::real(0);
}

Value absolute(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("abs", args, {});
  if (input.is_undefined()) throw Failure{input.text()};
  if (!input.is_number()) throw Failure{fmt::format("bad operand type for abs(): '{}'", type_name(input))};
  if (!input.is_integer()) return Value::real(std::fabs(input.as_real()));
  return input.as_integer() < 0 ? in.arithmetic(Op::kSubtract, Value::integer(0), input) : Value::integer(input.as_integer());
}

Value round_filter(Interpreter&, const Value& input, const Args& args) {
  Bound bound("round", args, {"precision", "method"});
  if (input.is_undefined()) throw Failure{input.text()};
  if (!input.is_number()) throw Failure{fmt::format("round: expected a number, not {}", type_name(input))};
  int64_t precision = std::clamp<int64_t>(bound.integer(0, 0), -300, 300);
  std::string method = bound[1] ? bound.text(1) : "common";
  if (method != "common" && method != "ceil" && method != "floor") throw Failure{"round: method must be common, ceil or floor"};
  double d = input.as_real();
  if (method != "common") {
    double scale = std::pow(10.0, static_cast<double>(precision));
    return Value::real((method == "ceil" ? std::ceil(d * scale) : std::floor(d * scale)) / scale);
  }
  if (input.is_integer() && precision >= 0) return Value::integer(input.as_integer());
  if (!std::isfinite(d)) return Value::real(d);
  if (precision < 0) {
    double scale = std::pow(10.0, static_cast<double>(-precision));
    double rounded = std::nearbyint(d / scale) * scale;
    if (input.is_integer() && std::fabs(rounded) < 9.2e18) return Value::integer(static_cast<int64_t>(rounded));
    return Value::real(rounded);
  }
  std::string digits = fixed_text(d, static_cast<int>(precision));  // exact decimal value, half to even: as Python
  double rounded = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), rounded);
  return Value::real(rounded);
}

Value to_json_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = bound.flag(0, false);
  style.sort_keys = bound.flag(3, false);
  // Jinja2's own filter has indent as its first argument, transformers' has ensure_ascii: `tojson(4)` means indentation
  auto indentation = [](int64_t n) { return static_cast<int>(std::clamp<int64_t>(n, 0, 64)); };
  if (bound[0] && bound[0]->kind() == Kind::kInt && !bound[1]) style.indent = indentation(bound[0]->as_integer());
  if (bound[0] && bound[0]->kind() == Kind::kInt) style.ensure_ascii = false;
  if (bound[1] && bound[1]->is_string()) {
    style.indent_text = bound[1]->text();
  } else if (bound[1] && !bound[1]->is_none()) {
    style.indent = indentation(bound.integer(1, 0));
  }
  if (style.indent >= 0 || !style.indent_text.empty()) style.item_separator = ",";
  if (bound[2] && !bound[2]->is_none()) {
    if (!bound[2]->is_sequence() || bound[2]->items().size() != 2) throw Failure{"tojson: separators must be two strings"};
    for (auto& item : bound[2]->items())
      if (!item.is_string()) throw Failure{"tojson: separators must be two strings"};
    style.item_separator = bound[2]->items()[0].text();
    style.key_separator = bound[2]->items()[1].text();
  }
  return in.heap.string(to_json(in.heap, input, style));
}

Value from_json_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("from_json", args, {});
  if (!input.is_string()) throw Failure{fmt::format("from_json: expected a string, not {}", type_name(input))};
  in.heap.charge_bytes(input.text().size() * 8);
  auto parsed = parse_json(input.text(), "from_json");
  if (!parsed.ok()) throw Failure{parsed.error().message};
  return in.heap.from_json(*parsed);
}

Value center(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("center", args, {"width"});
  std::string text = soft_text(in, input);
  int64_t missing = std::clamp<int64_t>(bound.integer(0, 80), 0, 10'000) - static_cast<int64_t>(count_characters(text));
  if (missing <= 0) return in.heap.string(std::move(text));
  int64_t width = missing + static_cast<int64_t>(count_characters(text));
  int64_t left = missing / 2 + (missing & width & 1);  // CPython's choice for odd padding
  return in.heap.string(std::string(static_cast<size_t>(left), ' ') + text + std::string(static_cast<size_t>(missing - left), ' '));
}

Value truncate(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("truncate", args, {"length", "killwords", "end", "leeway"});
  std::string text = soft_text(in, input);
  std::string end = bound[2] ? bound.text(2) : "...";
  int64_t limit = bound.integer(0, 255), leeway = std::clamp<int64_t>(bound.integer(3, 5), 0, 1 << 20);
  int64_t end_length = static_cast<int64_t>(count_characters(end));
  if (limit < end_length) throw Failure{fmt::format("truncate: expected length >= {}, found {}", end_length, limit)};
  int64_t allowed = std::min<int64_t>(limit, INT64_MAX - leeway) + leeway;
  if (static_cast<int64_t>(count_characters(text)) <= allowed) return in.heap.string(std::move(text));
  text.resize(byte_offset(text, static_cast<size_t>(limit - end_length)));
  if (!bound.flag(1, false)) text = text.substr(0, text.rfind(' '));
  return in.heap.string(text + end);
}

constexpr std::pair<std::string_view, Filter> kTextFilters[] = {
    {"upper", mapped<upper>},
    {"lower", mapped<lower>},
    {"capitalize", mapped<capitalize>},
    {"title", title_filter},
    {"trim", trim},
    {"replace", replace_filter},
    {"indent", indent},
    {"wordcount", wordcount},
    {"string", to_string_filter},
    {"safe", same},
    {"escape", mapped<escape_html>},
    {"e", mapped<escape_html>},
    {"forceescape", mapped<escape_html>},
    {"urlencode", mapped<url_encode>},
    {"format", format_filter},
    {"int", to_integer},
    {"float", to_real},
    {"abs", absolute},
    {"round", round_filter},
    {"tojson", to_json_filter},
    {"from_json", from_json_filter},
    {"fromjson", from_json_filter},
    {"center", center},
    {"truncate", truncate},
};

}  // namespace

Filter find_text_filter(std::string_view name) {
  for (auto& [n, filter] : kTextFilters)
    if (n == name) return filter;
  return nullptr;
}

}  // namespace dg::jinja
