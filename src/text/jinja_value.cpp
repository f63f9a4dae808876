#include "text/jinja_value.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>

#include "base/json.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

constexpr int kMaxValueNesting = 100;  // of values that are compared, printed or dumped

void check_nesting(int depth) {
  if (depth > kMaxValueNesting) throw Failure{fmt::format("a value is nested deeper than {} levels", kMaxValueNesting)};
}

void check_hashable(const Value& key) {
  if (key.kind() == Kind::kList || key.kind() == Kind::kDict) throw Failure{fmt::format("unhashable type: '{}'", type_name(key))};
}

}  // namespace

Value Object::call(Interpreter&, const Args&) { throw Failure{fmt::format("{} is not callable", describe())}; }
Value Object::attribute(Interpreter&, std::string_view name) {
  return Value::undefined(fmt::format("{} has no attribute '{}'", describe(), name.substr(0, 100)));
}

Value Value::undefined(std::string hint) {
  Value v(Kind::kUndefined);
  v.text_ = std::make_shared<const std::string>(std::move(hint));
  return v;
}
Value Value::boolean(bool b) {
  Value v(Kind::kBool);
  v.integer_ = b ? 1 : 0;
  return v;
}
Value Value::integer(int64_t i) {
  Value v(Kind::kInt);
  v.integer_ = i;
  return v;
}
Value Value::real(double d) {
  Value v(Kind::kFloat);
  v.real_ = d;
  return v;
}
Value Value::large_integer(uint64_t i) {
  Value v = real(static_cast<double>(i));
  v.text_ = std::make_shared<const std::string>(std::to_string(i));
  return v;
}
Value Value::string(std::string s) {
  Value v(Kind::kString);
  v.text_ = std::make_shared<const std::string>(std::move(s));
  return v;
}
Value Value::list(List* list, Kind kind) {
  Value v(kind);
  v.list_ = list;
  return v;
}
Value Value::dict(Dict* dict, Kind kind) {
  Value v(kind);
  v.dict_ = dict;
  return v;
}
Value Value::object(Object* object) {
  Value v(Kind::kObject);
  v.object_ = object;
  return v;
}
std::vector<Value>& Value::items() const { return list_->items; }

void Heap::charge(size_t steps) {
  if (steps > static_cast<size_t>(INT64_MAX) || static_cast<int64_t>(steps) > steps_left_)
    throw Failure{"the template needs too many steps (an endless or very long loop?)"};
  steps_left_ -= static_cast<int64_t>(steps);
}

void Heap::charge_bytes(size_t bytes) {
  charge(bytes / 64);
  if (bytes > bytes_left_) throw Failure{"the template creates too much data (a repeated or growing string or list?)"};
  bytes_left_ -= bytes;
}

Value Heap::string(std::string s) {
  charge_bytes(s.size() + sizeof(std::string));
  return Value::string(std::move(s));
}

Value Heap::list(std::vector<Value> items, Kind kind) {
  charge_bytes(items.size() * sizeof(Value) + sizeof(List));
  lists_.push_back(List{std::move(items)});
  return Value::list(&lists_.back(), kind);
}

Value Heap::dict(Kind kind) {
  charge_bytes(sizeof(Dict));
  dicts_.emplace_back();
  return Value::dict(&dicts_.back(), kind);
}

Value Heap::from_json(const Json& json, int depth) {
  check_nesting(depth);
  switch (json.type()) {
    case Json::value_t::null: return Value::none();
    case Json::value_t::boolean: return Value::boolean(json.get<bool>());
    case Json::value_t::number_integer: return Value::integer(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      auto u = json.get<uint64_t>();
      return u <= static_cast<uint64_t>(INT64_MAX) ? Value::integer(static_cast<int64_t>(u)) : Value::large_integer(u);
    }
    case Json::value_t::number_float: return Value::real(json.get<double>());
    case Json::value_t::string: return Value::string(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (auto& item : json) items.push_back(from_json(item, depth + 1));
      lists_.push_back(List{std::move(items)});
      return Value::list(&lists_.back());
    }
    case Json::value_t::object: {
      dicts_.emplace_back();
      Dict& dict = dicts_.back();  // a deque: stays in place while members are added
      dict.items.reserve(json.size());
      for (auto& [key, item] : json.items()) dict.items.emplace_back(Value::string(key), from_json(item, depth + 1));
      return Value::dict(&dict);
    }
    default: return Value::none();
  }
}

