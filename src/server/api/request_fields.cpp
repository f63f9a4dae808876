#include "server/api/request_fields.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/json.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

constexpr size_t kMaxShown = 60;
// A parsed value takes up to 30 times the bytes of its text: `[[],[],...]`. A million token ids stay far below this.
constexpr size_t kMaxValues = size_t{2} << 20;

bool has_too_many_values(std::string_view text) {
  size_t commas = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); i++) {
    char c = text[i];
    if (in_string && c == '\\') i++;
    else if (c == '"') in_string = !in_string;
    else if (c == ',' && !in_string && ++commas >= kMaxValues) return true;
  }
  return false;
}

bool is_integral(const Json& value) {
  if (value.is_number_integer()) return true;
  if (!value.is_number_float()) return false;
  double number = value.get<double>();
  return std::abs(number) <= 0x1p53 && number == std::floor(number);
}

// nlohmann tells line and column; people with one long line want the byte.
std::string byte_offset(std::string_view body, const std::string& message) {
  size_t line = 0, column = 0;
  size_t at = message.find("at line ");
  if (at == std::string::npos || std::sscanf(message.c_str() + at, "at line %zu, column %zu", &line, &column) != 2) return "";
  size_t start = 0;
  for (size_t i = 1; i < line; i++) {
    size_t newline = body.find('\n', start);
    if (newline == std::string_view::npos) return "";
    start = newline + 1;
  }
  return fmt::format(" (byte {})", start + (column > 0 ? column - 1 : 0));
}

const char* anthropic_type(int status) {
  switch (status) {
    case 401: return "authentication_error";
    case 403: return "permission_error";
    case 404: return "not_found_error";
    case 413: return "request_too_large";
    case 429: return "rate_limit_error";
    case 503: return "overloaded_error";
    default: return status < 500 ? "invalid_request_error" : "api_error";
  }
}

void add_retry_after(const ApiError& error, HttpResponse& response) {
  bool there = std::any_of(response.headers.begin(), response.headers.end(), [](const auto& h) { return h.first == "Retry-After"; });
  if ((error.status == 429 || error.status == 503) && !there) response.headers.emplace_back("Retry-After", "1");
}

}  // namespace

std::string_view field_of(std::string_view message) {
  size_t end = message.find(": ");
  if (end == std::string_view::npos || end == 0 || end > 200) return {};
  std::string_view field = message.substr(0, end);
  bool plain = std::all_of(field.begin(), field.end(),
                           [](unsigned char c) { return (c < 0x80 && std::isalnum(c)) || c == '_' || c == '.' || c == '[' || c == ']'; });
  return plain ? field : std::string_view();
}

ApiError api_error(const Error& error) {
  ApiError out;
  out.message = error.message;
  switch (error.kind) {
    case ErrorKind::kInput: out.param = std::string(field_of(error.message)); break;
    case ErrorKind::kResource:
      out.status = 429;
      out.type = "rate_limit_error";
      break;
    case ErrorKind::kCancelled:
      out.status = 503;
      out.type = "server_error";
      break;
    case ErrorKind::kIo:
    case ErrorKind::kDevice:
      out.status = 500;
      out.type = "server_error";
      break;
  }
  return out;
}

std::string openai_error_json(const ApiError& error) {
  auto text_or_null = [](const std::string& text) { return text.empty() ? std::string("null") : json_string(text); };
  return fmt::format(R"({{"error":{{"message":{},"type":{},"param":{},"code":{}}}}})", json_string(error.message), json_string(error.type),
                     text_or_null(error.param), text_or_null(error.code));
}

std::string anthropic_error_json(const ApiError& error) {
  return fmt::format(R"({{"type":"error","error":{{"type":"{}","message":{}}}}})", anthropic_type(error.status),
                     json_string(error.message));
}

HttpResponse openai_error(const ApiError& error) {
  HttpResponse response = error_response(error.status, error.message, error.type, error.param, error.code);
  add_retry_after(error, response);
  return response;
}

HttpResponse anthropic_error(const ApiError& error) {
  HttpResponse response{.status = error.status, .body = anthropic_error_json(error), .headers = {}};
  add_retry_after(error, response);
  return response;
}

Result<Json> parse_body(const HttpRequest& request) {
  if (has_too_many_values(request.body))
    return input_error(fmt::format("body: expected at most {} values, found more; split the request", kMaxValues));
  auto json = parse_json(request.body, "body");
  if (!json.ok()) return input_error(json.error().message + byte_offset(request.body, json.error().message));
  if (!json->is_object()) return wrong_field("body", "a JSON object", &*json);
  return json;
}

std::string shown_value(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return value.empty() ? "an empty list" : "a list";
    case Json::value_t::string: {
      const auto& text = value.get_ref<const std::string&>();
      std::string quoted = Json(text.substr(0, kMaxShown)).dump(-1, ' ', true, Json::error_handler_t::replace);
      return text.size() > kMaxShown ? quoted + "..." : quoted;
    }
    default: return value.dump();
  }
}

Error wrong_field(std::string_view where, std::string_view expected, const Json* found) {
  return input_error(fmt::format("{}: expected {}, found {}", where, expected, found ? shown_value(*found) : "nothing"));
}

