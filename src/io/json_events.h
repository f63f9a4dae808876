// JSON as a stream of events, for files whose tree would be large (safetensors headers, shard indexes): no tree is
// built, a listener sees each value once and refuses the first one it does not expect. Memory is that of one string, and
// nesting costs no stack.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace dg {

struct JsonEvent {
  enum class Kind { kNull, kBool, kUnsigned, kNegative, kFloat, kString, kKey, kBeginObject, kEndObject, kBeginArray, kEndArray };
  Kind kind;
  uint64_t number = 0;          // kUnsigned
  std::string* text = nullptr;  // kString, kKey: the listener may move it out; kFloat, kNegative: as written
};

// For messages: "the string \"x\"", "the number 1.5", "an object", ...
std::string describe(const JsonEvent& event);

class JsonListener {
 public:
  virtual ~JsonListener() = default;
  // Returns false, through fail(), to stop.
  virtual bool on(const JsonEvent& event) = 0;
  const std::string& failure() const { return failure_; }

 protected:
  bool fail(std::string why) {
    failure_ = std::move(why);
    return false;
  }

 private:
  std::string failure_;
};

// Sends the one JSON value of `text` to `listener`. The error is "origin: " and the listener's reason, or why and at which
// byte the text is not JSON.
Result<void> stream_json(std::string_view text, std::string_view origin, JsonListener& listener);

}  // namespace dg
