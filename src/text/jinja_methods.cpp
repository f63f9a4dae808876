// Methods of list and dict, and the binding of arguments to parameters.
#include "text/jinja_methods.h"

#include <fmt/core.h>

#include <algorithm>

namespace dg::jinja {
namespace {

Value pair(Heap& heap, const Value& a, const Value& b) { return heap.list({a, b}, Kind::kTuple); }

Value list_append(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("append()", args, {"item"});
  in.heap.charge_bytes(sizeof(Value));
  self.items().push_back(bound.required(0));
  return Value::none();
}

Value list_extend(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("extend()", args, {"items"});
  std::vector<Value> more = iterate(in.heap, bound.required(0));
  self.items().insert(self.items().end(), more.begin(), more.end());
  return Value::none();
}

Value list_insert(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("insert()", args, {"index", "item"});
  auto& items = self.items();
  int64_t size = static_cast<int64_t>(items.size());
  int64_t at = bound.integer(0, 0);
  if (at < 0) at = std::max<int64_t>(at, -size) + size;
  in.heap.charge_bytes(sizeof(Value));
  in.heap.charge(items.size() / 8);
  items.insert(items.begin() + std::min(at, size), bound.required(1));
  return Value::none();
}

Value list_pop(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("pop()", args, {"index"});
  auto& items = self.items();
  int64_t size = static_cast<int64_t>(items.size());
  int64_t at = bound.integer(0, -1);
  if (at < 0 && at >= -size) at += size;
  if (at < 0 || at >= size) throw Failure{size == 0 ? "pop from empty list" : "pop index out of range"};
  in.heap.charge(items.size() / 8);
  Value item = items[static_cast<size_t>(at)];
  items.erase(items.begin() + at);
  return item;
}

Value list_index(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("index()", args, {"item"});
  for (size_t i = 0; i < self.items().size(); i++)
    if (equal(in.heap, self.items()[i], bound.required(0))) return Value::integer(static_cast<int64_t>(i));
  throw Failure{"the item is not in the list"};
}

Value list_count(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("count()", args, {"item"});
  int64_t count = 0;
  for (auto& item : self.items()) count += equal(in.heap, item, bound.required(0)) ? 1 : 0;
  return Value::integer(count);
}

Value list_reverse(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("reverse()", args, {});
  in.heap.charge(self.items().size());
  std::reverse(self.items().begin(), self.items().end());
  return Value::none();
}

Value list_copy(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("copy()", args, {});
  return in.heap.list(self.items());
}

Value dict_items(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("items()", args, {});
  std::vector<Value> out;
  for (auto& [key, value] : self.dict().items) out.push_back(pair(in.heap, key, value));
  return in.heap.list(std::move(out));
}

Value dict_keys(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("keys()", args, {});
  return in.heap.list(iterate(in.heap, self));
}

Value dict_values(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("values()", args, {});
  std::vector<Value> out;
  in.heap.charge_bytes(self.dict().items.size() * sizeof(Value));
  for (auto& entry : self.dict().items) out.push_back(entry.second);
  return in.heap.list(std::move(out));
}

Value dict_get(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("get()", args, {"key", "default"});
  if (Value* found = find(in.heap, self.dict(), bound.required(0))) return *found;
  return bound[1] ? *bound[1] : Value::none();
}

Value dict_pop(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("pop()", args, {"key", "default"});
  Value* found = find(in.heap, self.dict(), bound.required(0));
  if (!found) {
    if (bound[1]) return *bound[1];
    throw Failure{"pop(): the key is not in the dict"};
  }
  Value value = *found;
  auto& items = self.dict().items;
  in.heap.charge(items.size() / 8);
  items.erase(std::find_if(items.begin(), items.end(), [found](auto& entry) { return &entry.second == found; }));
  return value;
}

Value dict_update(Interpreter& in, const Value& self, const Args& args) {
  if (args.positional.size() > 1) throw Failure{"update() takes at most 1 positional argument"};
  if (!args.positional.empty()) {
    const Value& other = args.positional[0];
    if (!other.is_dict()) throw Failure{fmt::format("update(): expected a dict, found {}", type_name(other))};
    auto entries = other.dict().items;  // a copy: `d.update(d)` must not invalidate it
    in.heap.charge_bytes(entries.size() * sizeof(entries[0]));
    for (auto& [key, value] : entries) assign(in.heap, self.dict(), key, value);
  }
  for (auto& [name, value] : args.named) assign_text(in.heap, self.dict(), name, value);
  return Value::none();
}

Value dict_setdefault(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("setdefault()", args, {"key", "default"});
  if (Value* found = find(in.heap, self.dict(), bound.required(0))) return *found;
  Value value = bound[1] ? *bound[1] : Value::none();
  assign(in.heap, self.dict(), bound.required(0), value);
  return value;
}

Value dict_copy(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("copy()", args, {});
  Value copy = in.heap.dict();
  in.heap.charge_bytes(self.dict().items.size() * 2 * sizeof(Value));
  copy.dict().items = self.dict().items;
  return copy;
}

constexpr Method kListMethods[] = {
    {Kind::kList, "append", list_append}, {Kind::kList, "extend", list_extend},   {Kind::kList, "insert", list_insert},
    {Kind::kList, "pop", list_pop},       {Kind::kList, "index", list_index},     {Kind::kList, "count", list_count},
    {Kind::kList, "copy", list_copy},     {Kind::kList, "reverse", list_reverse}, {Kind::kTuple, "index", list_index},
    {Kind::kTuple, "count", list_count},
};

constexpr Method kDictMethods[] = {
    {Kind::kDict, "items", dict_items},   {Kind::kDict, "keys", dict_keys},
    {Kind::kDict, "values", dict_values}, {Kind::kDict, "get", dict_get},
    {Kind::kDict, "pop", dict_pop},       {Kind::kDict, "update", dict_update},
    {Kind::kDict, "copy", dict_copy},     {Kind::kDict, "setdefault", dict_setdefault},
};

}  // namespace

const Method* find_method(const Value& self, std::string_view name) {
  if (self.is_string()) return find_text_method(name);
  if (self.is_sequence()) {
    for (auto& method : kListMethods)
      if (method.kind == self.kind() && method.name == name) return &method;
  } else if (self.is_dict()) {
    for (auto& method : kDictMethods)
      if (method.name == name) return &method;
  }
  return nullptr;
}

Bound::Bound(std::string_view what, const Args& args, std::initializer_list<const char*> names)
    : what_(what), names_(names), values_(names.size(), nullptr) {
  if (args.positional.size() > names_.size())
    throw Failure{fmt::format("{} takes at most {} argument(s), {} were given", what, names_.size(), args.positional.size())};
  for (size_t i = 0; i < args.positional.size(); i++) values_[i] = &args.positional[i];
  for (auto& [name, value] : args.named) {
    size_t at = static_cast<size_t>(std::find(names_.begin(), names_.end(), name) - names_.begin());
    if (at == names_.size()) throw Failure{fmt::format("{} has no argument named '{}'", what, name.substr(0, 100))};
    if (values_[at]) throw Failure{fmt::format("{}: argument '{}' is given twice", what, name)};
    values_[at] = &value;
  }
}

const Value& Bound::required(size_t i) const {
  if (!values_[i]) throw Failure{fmt::format("{}: argument '{}' is missing", what_, names_[i])};
  return *values_[i];
}

int64_t Bound::integer(size_t i, int64_t otherwise) const {
  if (!values_[i] || values_[i]->is_none()) return otherwise;
  if (!values_[i]->is_integer())
    throw Failure{fmt::format("{}: argument '{}' must be an integer, not {}", what_, names_[i], type_name(*values_[i]))};
  return values_[i]->as_integer();
}

const std::string& Bound::text(size_t i) const {
  const Value& value = required(i);
  if (value.is_undefined()) throw Failure{value.text()};
  if (!value.is_string()) throw Failure{fmt::format("{}: argument '{}' must be a string, not {}", what_, names_[i], type_name(value))};
  return value.text();
}

}  // namespace dg::jinja
