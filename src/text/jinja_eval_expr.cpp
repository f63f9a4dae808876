// Expressions.
#include <fmt/core.h>

#include <algorithm>

#include "text/jinja_eval.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

struct BuiltinObject : Object {
  BuiltinObject(std::string name, Function function) : name(std::move(name)), function(function) {}
  std::string describe() const override { return fmt::format("<function {}>", name); }
  Value call(Interpreter& in, const Args& args) override { return function(in, args); }
  std::string name;
  Function function;
};

struct MethodObject : Object {
  MethodObject(Value self, const Method& method) : self(std::move(self)), method(method) {}
  std::string describe() const override { return fmt::format("<built-in method {}>", method.name); }
  Value call(Interpreter& in, const Args& args) override { return method.function(in, self, args); }
  Value self;
  const Method& method;
};

Value missing(const Value& object, std::string_view name) {
  const char* type = type_name(object);
  if (object.is_none()) return Value::undefined(fmt::format("'None' has no attribute '{}'", name.substr(0, 100)));
  return Value::undefined(fmt::format("'{} object' has no attribute '{}'", type, name.substr(0, 100)));
}

// Python's slice.indices(): the first index and how many steps are taken.
struct Range {
  int64_t start = 0;
  int64_t count = 0;
};

Range slice_range(int64_t size, const Value& from, const Value& to, int64_t step) {
  auto bound = [&](const Value& v, int64_t otherwise) {
    if (v.is_none()) return otherwise;
    if (v.is_undefined()) throw Failure{v.text()};
    if (!v.is_integer()) throw Failure{fmt::format("slice indices must be integers or None, not {}", type_name(v))};
    int64_t i = v.as_integer();
    if (i < 0) i = std::max<int64_t>(i, -size - 1) + size;  // no overflow: i >= -1
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  int64_t start = bound(from, step > 0 ? 0 : size - 1);
  int64_t stop = bound(to, step > 0 ? size : -1);
  if (step > 0) return {start, start < stop ? (stop - start - 1) / step + 1 : 0};
  return {start, stop < start ? (start - stop - 1) / -step + 1 : 0};
}

}  // namespace

Value Interpreter::evaluate(const Expr& e, Scope& scope, const Value* block_input) {
  Nesting nesting(*this);
  heap.charge(1);
  line_ = e.line;
  switch (e.kind) {
    case ExprKind::kLiteral: return e.literal;
    case ExprKind::kName: return evaluate_name(e, scope);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      std::vector<Value> items;
      items.reserve(e.items.size());
      for (auto& item : e.items) items.push_back(evaluate(*item, scope));
      return heap.list(std::move(items), e.kind == ExprKind::kList ? Kind::kList : Kind::kTuple);
    }
    case ExprKind::kDict: return evaluate_dict(e, scope);
    case ExprKind::kNot: return Value::boolean(!truth(evaluate(*e.items[0], scope)));
    case ExprKind::kNegative:
    case ExprKind::kPositive: return evaluate_unary(e, scope);
    case ExprKind::kArithmetic: {
      Value a = evaluate(*e.items[0], scope);
      Value b = evaluate(*e.items[1], scope);
      return arithmetic(e.op, a, b);
    }
    case ExprKind::kConcat: return evaluate_concat(e, scope);
    case ExprKind::kCompare: return evaluate_compare(e, scope);
    case ExprKind::kAnd: {
      Value a = evaluate(*e.items[0], scope);
      return truth(a) ? evaluate(*e.items[1], scope) : a;
    }
    case ExprKind::kOr: {
      Value a = evaluate(*e.items[0], scope);
      return truth(a) ? a : evaluate(*e.items[1], scope);
    }
    case ExprKind::kConditional:
      if (truth(evaluate(*e.items[1], scope))) return evaluate(*e.items[0], scope);
      if (e.items[2]) return evaluate(*e.items[2], scope);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined");
    case ExprKind::kAttribute: {
      Value object = evaluate(*e.items[0], scope);
      line_ = e.line;
      return attribute(object, e.name);
    }
    case ExprKind::kSubscript: {
      Value object = evaluate(*e.items[0], scope);
      Value key = evaluate(*e.items[1], scope);
      return subscript(object, key);
    }
    case ExprKind::kSlice: return evaluate_slice(e, scope);
    case ExprKind::kCall: return evaluate_call(e, scope);
    case ExprKind::kFilter: return evaluate_filter(e, scope, block_input);
    case ExprKind::kTest: return evaluate_test(e, scope);
  }
  return {};
}

