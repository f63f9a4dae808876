#include "text/json_prefix.h"

namespace dg {
namespace {

bool is_json_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

bool JsonPrefix::begin_value(char c) {
  switch (c) {
    case '{':
    case '[':
      if (objects_.size() == kMaxDepth) return false;
      objects_.push_back(c == '{');
      state_ = c == '{' ? State::kKeyOrEnd : State::kValueOrEnd;
      return true;
    case '"':
      key_ = false;
      state_ = State::kString;
      return true;
    case 't': literal_ = "rue"; break;
    case 'f': literal_ = "alse"; break;
    case 'n': literal_ = "ull"; break;
    case '-': state_ = State::kMinus; return true;
    case '0': state_ = State::kZero; return true;
    default:
      if (!is_json_digit(c)) return false;
      state_ = State::kInteger;
      return true;
  }
  state_ = State::kLiteral;
  return true;
}

bool JsonPrefix::put_in_string(char c) {
  switch (state_) {
    case State::kEscape:
      if (c == 'u') {
        hex_left_ = 4;
        state_ = State::kHex;
        return true;
      }
      if (std::string_view("\"\\/bfnrt").find(c) == std::string_view::npos) return false;
      state_ = State::kString;
      return true;
    case State::kHex:
      if (!is_json_digit(c) && !(c >= 'a' && c <= 'f') && !(c >= 'A' && c <= 'F')) return false;
      if (--hex_left_ == 0) state_ = State::kString;
      return true;
    default:
      if (static_cast<unsigned char>(c) < 0x20) return false;
      if (c == '\\') state_ = State::kEscape;
      else if (c == '"' && key_) state_ = State::kColon;
      else if (c == '"') end_value();
      return true;
  }
}

// A character that continues a number; false for any other, which may still follow when the number can end here.
bool JsonPrefix::put_in_number(char c) {
  const bool digit = is_json_digit(c);
  const bool exponent = c == 'e' || c == 'E';
  State next = state_;
  switch (state_) {
    case State::kMinus:
      if (!digit) return false;
      next = c == '0' ? State::kZero : State::kInteger;
      break;
    case State::kZero:
    case State::kInteger:
      if (c == '.') next = State::kPoint;
      else if (exponent) next = State::kExponent;
      else if (!digit || state_ == State::kZero) return false;
      break;
    case State::kPoint:
      if (!digit) return false;
      next = State::kFraction;
      break;
    case State::kFraction:
      if (exponent) next = State::kExponent;
      else if (!digit) return false;
      break;
    case State::kExponent:
      if (c == '+' || c == '-') next = State::kExponentSign;
      else if (digit) next = State::kExponentDigits;
      else return false;
      break;
    default:
      if (!digit) return false;
      next = State::kExponentDigits;
  }
  state_ = next;
  return true;
}

bool JsonPrefix::close(bool object) {
  if (objects_.empty() || objects_.back() != object) return false;
  objects_.pop_back();
  end_value();
  return true;
}

bool JsonPrefix::put(char c) {
  switch (state_) {
    case State::kString:
    case State::kEscape:
    case State::kHex: return put_in_string(c);
    case State::kLiteral:
      if (c != literal_.front()) return false;
      literal_.remove_prefix(1);
      if (literal_.empty()) end_value();
      return true;
    case State::kMinus:
    case State::kPoint:
    case State::kExponent:
    case State::kExponentSign: return put_in_number(c);
    case State::kZero:
    case State::kInteger:
    case State::kFraction:
    case State::kExponentDigits: {
      if (put_in_number(c)) return true;
      const State number = state_;
      end_value();  // the number ends before c
      if (put(c)) return true;
      state_ = number;
      return false;
    }
    default: break;
  }
  if (is_json_space(c)) return true;
  switch (state_) {
    case State::kValue: return begin_value(c);
    case State::kValueOrEnd: return c == ']' ? close(false) : begin_value(c);
    case State::kKeyOrEnd:
      if (c == '}') return close(true);
      [[fallthrough]];
    case State::kKey:
      if (c != '"') return false;
      key_ = true;
      state_ = State::kString;
      return true;
    case State::kColon:
      if (c != ':') return false;
      state_ = State::kValue;
      return true;
    case State::kAfterValue:
      if (c == ',') {
        state_ = objects_.back() ? State::kKey : State::kValue;
        return true;
      }
      return (c == '}' || c == ']') && close(c == '}');
    default: return false;  // complete
  }
}

}  // namespace dg