Fields::Fields(const Json& object, std::string path) : Fields(&object, std::move(path), std::make_shared<std::optional<Error>>()) {}

Fields::Fields(const Json* object, std::string path, std::shared_ptr<std::optional<Error>> problem)
    : object_(object), path_(std::move(path)), problem_(std::move(problem)) {
  if (!object_ || object_->is_object()) return;
  fail(wrong_field(path_.empty() ? "body" : path_, "an object", object_));
  object_ = nullptr;
}

const Json* Fields::find(std::string_view name) const {
  if (!object_) return nullptr;
  auto it = object_->find(name);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

std::string Fields::at(std::string_view name) const { return path_.empty() ? std::string(name) : fmt::format("{}.{}", path_, name); }

void Fields::fail(Error error) {
  if (ok()) *problem_ = std::move(error);
}

void Fields::wrong(std::string_view name, std::string_view expected) { fail(wrong_field(at(name), expected, find(name))); }

std::optional<double> Fields::number(std::string_view name, Range range) {
  const Json* value = find(name);
  if (!value) return {};
  if (value->is_number()) {
    double number = value->get<double>();
    if (number <= range.max && (range.above_min ? number > range.min : number >= range.min)) return number;
  }
  bool low = std::isfinite(range.min), high = std::isfinite(range.max);
  std::string expected = "a number";
  if (low && range.above_min) expected += fmt::format(" above {}", range.min);
  if (low && range.above_min && high) expected += fmt::format(" and at most {}", range.max);
  if (low && !range.above_min)
    expected += high ? fmt::format(" between {} and {}", range.min, range.max) : fmt::format(" of at least {}", range.min);
  wrong(name, expected);
  return {};
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t min, int64_t max) {
  const Json* value = find(name);
  if (!value) return {};
  bool too_large = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  if (is_integral(*value) && !too_large) {
    int64_t number = value->get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  bool bounded = max < int64_t{1} << 53;
  wrong(name, bounded           ? fmt::format("an integer between {} and {}", min, max)
              : min > INT64_MIN ? fmt::format("an integer of at least {}", min)
                                : "a 64-bit integer");
  return {};
}

std::optional<bool> Fields::flag(std::string_view name) {
  const Json* value = find(name);
  if (!value) return {};
  if (value->is_boolean()) return value->get<bool>();
  wrong(name, "true or false");
  return {};
}

std::optional<std::string> Fields::text(std::string_view name) {
  const Json* value = find(name);
  if (!value) return {};
  if (value->is_string()) return value->get<std::string>();
  wrong(name, "a string");
  return {};
}

std::optional<std::string> Fields::choice(std::string_view name, std::initializer_list<std::string_view> values) {
  const Json* value = find(name);
  if (!value) return {};
  if (value->is_string() && std::find(values.begin(), values.end(), value->get_ref<const std::string&>()) != values.end())
    return value->get<std::string>();
  std::string expected;
  for (std::string_view each : values) {
    if (!expected.empty()) expected += each == *(values.end() - 1) ? " or " : ", ";
    expected += fmt::format("\"{}\"", each);
  }
  wrong(name, expected);
  return {};
}

std::optional<std::vector<std::string>> Fields::texts(std::string_view name, size_t max_items, bool or_one) {
  const Json* value = find(name);
  if (!value) return {};
  if (or_one && value->is_string()) return std::vector<std::string>{value->get<std::string>()};
  if (!value->is_array()) {
    wrong(name, or_one ? "a string or a list of strings" : "a list of strings");
    return {};
  }
  if (value->size() > max_items) {
    fail(input_error(fmt::format("{}: expected at most {} strings, found {}", at(name), max_items, value->size())));
    return {};
  }
  std::vector<std::string> out;
  for (size_t i = 0; i < value->size(); i++) {
    if (!(*value)[i].is_string()) {
      fail(wrong_field(fmt::format("{}[{}]", at(name), i), "a string", &(*value)[i]));
      return {};
    }
    out.push_back((*value)[i].get<std::string>());
  }
  return out;
}

std::optional<std::vector<int32_t>> Fields::ids(std::string_view name, int64_t vocab) {
  const Json* value = find(name);
  if (!value) return {};
  auto ids = read_ids(*value, at(name), vocab);
  if (ids.ok()) return std::move(ids).value();
  fail(ids.error());
  return {};
}

Fields Fields::object(std::string_view name) { return Fields(find(name), at(name), problem_); }

Result<std::vector<int32_t>> read_ids(const Json& list, std::string_view where, int64_t vocab) {
  if (!list.is_array()) return wrong_field(where, "a list of token ids", &list);
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (size_t i = 0; i < list.size(); i++) {
    const Json& item = list[i];
    bool fits = item.is_number_integer() && (item.is_number_unsigned() ? item.get<uint64_t>() < static_cast<uint64_t>(vocab)
                                                                       : item.get<int64_t>() >= 0 && item.get<int64_t>() < vocab);
    if (!fits) return wrong_field(fmt::format("{}[{}]", where, i), fmt::format("a token id between 0 and {}", vocab - 1), &item);
    ids.push_back(static_cast<int32_t>(item.get<int64_t>()));
  }
  return ids;
}

}  // namespace dg::api