const char* type_name(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return "str";
    case Kind::kList: return "list";
    case Kind::kTuple: return "tuple";
    case Kind::kDict: return "dict";
    case Kind::kNamespace: return "Namespace";
    case Kind::kObject: return "function";
  }
  return "?";
}

bool truth(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool:
    case Kind::kInt: return value.as_integer() != 0;
    case Kind::kFloat: return value.as_real() != 0;
    case Kind::kString: return !value.text().empty();
    case Kind::kList:
    case Kind::kTuple: return !value.items().empty();
    case Kind::kDict: return !value.dict().items.empty();
    case Kind::kNamespace:
    case Kind::kObject: return true;
  }
  return false;
}

bool equal(Heap& heap, const Value& a, const Value& b, int depth) {
  check_nesting(depth);
  heap.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
    return a.as_real() == b.as_real();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kString: heap.charge(a.text().size() / 64); return a.text() == b.text();
    case Kind::kList:
    case Kind::kTuple: {
      if (a.same_object(b)) return true;
      auto &x = a.items(), &y = b.items();
      if (x.size() != y.size()) return false;
      for (size_t i = 0; i < x.size(); i++)
        if (!equal(heap, x[i], y[i], depth + 1)) return false;
      return true;
    }
    case Kind::kDict: {
      if (a.same_object(b)) return true;
      if (a.dict().items.size() != b.dict().items.size()) return false;
      for (auto& [key, item] : a.dict().items) {
        Value* other = find(heap, b.dict(), key);
        if (!other || !equal(heap, item, *other, depth + 1)) return false;
      }
      return true;
    }
    default: return a.same_object(b);
  }
}

bool less(Heap& heap, const Value& a, const Value& b, const char* op, int depth) {
  check_nesting(depth);
  heap.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() < b.as_integer();
    return a.as_real() < b.as_real();
  }
  if (a.is_string() && b.is_string()) {
    heap.charge(a.text().size() / 64);
    return a.text() < b.text();  // UTF-8 order is code point order
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    auto &x = a.items(), &y = b.items();
    for (size_t i = 0; i < x.size() && i < y.size(); i++)
      if (!equal(heap, x[i], y[i], depth + 1)) return less(heap, x[i], y[i], op, depth + 1);
    return x.size() < y.size();
  }
  if (a.is_undefined()) throw Failure{a.text()};
  if (b.is_undefined()) throw Failure{b.text()};
  throw Failure{fmt::format("'{}' not supported between instances of '{}' and '{}'", op, type_name(a), type_name(b))};
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kUndefined: return false;
    case Kind::kString:
      if (!item.is_string()) throw Failure{fmt::format("'in <string>' requires string as left operand, not {}", type_name(item))};
      heap.charge_search(container.text().size(), item.text().size());
      return container.text().find(item.text()) != std::string::npos;
    case Kind::kList:
    case Kind::kTuple:
      for (auto& x : container.items())
        if (equal(heap, x, item)) return true;
      return false;
    case Kind::kDict: return find(heap, container.dict(), item) != nullptr;
    default: throw Failure{fmt::format("argument of type '{}' is not iterable", type_name(container))};
  }
}

std::string real_text(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  auto end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  std::string_view text(buffer, static_cast<size_t>(end - buffer));
  size_t e = text.find('e');
  int exponent = 0;
  std::string_view digits_of_exponent = text.substr(e + 1);
  if (digits_of_exponent[0] == '+') digits_of_exponent.remove_prefix(1);
  std::from_chars(digits_of_exponent.data(), digits_of_exponent.data() + digits_of_exponent.size(), exponent);
  if (exponent >= -4 && exponent < 16) {
    end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed).ptr;
    std::string out(buffer, end);
    if (out.find('.') == std::string::npos) out += ".0";
    return out;
  }
  return std::string(text);  // "1e-05", "1.5e+16": the exponent already has two digits
}

