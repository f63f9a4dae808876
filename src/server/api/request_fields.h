// Typed readers for the fields of a request. A wrong type or range becomes one line that begins with the field's name
// ("temperature: expected a number between 0 and 2, found \"hot\""); the first one counts, so a handler reads everything and
// looks once. An absent field and null are the same. Unknown fields are not looked at.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"
#include "server/http.h"

namespace dg::api {

// What a client is told when its request fails, apart from the shape of the endpoint's protocol.
struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param, code;
};
// `param` is the field that the message begins with.
ApiError api_error(const Error& error);
HttpResponse openai_error(const ApiError& error);
// {"error":{"message":...,"type":...,"param":...,"code":...}}
std::string openai_error_json(const ApiError& error);
// {"type":"error","error":{"type":...,"message":...}}
std::string anthropic_error_json(const ApiError& error);
HttpResponse anthropic_error(const ApiError& error);

// "temperature" of "temperature: expected ..."; "" when the message does not begin with a field.
std::string_view field_of(std::string_view message);

// The body as a JSON object; the error gives the byte offset.
Result<Json> parse_body(const HttpRequest& request);

// A value for a message: type, or the value itself when it is short.
std::string shown_value(const Json& value);
Error wrong_field(std::string_view where, std::string_view expected, const Json* found);

class Fields {
 public:
  // `object` outlives this. Not an object (a nested field of a wrong type): an error, and every field is absent.
  explicit Fields(const Json& object, std::string path = "");

  struct Range {
    double min = -std::numeric_limits<double>::infinity();
    double max = std::numeric_limits<double>::infinity();
    bool above_min = false;  // min itself is not allowed
  };
  const Json* find(std::string_view name) const;  // null: absent or null
  bool has(std::string_view name) const { return find(name) != nullptr; }
  std::optional<double> number(std::string_view name, Range range);
  std::optional<int64_t> integer(std::string_view name, int64_t min, int64_t max);
  std::optional<bool> flag(std::string_view name);
  std::optional<std::string> text(std::string_view name);
  std::optional<std::string> choice(std::string_view name, std::initializer_list<std::string_view> values);
  // A list of strings; with `or_one` also a single string.
  std::optional<std::vector<std::string>> texts(std::string_view name, size_t max_items, bool or_one);
  std::optional<std::vector<int32_t>> ids(std::string_view name, int64_t vocab);
  // The nested object: its errors are this one's. Absent: no fields.
  Fields object(std::string_view name);

  std::string at(std::string_view name) const;                   // "stream_options.include_usage"
  void wrong(std::string_view name, std::string_view expected);  // found: the field as it is
  void fail(Error error);
  bool ok() const { return !problem_->has_value(); }
  const Error& error() const { return **problem_; }

 private:
  Fields(const Json* object, std::string path, std::shared_ptr<std::optional<Error>> problem);

  const Json* object_;  // null: no fields
  std::string path_;
  std::shared_ptr<std::optional<Error>> problem_;  // shared with the nested ones
};

// A list of token ids in [0, vocab), the items named WHERE[i] in errors.
Result<std::vector<int32_t>> read_ids(const Json& list, std::string_view where, int64_t vocab);

}  // namespace dg::api