Value Interpreter::evaluate_name(const Expr& e, Scope& scope) {
  for (Scope* s = &scope; s; s = s->parent.get()) {
    heap.charge(s->names.size() / 16);
    for (auto& [name, value] : s->names)
      if (name == e.name) return value;
  }
  if (Function function = find_global(e.name)) return Value::object(heap.adopt(std::make_unique<BuiltinObject>(e.name, function)));
  return Value::undefined(fmt::format("'{}' is undefined", e.name.substr(0, 100)));
}

Value Interpreter::evaluate_dict(const Expr& e, Scope& scope) {
  Value dict = heap.dict();
  for (size_t i = 0; i < e.items.size(); i += 2) {
    Value key = evaluate(*e.items[i], scope);
    assign(heap, dict.dict(), key, evaluate(*e.items[i + 1], scope));
  }
  return dict;
}

Value Interpreter::evaluate_unary(const Expr& e, Scope& scope) {
  Value v = evaluate(*e.items[0], scope);
  if (v.is_undefined()) throw Failure{v.text()};
  bool negative = e.kind == ExprKind::kNegative;
  if (v.kind() == Kind::kFloat) return Value::real(negative ? -v.as_real() : v.as_real());
  if (!v.is_integer()) throw Failure{fmt::format("bad operand type for unary {}: '{}'", negative ? '-' : '+', type_name(v))};
  return negative ? arithmetic(Op::kSubtract, Value::integer(0), v) : Value::integer(v.as_integer());
}

Value Interpreter::evaluate_concat(const Expr& e, Scope& scope) {
  std::string text;
  for (auto& item : e.items) {
    Value v = evaluate(*item, scope);
    std::string part = to_text(heap, v);
    heap.charge_bytes(part.size());
    text += part;
  }
  return heap.string(std::move(text));
}

