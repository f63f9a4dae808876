// The tests of `x is name`.
#include <fmt/core.h>

#include <cmath>

#include "text/jinja_eval.h"
#include "text/jinja_filters.h"
#include "text/jinja_methods.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

using Test = bool (*)(Interpreter& in, const Value& value);
using BinaryTest = bool (*)(Interpreter& in, const Value& value, const Value& argument);

bool rest_is(Interpreter& in, const Value& value, int64_t divisor, int64_t rest) {
  return equal(in.heap, in.arithmetic(Op::kModulo, value, Value::integer(divisor)), Value::integer(rest));
}

bool is_iterable(const Value& v) { return v.is_undefined() || v.is_string() || v.is_sequence() || v.is_dict(); }

bool is_filter(std::string_view name) { return find_text_filter(name) || find_sequence_filter(name); }

constexpr std::pair<std::string_view, Test> kTests[] = {
    {"defined", [](Interpreter&, const Value& v) { return !v.is_undefined(); }},
    {"undefined", [](Interpreter&, const Value& v) { return v.is_undefined(); }},
    {"none", [](Interpreter&, const Value& v) { return v.is_none(); }},
    {"string", [](Interpreter&, const Value& v) { return v.is_string(); }},
    {"number", [](Interpreter&, const Value& v) { return v.is_number(); }},
    {"integer", [](Interpreter&, const Value& v) { return v.kind() == Kind::kInt; }},
    {"float", [](Interpreter&, const Value& v) { return v.kind() == Kind::kFloat; }},
    {"boolean", [](Interpreter&, const Value& v) { return v.is_bool(); }},
    {"true", [](Interpreter&, const Value& v) { return v.is_bool() && v.as_bool(); }},
    {"false", [](Interpreter&, const Value& v) { return v.is_bool() && !v.as_bool(); }},
    {"mapping", [](Interpreter&, const Value& v) { return v.is_dict(); }},
    {"sequence", [](Interpreter&, const Value& v) { return is_iterable(v); }},
    {"iterable", [](Interpreter&, const Value& v) { return is_iterable(v); }},
    {"callable", [](Interpreter&, const Value& v) { return v.kind() == Kind::kObject; }},
    {"odd", [](Interpreter& in, const Value& v) { return rest_is(in, v, 2, 1); }},
    {"even", [](Interpreter& in, const Value& v) { return rest_is(in, v, 2, 0); }},
    {"lower", [](Interpreter& in, const Value& v) { return is_lower(to_text(in.heap, v)); }},
    {"upper", [](Interpreter& in, const Value& v) { return is_upper(to_text(in.heap, v)); }},
    {"filter", [](Interpreter&, const Value& v) { return v.is_string() && is_filter(v.text()); }},
};

constexpr BinaryTest kEqual = [](Interpreter& in, const Value& v, const Value& x) { return equal(in.heap, v, x); };
constexpr BinaryTest kDifferent = [](Interpreter& in, const Value& v, const Value& x) { return !equal(in.heap, v, x); };
constexpr BinaryTest kLess = [](Interpreter& in, const Value& v, const Value& x) { return less(in.heap, v, x, "<"); };
constexpr BinaryTest kGreater = [](Interpreter& in, const Value& v, const Value& x) { return less(in.heap, x, v, ">"); };
constexpr BinaryTest kAtMost = [](Interpreter& in, const Value& v, const Value& x) {
  return less(in.heap, v, x, "<=") || equal(in.heap, v, x);
};
constexpr BinaryTest kAtLeast = [](Interpreter& in, const Value& v, const Value& x) {
  return less(in.heap, x, v, ">=") || equal(in.heap, v, x);
};

constexpr std::pair<std::string_view, BinaryTest> kBinaryTests[] = {
    {"eq", kEqual},
    {"equalto", kEqual},
    {"==", kEqual},
    {"ne", kDifferent},
    {"!=", kDifferent},
    {"lt", kLess},
    {"lessthan", kLess},
    {"<", kLess},
    {"gt", kGreater},
    {"greaterthan", kGreater},
    {">", kGreater},
    {"le", kAtMost},
    {"<=", kAtMost},
    {"ge", kAtLeast},
    {">=", kAtLeast},
    {"in", [](Interpreter& in, const Value& v, const Value& x) { return contains(in.heap, x, v); }},
    {"divisibleby",
     [](Interpreter& in, const Value& v, const Value& x) { return equal(in.heap, in.arithmetic(Op::kModulo, v, x), Value::integer(0)); }},
    {"sameas",
     [](Interpreter& in, const Value& v, const Value& x) {
       bool container = v.is_sequence() || v.is_dict() || v.kind() == Kind::kNamespace || v.kind() == Kind::kObject;
       return v.kind() == x.kind() && (container ? v.same_object(x) : equal(in.heap, v, x));
     }},
};

}  // namespace

bool Interpreter::test(const std::string& name, const Value& value, const Args& args) {
  Nesting nesting(*this);
  for (auto& [n, f] : kTests) {
    if (n != name) continue;
    if (!args.positional.empty() || !args.named.empty()) throw Failure{fmt::format("the test '{}' takes no argument", name)};
    if (value.is_string()) heap.charge(value.text().size() / 16);
    return f(*this, value);
  }
  for (auto& [n, f] : kBinaryTests) {
    if (n != name) continue;
    if (args.positional.size() != 1 || !args.named.empty()) throw Failure{fmt::format("the test '{}' takes one argument", name)};
    return f(*this, value, args.positional[0]);
  }
  throw Failure{fmt::format("no test named {}", python_repr(std::string_view(name).substr(0, 40)))};
}

}  // namespace dg::jinja
