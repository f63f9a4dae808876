// Operators + - * / // % ** with Python's results; integers are 64-bit, leaving that range is an error.
#include <fmt/core.h>

#include <cmath>

#include "text/jinja_eval.h"
#include "text/jinja_format.h"

namespace dg::jinja {
namespace {

const char* symbol(Op op) {
  switch (op) {
    case Op::kAdd: return "+";
    case Op::kSubtract: return "-";
    case Op::kMultiply: return "*";
    case Op::kDivide: return "/";
    case Op::kFloorDivide: return "//";
    case Op::kModulo: return "%";
    default: return "**";
  }
}

[[noreturn]] void overflow() { throw Failure{"an integer left the 64-bit range"}; }

int64_t power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  while (exponent > 0) {
    if (exponent & 1)
      if (__builtin_mul_overflow(result, base, &result)) overflow();
    exponent >>= 1;
    if (exponent > 0 && __builtin_mul_overflow(base, base, &base)) overflow();
  }
  return result;
}

Value integer_arithmetic(Op op, int64_t a, int64_t b) {
  int64_t r = 0;
  switch (op) {
    case Op::kAdd:
      if (__builtin_add_overflow(a, b, &r)) overflow();
      return Value::integer(r);
    case Op::kSubtract:
      if (__builtin_sub_overflow(a, b, &r)) overflow();
      return Value::integer(r);
    case Op::kMultiply:
      if (__builtin_mul_overflow(a, b, &r)) overflow();
      return Value::integer(r);
    case Op::kDivide:
      if (b == 0) throw Failure{"division by zero"};
      return Value::real(static_cast<double>(a) / static_cast<double>(b));
    case Op::kFloorDivide:
    case Op::kModulo: {
      if (b == 0) throw Failure{"division by zero"};
      if (b == -1) return op == Op::kModulo ? Value::integer(0) : integer_arithmetic(Op::kSubtract, 0, a);
      int64_t quotient = a / b, rest = a % b;
      if (rest != 0 && (rest < 0) != (b < 0)) {  // Python rounds down
        quotient--;
        rest += b;
      }
      return Value::integer(op == Op::kModulo ? rest : quotient);
    }
    default:
      if (b >= 0) return Value::integer(power(a, b));
      if (a == 0) throw Failure{"0.0 cannot be raised to a negative power"};
      return Value::real(std::pow(static_cast<double>(a), static_cast<double>(b)));
  }
}

Value real_arithmetic(Op op, double a, double b) {
  switch (op) {
    case Op::kAdd: return Value::real(a + b);
    case Op::kSubtract: return Value::real(a - b);
    case Op::kMultiply: return Value::real(a * b);
    case Op::kDivide:
      if (b == 0) throw Failure{"float division by zero"};
      return Value::real(a / b);
    case Op::kFloorDivide:
    case Op::kModulo: {
      if (b == 0) throw Failure{"float division by zero"};
      double rest = std::fmod(a, b);
      if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
      return Value::real(op == Op::kModulo ? rest : std::floor((a - rest) / b + 0.5));
    }
    default: return Value::real(std::pow(a, b));
  }
}

Value repeat(Heap& heap, const Value& value, int64_t times) {
  if (times < 0) times = 0;
  size_t n = static_cast<size_t>(times);
  if (value.is_string()) {
    size_t total = 0;
    if (__builtin_mul_overflow(value.text().size(), n, &total)) total = SIZE_MAX / 2;
    heap.charge_bytes(total);  // before it is built
    std::string out;
    out.reserve(total);
    if (total > 0)
      for (size_t i = 0; i < n; i++) out += value.text();
    return Value::string(std::move(out));
  }
  size_t total = 0;
  if (__builtin_mul_overflow(value.items().size() * sizeof(Value), n, &total)) total = SIZE_MAX / 2;
  heap.charge_bytes(total);
  std::vector<Value> out;
  if (total > 0)
    for (size_t i = 0; i < n; i++) out.insert(out.end(), value.items().begin(), value.items().end());
  return heap.list(std::move(out), value.kind());
}

}  // namespace

Value Interpreter::arithmetic(Op op, const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return integer_arithmetic(op, a.as_integer(), b.as_integer());
    return real_arithmetic(op, a.as_real(), b.as_real());
  }
  if (a.is_undefined()) throw Failure{a.text()};
  if (op == Op::kModulo && a.is_string()) return heap.string(percent_format(heap, a.text(), b));
  if (b.is_undefined()) throw Failure{b.text()};
  if (op == Op::kAdd && a.is_string() && b.is_string()) {
    heap.charge_bytes(a.text().size() + b.text().size());
    return Value::string(a.text() + b.text());
  }
  if (op == Op::kAdd && a.is_sequence() && a.kind() == b.kind()) {
    std::vector<Value> items;
    heap.charge_bytes((a.items().size() + b.items().size()) * sizeof(Value));
    items.reserve(a.items().size() + b.items().size());
    items.insert(items.end(), a.items().begin(), a.items().end());
    items.insert(items.end(), b.items().begin(), b.items().end());
    return heap.list(std::move(items), a.kind());
  }
  if (op == Op::kMultiply && (a.is_string() || a.is_sequence()) && b.is_integer()) return repeat(heap, a, b.as_integer());
  if (op == Op::kMultiply && (b.is_string() || b.is_sequence()) && a.is_integer()) return repeat(heap, b, a.as_integer());
  throw Failure{fmt::format("unsupported operand types for {}: '{}' and '{}'", symbol(op), type_name(a), type_name(b))};
}

}  // namespace dg::jinja
