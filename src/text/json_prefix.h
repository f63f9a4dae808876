// Checks, character by character, that a text is the beginning of a JSON value (RFC 8259).
//
// Nothing is stored but the kinds of the open containers, so a value of any length is checked while it streams. Bytes above
// 0x7f inside strings pass unchecked: the text is valid UTF-8 before it comes here.
#pragma once
#include <cstddef>
#include <string_view>
#include <vector>

namespace dg {

class JsonPrefix {
 public:
  // Open containers at most; what is deeper counts as invalid.
  static constexpr size_t kMaxDepth = 256;

  // False, and nothing changes, when no JSON value goes on with c.
  bool put(char c);

  // The value has ended; only white space may follow. A number at the top never ends by itself.
  bool complete() const { return state_ == State::kComplete; }
  bool in_string() const { return state_ == State::kString || state_ == State::kEscape || state_ == State::kHex; }
  size_t depth() const { return objects_.size(); }
  bool expects_key() const { return state_ == State::kKey || state_ == State::kKeyOrEnd; }
  bool expects_value() const { return state_ == State::kValue || state_ == State::kValueOrEnd; }

 private:
  enum class State {
    kValue,       // a value must come
    kValueOrEnd,  // behind "["
    kKeyOrEnd,    // behind "{"
    kKey,         // behind "," in an object
    kColon,
    kAfterValue,
    kString,
    kEscape,
    kHex,
    kLiteral,
    kMinus,
    kZero,
    kInteger,
    kPoint,
    kFraction,
    kExponent,
    kExponentSign,
    kExponentDigits,
    kComplete,
  };
  bool begin_value(char c);
  bool put_in_string(char c);
  bool put_in_number(char c);
  bool close(bool object);
  void end_value() { state_ = objects_.empty() ? State::kComplete : State::kAfterValue; }

  State state_ = State::kValue;
  bool key_ = false;           // the string being read is a key
  int hex_left_ = 0;           // digits of \uXXXX still to come
  std::string_view literal_;   // the rest of true, false or null
  std::vector<bool> objects_;  // open containers: true = object, false = array
};

inline bool is_json_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

}  // namespace dg
