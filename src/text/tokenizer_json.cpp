#include "text/tokenizer_json.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg {
namespace {

std::string shown(const SortedJson& value) {
  std::string text = value.dump(-1, ' ', false, SortedJson::error_handler_t::replace);
  if (value.is_structured()) return value.is_object() ? "an object" : "an array";
  return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

}  // namespace

Error JsonField::expected(std::string_view what) const {
  return input_error(fmt::format("{}: expected {}, found {}", path_, what, shown(*value_)));
}
Error JsonField::unsupported(std::string_view what, std::string_view choices) const {
  return input_error(fmt::format("{}: {} is not supported; supported: {}", path_, what, choices));
}

bool JsonField::has(std::string_view key) const {
  if (!value_->is_object()) return false;
  auto it = value_->find(std::string(key));
  return it != value_->end() && !it->is_null();
}

Result<JsonField> JsonField::member(std::string_view key) const {
  if (!value_->is_object()) return expected("an object");
  auto it = value_->find(std::string(key));
  if (it == value_->end()) return input_error(fmt::format("{}.{}: missing", path_, key));
  return JsonField(*it, path_ + "." + std::string(key));
}

JsonField JsonField::element(size_t index) const { return JsonField((*value_)[index], fmt::format("{}[{}]", path_, index)); }

Result<size_t> JsonField::array_size() const {
  if (!value_->is_array()) return expected("an array");
  return value_->size();
}

Result<std::string> JsonField::text() const {
  if (!value_->is_string()) return expected("a string");
  return value_->get_ref<const std::string&>();
}

Result<int64_t> JsonField::integer(int64_t low, int64_t high) const {
  const std::string range = fmt::format("an integer from {} to {}", low, high);
  if (!value_->is_number_integer()) return expected(range);
  if (value_->is_number_unsigned() && value_->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) return expected(range);
  const int64_t v = value_->get<int64_t>();
  if (v < low || v > high) return expected(range);
  return v;
}

Result<bool> JsonField::boolean() const {
  if (!value_->is_boolean()) return expected("true or false");
  return value_->get<bool>();
}

Result<std::string> JsonField::text(std::string_view key) const {
  DG_ASSIGN(JsonField field, member(key));
  return field.text();
}
Result<std::string> JsonField::text_or(std::string_view key, std::string fallback) const {
  if (!has(key)) return fallback;
  return text(key);
}
Result<bool> JsonField::boolean_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  DG_ASSIGN(JsonField field, member(key));
  return field.boolean();
}

std::string escape_regex(std::string_view literal) {
  std::string out;
  for (char c : literal) {
    if (std::string_view("\\^$.|?*+()[]{}").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

Result<Regex> pattern_of(const JsonField& owner) {
  DG_ASSIGN(JsonField pattern, owner.member("pattern"));
  std::string source;
  if (pattern.has("String")) {
    DG_ASSIGN(std::string literal, pattern.text("String"));
    if (literal.empty()) return pattern.expected("a pattern that is not empty");
    source = escape_regex(literal);
  } else if (pattern.has("Regex")) {
    DG_ASSIGN(source, pattern.text("Regex"));
  } else {
    return pattern.expected("{\"String\": ...} or {\"Regex\": ...}");
  }
  auto regex = Regex::compile(source);
  if (!regex.ok()) return input_error(fmt::format("{}: {}", pattern.path(), regex.error().message));
  return regex;
}

}  // namespace dg