Value Interpreter::evaluate_compare(const Expr& e, Scope& scope) {
  Value left = evaluate(*e.items[0], scope);
  for (size_t i = 0; i < e.ops.size(); i++) {
    Value right = evaluate(*e.items[i + 1], scope);
    bool result = false;
    switch (e.ops[i]) {
      case Op::kEqual: result = equal(heap, left, right); break;
      case Op::kNotEqual: result = !equal(heap, left, right); break;
      case Op::kLess: result = less(heap, left, right, "<"); break;
      case Op::kGreater: result = less(heap, right, left, ">"); break;
      case Op::kLessEqual: result = less(heap, left, right, "<=") || equal(heap, left, right); break;
      case Op::kGreaterEqual: result = less(heap, right, left, ">=") || equal(heap, left, right); break;
      case Op::kIn: result = contains(heap, right, left); break;
      default: result = !contains(heap, right, left); break;
    }
    if (!result) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Value Interpreter::evaluate_slice(const Expr& e, Scope& scope) {
  Value object = evaluate(*e.items[0], scope);
  Value bounds[3];
  for (size_t i = 0; i < 3; i++) bounds[i] = e.items[i + 1] ? evaluate(*e.items[i + 1], scope) : Value::none();
  if (object.is_undefined()) throw Failure{object.text()};
  int64_t step = 1;
  if (!bounds[2].is_none()) {
    if (!bounds[2].is_integer()) throw Failure{"slice indices must be integers or None"};
    step = bounds[2].as_integer();
    if (step == 0) throw Failure{"slice step cannot be zero"};
    step = std::clamp<int64_t>(step, -INT64_MAX, INT64_MAX);
  }
  if (object.is_string()) {
    const std::string& text = object.text();
    heap.charge(text.size() / 16 + 1);
    Range r = slice_range(static_cast<int64_t>(count_characters(text)), bounds[0], bounds[1], step);
    if (step == 1) {
      size_t from = byte_offset(text, static_cast<size_t>(r.start));
      size_t n = byte_offset(std::string_view(text).substr(from), static_cast<size_t>(r.count));
      return heap.string(text.substr(from, n));
    }
    std::vector<Value> characters = iterate(heap, object);
    std::string out;
    for (int64_t i = 0; i < r.count; i++) out += characters[static_cast<size_t>(r.start + i * step)].text();
    return heap.string(std::move(out));
  }
  if (!object.is_sequence()) throw Failure{fmt::format("'{}' object cannot be sliced", type_name(object))};
  auto& items = object.items();
  Range r = slice_range(static_cast<int64_t>(items.size()), bounds[0], bounds[1], step);
  std::vector<Value> out;
  heap.charge_bytes(static_cast<size_t>(r.count) * sizeof(Value));
  out.reserve(static_cast<size_t>(r.count));
  for (int64_t i = 0; i < r.count; i++) out.push_back(items[static_cast<size_t>(r.start + i * step)]);
  return heap.list(std::move(out), object.kind());
}

Args Interpreter::evaluate_arguments(const Expr& e, Scope& scope) {
  Args args;
  args.positional.reserve(e.items.size() - 1);
  for (size_t i = 1; i < e.items.size(); i++) args.positional.push_back(evaluate(*e.items[i], scope));
  for (auto& [name, value] : e.named) args.named.emplace_back(name, evaluate(*value, scope));
  return args;
}

Value Interpreter::evaluate_call(const Expr& e, Scope& scope) {
  const Expr& callee = *e.items[0];
  if (callee.kind == ExprKind::kAttribute) {  // a method: called without making an object of it
    Value self = evaluate(*callee.items[0], scope);
    if (const Method* method = find_method(self, callee.name)) {
      Args args = evaluate_arguments(e, scope);
      line_ = e.line;
      return method->function(*this, self, args);
    }
    Value function = attribute(self, callee.name);
    Args args = evaluate_arguments(e, scope);
    line_ = e.line;
    return call(function, args);
  }
  Value function = evaluate(callee, scope);
  Args args = evaluate_arguments(e, scope);
  line_ = e.line;
  return call(function, args);
}

Value Interpreter::call(const Value& callee, const Args& args) {
  Nesting nesting(*this);
  if (callee.is_undefined()) throw Failure{callee.text()};
  if (callee.kind() != Kind::kObject) throw Failure{fmt::format("'{}' object is not callable", type_name(callee))};
  return callee.object()->call(*this, args);
}

Value Interpreter::evaluate_filter(const Expr& e, Scope& scope, const Value* block_input) {
  Value input = !e.items[0] ? *block_input : evaluate(*e.items[0], scope, block_input);
  Args args = evaluate_arguments(e, scope);
  line_ = e.line;
  return filter(e.name, input, args);
}

Value Interpreter::evaluate_test(const Expr& e, Scope& scope) {
  Value input = evaluate(*e.items[0], scope);
  Args args = evaluate_arguments(e, scope);
  line_ = e.line;
  return Value::boolean(test(e.name, input, args));
}

Value Interpreter::attribute(const Value& object, std::string_view name) {
  if (object.is_undefined()) throw Failure{object.text()};
  if (const Method* method = find_method(object, name)) return Value::object(heap.adopt(std::make_unique<MethodObject>(object, *method)));
  if (object.kind() == Kind::kObject) return object.object()->attribute(*this, name);
  if (object.is_dict() || object.kind() == Kind::kNamespace)
    if (Value* found = find_text(heap, object.dict(), name)) return *found;
  return missing(object, name);
}

Value Interpreter::subscript(const Value& object, const Value& key) {
  if (object.is_undefined()) throw Failure{object.text()};
  if (object.is_dict() && !key.is_undefined()) {
    if (Value* found = find(heap, object.dict(), key)) return *found;
  } else if ((object.is_sequence() || object.is_string()) && key.is_integer()) {
    if (object.is_string()) heap.charge(object.text().size() / 32);
    int64_t size = static_cast<int64_t>(length(heap, object));
    int64_t i = key.as_integer();
    if (i < 0 && i >= -size) i += size;
    if (i >= 0 && i < size) {
      if (object.is_sequence()) return object.items()[static_cast<size_t>(i)];
      size_t from = byte_offset(object.text(), static_cast<size_t>(i));
      return Value::string(object.text().substr(from, sequence_length(object.text(), from)));
    }
    return Value::undefined(fmt::format("'{} object' has no element {}", type_name(object), key.as_integer()));
  }
  if (key.is_string()) return attribute(object, key.text());
  std::string shown;
  append_repr(heap, key, shown);
  return Value::undefined(fmt::format("'{} object' has no element {}", type_name(object), shown.substr(0, 100)));
}

}  // namespace dg::jinja
