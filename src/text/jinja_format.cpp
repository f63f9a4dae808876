#include "text/jinja_format.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

constexpr int kMaxWidth = 10'000;

struct Spec {
  char align = 0;  // < > ^; 0: by type
  bool zero = false;
  bool plus = false;
  bool space = false;
  int width = 0;
  int precision = -1;
  char type = 0;
};

// Reads digits at `i`; Failure above kMaxWidth.
int read_number(std::string_view text, size_t& i) {
  int n = 0;
  for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; i++) {
    n = n * 10 + (text[i] - '0');
    if (n > kMaxWidth) throw Failure{fmt::format("a width or precision above {} in a format", kMaxWidth)};
  }
  return n;
}

std::string pad(std::string text, const Spec& spec, bool number) {
  size_t have = count_characters(text), want = static_cast<size_t>(spec.width);
  if (have >= want) return text;
  size_t missing = want - have;
  if (number && spec.zero && spec.align == 0) {
    size_t at = !text.empty() && (text[0] == '-' || text[0] == '+' || text[0] == ' ') ? 1 : 0;
    return text.insert(at, missing, '0');
  }
  char align = spec.align ? spec.align : number ? '>' : '<';
  size_t left = align == '<' ? 0 : align == '>' ? missing : missing / 2;
  return std::string(left, ' ') + text + std::string(missing - left, ' ');
}

std::string signed_text(std::string text, const Spec& spec) {
  if (!text.empty() && text[0] == '-') return text;
  return spec.plus ? "+" + text : spec.space ? " " + text : text;
}

std::string format_value(Heap& heap, const Value& value, const Spec& spec) {
  if (value.is_undefined() && spec.type != 's') throw Failure{value.text()};
  std::string text;
  switch (spec.type) {
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o': {
      if (!value.is_number()) throw Failure{fmt::format("%{} format: a number is required, not {}", spec.type, type_name(value))};
      double real = value.as_real();
      if (!value.is_integer() && !(std::fabs(real) < 9e18)) throw Failure{"a float out of the integer range in a format"};
      int64_t i = value.is_integer() ? value.as_integer() : static_cast<int64_t>(real);
      uint64_t magnitude = i < 0 ? ~static_cast<uint64_t>(i) + 1 : static_cast<uint64_t>(i);
      text = spec.type == 'x'   ? fmt::format("{:x}", magnitude)
             : spec.type == 'X' ? fmt::format("{:X}", magnitude)
             : spec.type == 'o' ? fmt::format("{:o}", magnitude)
                                : fmt::format("{}", magnitude);
      if (i < 0) text.insert(0, 1, '-');
      return pad(signed_text(std::move(text), spec), spec, true);
    }
    case 'f':
    case 'F':
    case 'e':
    case 'g': {
      if (!value.is_number()) throw Failure{fmt::format("%{} format: a number is required, not {}", spec.type, type_name(value))};
      int precision = spec.precision < 0 ? 6 : std::min(spec.precision, 300);
      double d = value.as_real();
      if (spec.type == 'e') text = fmt::format("{:.{}e}", d, precision);
      else if (spec.type == 'g') text = fmt::format("{:.{}g}", d, precision);
      else text = fixed_text(d, precision);
      return pad(signed_text(std::move(text), spec), spec, true);
    }
    case 'r': append_repr(heap, value, text); break;
    default: text = to_text(heap, value);
  }
  if (spec.precision >= 0) text.resize(byte_offset(text, static_cast<size_t>(spec.precision)));
  return pad(std::move(text), spec, false);
}

// One replacement field of str.format after its name: "" or "<8", "05d", ".2f" ...
Spec parse_brace_spec(std::string_view text, const Value& value) {
  Spec spec;
  size_t i = 0;
  if (i < text.size() && (text[i] == '<' || text[i] == '>' || text[i] == '^')) spec.align = text[i++];
  if (i < text.size() && text[i] == '+') {
    spec.plus = true;
    i++;
  }
  if (i < text.size() && text[i] == '0') {
    spec.zero = true;
    i++;
  }
  spec.width = read_number(text, i);
  if (i < text.size() && text[i] == '.') {
    i++;
    spec.precision = read_number(text, i);
  }
  if (i < text.size() && std::string_view("dfsxXoeg").find(text[i]) != std::string_view::npos) spec.type = text[i++];
  if (i != text.size()) throw Failure{fmt::format("unsupported format specification {}", python_repr(text.substr(0, 40)))};
  if (spec.type == 0) spec.type = value.kind() == Kind::kInt ? 'd' : value.kind() == Kind::kFloat && spec.precision >= 0 ? 'g' : 's';
  return spec;
}

}  // namespace