void append_repr(Heap& heap, const Value& value, std::string& out, int depth) {
  check_nesting(depth);
  heap.charge(1);
  size_t before = out.size();
  switch (value.kind()) {
    case Kind::kUndefined: out += "Undefined"; break;
    case Kind::kNone: out += "None"; break;
    case Kind::kBool: out += value.as_bool() ? "True" : "False"; break;
    case Kind::kInt: out += std::to_string(value.as_integer()); break;
    case Kind::kFloat: out += value.written() ? *value.written() : real_text(value.as_real()); break;
    case Kind::kString: out += python_repr(value.text()); break;
    case Kind::kList:
    case Kind::kTuple: {
      bool tuple = value.kind() == Kind::kTuple;
      out += tuple ? '(' : '[';
      bool first = true;
      for (auto& item : value.items()) {
        if (!first) out += ", ";
        first = false;
        append_repr(heap, item, out, depth + 1);
      }
      if (tuple && value.items().size() == 1) out += ',';
      out += tuple ? ')' : ']';
      return;
    }
    case Kind::kDict:
    case Kind::kNamespace: {
      if (value.kind() == Kind::kNamespace) out += "<Namespace ";
      out += '{';
      bool first = true;
      for (auto& [key, item] : value.dict().items) {
        if (!first) out += ", ";
        first = false;
        append_repr(heap, key, out, depth + 1);
        out += ": ";
        append_repr(heap, item, out, depth + 1);
      }
      out += '}';
      if (value.kind() == Kind::kNamespace) out += '>';
      return;
    }
    case Kind::kObject: out += value.object()->describe(); break;
  }
  heap.charge_bytes(out.size() - before);
}

std::string to_text(Heap& heap, const Value& value) {
  if (value.is_string()) return value.text();
  if (value.is_undefined()) return "";
  std::string out;
  append_repr(heap, value, out);
  return out;
}

Value* find(Heap& heap, Dict& dict, const Value& key) {
  check_hashable(key);
  heap.charge(1 + dict.items.size() / 8);
  for (auto& [k, item] : dict.items)
    if (k.kind() == key.kind() && key.is_string() ? k.text() == key.text() : equal(heap, k, key)) return &item;
  return nullptr;
}

Value* find_text(Heap& heap, Dict& dict, std::string_view key) {
  heap.charge(1 + dict.items.size() / 8);
  for (auto& [k, item] : dict.items)
    if (k.is_string() && k.text() == key) return &item;
  return nullptr;
}

void assign(Heap& heap, Dict& dict, const Value& key, Value value) {
  if (Value* present = find(heap, dict, key)) {
    *present = std::move(value);
    return;
  }
  heap.charge_bytes(2 * sizeof(Value));
  dict.items.emplace_back(key, std::move(value));
}

void assign_text(Heap& heap, Dict& dict, std::string_view key, Value value) {
  if (Value* present = find_text(heap, dict, key)) {
    *present = std::move(value);
    return;
  }
  heap.charge_bytes(2 * sizeof(Value) + key.size());
  dict.items.emplace_back(Value::string(std::string(key)), std::move(value));
}

std::vector<Value> iterate(Heap& heap, const Value& value) {
  std::vector<Value> out;
  switch (value.kind()) {
    case Kind::kUndefined: return out;
    case Kind::kList:
    case Kind::kTuple: heap.charge_bytes(value.items().size() * sizeof(Value)); return value.items();
    case Kind::kDict:
      heap.charge_bytes(value.dict().items.size() * sizeof(Value));
      for (auto& entry : value.dict().items) out.push_back(entry.first);
      return out;
    case Kind::kString: {
      std::string_view text = value.text();
      heap.charge_bytes(text.size() * (sizeof(Value) + sizeof(std::string)));
      for (size_t i = 0; i < text.size();) {
        size_t n = sequence_length(text, i);
        out.push_back(Value::string(std::string(text.substr(i, n))));
        i += n;
      }
      return out;
    }
    default: throw Failure{fmt::format("'{}' object is not iterable", type_name(value))};
  }
}

size_t length(Heap& heap, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return 0;
    case Kind::kList:
    case Kind::kTuple: return value.items().size();
    case Kind::kDict: return value.dict().items.size();
    case Kind::kString: heap.charge(value.text().size() / 64); return count_characters(value.text());
    default: throw Failure{fmt::format("object of type '{}' has no len()", type_name(value))};
  }
}

}  // namespace dg::jinja
