#include "io/json_events.h"

#include <fmt/core.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/json_fwd.h"
#include "io/error_text.h"

namespace dg {
namespace {

using Kind = JsonEvent::Kind;

// nlohmann's SAX callbacks, one event each.
class Adapter {
 public:
  explicit Adapter(JsonListener& listener) : listener_(listener) {}

  bool null() { return listener_.on({.kind = Kind::kNull}); }
  bool boolean(bool) { return listener_.on({.kind = Kind::kBool}); }
  bool number_unsigned(uint64_t value) { return listener_.on({.kind = Kind::kUnsigned, .number = value}); }
  bool number_integer(int64_t value) {
    std::string text = std::to_string(value);
    return listener_.on({.kind = Kind::kNegative, .text = &text});
  }
  bool number_float(double, const std::string& written) {
    std::string text = written;
    return listener_.on({.kind = Kind::kFloat, .text = &text});
  }
  bool string(std::string& value) { return listener_.on({.kind = Kind::kString, .text = &value}); }
  bool binary(SortedJson::binary_t&) { return false; }  // not in textual JSON
  bool key(std::string& value) { return listener_.on({.kind = Kind::kKey, .text = &value}); }
  bool start_object(size_t) { return listener_.on({.kind = Kind::kBeginObject}); }
  bool end_object() { return listener_.on({.kind = Kind::kEndObject}); }
  bool start_array(size_t) { return listener_.on({.kind = Kind::kBeginArray}); }
  bool end_array() { return listener_.on({.kind = Kind::kEndArray}); }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    std::string_view what = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: reason; last read: '...'": keep the reason
    size_t at = what.find(": ");
    if (what.find("parse error") < at && at != std::string_view::npos) what.remove_prefix(at + 2);
    else if (size_t close = what.find("] "); close != std::string_view::npos) what.remove_prefix(close + 2);
    std::string reason = quote_text(what, 160);
    reason_ = fmt::format("not valid JSON at byte {}: {}", position, std::string_view(reason).substr(1, reason.size() - 2));
    return false;
  }
  const std::string& reason() const { return reason_; }

 private:
  JsonListener& listener_;
  std::string reason_;
};

}  // namespace

std::string describe(const JsonEvent& event) {
  switch (event.kind) {
    case Kind::kNull: return "null";
    case Kind::kBool: return "true or false";
    case Kind::kUnsigned: return fmt::format("the number {}", event.number);
    case Kind::kNegative:
    case Kind::kFloat: return fmt::format("the number {}", std::string_view(*event.text).substr(0, 40));
    case Kind::kString: return "the string " + quote_text(*event.text, 80);
    case Kind::kKey: return "the key " + quote_text(*event.text, 80);
    case Kind::kBeginObject: return "an object";
    case Kind::kEndObject: return "the end of an object";
    case Kind::kBeginArray: return "an array";
    case Kind::kEndArray: return "the end of an array";
  }
  return "an unknown value";
}

Result<void> stream_json(std::string_view text, std::string_view origin, JsonListener& listener) {
  // The library takes a NUL for the end of the text and would ignore what follows; JSON has none anywhere.
  size_t nul = text.find('\0');
  if (nul != std::string_view::npos) return input_error(fmt::format("{}: not valid JSON at byte {}: a NUL byte", origin, nul));
  Adapter adapter(listener);
  try {
    if (SortedJson::sax_parse(text.begin(), text.end(), &adapter)) return {};
  } catch (const std::exception& error) {
    return input_error(fmt::format("{}: not valid JSON: {}", origin, quote_text(error.what())));
  }
  return input_error(fmt::format("{}: {}", origin, listener.failure().empty() ? adapter.reason() : listener.failure()));
}

}  // namespace dg