std::string fixed_text(double d, int decimals) {
  char buffer[700];  // 309 digits before and at most 300 after the point
  auto result = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed, std::min(decimals, 300));
  return std::string(buffer, result.ptr);
}

std::string percent_format(Heap& heap, std::string_view format, const Value& args) {
  std::vector<Value> values = args.kind() == Kind::kTuple ? args.items() : std::vector<Value>{args};
  size_t used = 0;
  std::string out;
  for (size_t i = 0; i < format.size();) {
    size_t percent = format.find('%', i);
    out += format.substr(i, percent == std::string_view::npos ? percent : percent - i);
    if (percent == std::string_view::npos) break;
    i = percent + 1;
    const Value* named = nullptr;
    if (i < format.size() && format[i] == '(') {
      size_t close = format.find(')', i);
      if (close == std::string_view::npos || !args.is_dict()) throw Failure{"format requires a mapping"};
      std::string_view key = format.substr(i + 1, close - i - 1);
      named = find_text(heap, args.dict(), key);
      if (!named) throw Failure{fmt::format("a format names the missing key {}", python_repr(key.substr(0, 40)))};
      i = close + 1;
    }
    Spec spec;
    for (; i < format.size() && std::string_view("-+0 #").find(format[i]) != std::string_view::npos; i++) {
      if (format[i] == '-') spec.align = '<';
      if (format[i] == '+') spec.plus = true;
      if (format[i] == '0') spec.zero = true;
      if (format[i] == ' ') spec.space = true;
    }
    spec.width = read_number(format, i);
    if (i < format.size() && format[i] == '.') {
      i++;
      spec.precision = read_number(format, i);
    }
    if (i >= format.size()) throw Failure{"incomplete format"};
    spec.type = format[i++];
    if (spec.type == '%') {
      out += '%';
      continue;
    }
    if (std::string_view("srdiufFegxXo").find(spec.type) == std::string_view::npos)
      throw Failure{fmt::format("unsupported format character {}", python_repr(std::string_view(&spec.type, 1)))};
    if (!named && used >= values.size()) throw Failure{"not enough arguments for format string"};
    if (spec.align == 0 && (!spec.zero || spec.type == 's' || spec.type == 'r')) spec.align = '>';
    std::string text = format_value(heap, named ? *named : values[used++], spec);
    heap.charge_bytes(text.size());
    out += text;
  }
  if (used < values.size() && !args.is_dict()) throw Failure{"not all arguments converted during string formatting"};
  return out;
}

std::string brace_format(Heap& heap, std::string_view format, const Args& args) {
  std::string out;
  size_t next = 0;
  for (size_t i = 0; i < format.size(); i++) {
    char c = format[i];
    if ((c == '{' || c == '}') && i + 1 < format.size() && format[i + 1] == c) {
      out += c;
      i++;
      continue;
    }
    if (c == '}') throw Failure{"single '}' encountered in format string"};
    if (c != '{') {
      out += c;
      continue;
    }
    size_t close = format.find('}', i);
    if (close == std::string_view::npos) throw Failure{"expected '}' before end of format string"};
    std::string_view field = format.substr(i + 1, close - i - 1), spec_text;
    if (size_t colon = field.find(':'); colon != std::string_view::npos) {
      spec_text = field.substr(colon + 1);
      field = field.substr(0, colon);
    }
    const Value* value = nullptr;
    size_t index = next;
    bool number = field.empty();
    if (field.empty()) next++;
    else if (std::from_chars(field.data(), field.data() + field.size(), index).ptr == field.data() + field.size()) number = true;
    if (number) {
      if (index < args.positional.size()) value = &args.positional[index];
    } else {
      for (auto& [name, v] : args.named)
        if (name == field) value = &v;
    }
    if (!value) throw Failure{fmt::format("a format names the missing argument {}", python_repr(field.substr(0, 40)))};
    std::string text = format_value(heap, *value, parse_brace_spec(spec_text, *value));
    heap.charge_bytes(text.size());
    out += text;
    i = close;
  }
  return out;
}

}  // namespace dg::jinja
