// Filters on sequences and mappings.
#include <fmt/core.h>

#include <algorithm>

#include "text/jinja_filters.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

// The value at a path such as "function.name" or "0.id".
Value at_path(Interpreter& in, const Value& item, const std::string& path) {
  Value value = item;
  in.heap.charge(1 + path.size() / 8);
  for (auto part : split(path, ".", -1, false)) {
    bool digits = !part.empty() && part.size() < 10 && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    value = in.subscript(value, digits ? Value::integer(std::stoll(std::string(part))) : Value::string(std::string(part)));
  }
  return value;
}

// What sort, unique, min and max compare: the attribute if named, lower case unless case matters.
class Key {
 public:
  Key(Interpreter& in, const Value* attribute, bool case_sensitive) : in_(in), case_sensitive_(case_sensitive) {
    if (attribute && !attribute->is_none()) path_ = to_text(in.heap, *attribute);
  }
  Value operator()(const Value& item) const {
    Value value = path_.empty() ? item : at_path(in_, item, path_);
    if (!value.is_string() || case_sensitive_) return value;
    in_.heap.charge(value.text().size() / 8);
    return in_.heap.string(lower(value.text()));
  }

 private:
  Interpreter& in_;
  bool case_sensitive_;
  std::string path_;
};

Value length_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("length", args, {});
  return Value::integer(static_cast<int64_t>(length(in.heap, input)));
}

Value default_filter(Interpreter&, const Value& input, const Args& args) {
  Bound bound("default", args, {"default_value", "boolean"});
  if (!input.is_undefined() && (!bound.flag(1, false) || truth(input))) return input;
  return bound[0] ? *bound[0] : Value::string("");
}

Value first(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("first", args, {});
  std::vector<Value> items = iterate(in.heap, input);
  return items.empty() ? Value::undefined("no first item, the sequence was empty") : items.front();
}

Value last(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("last", args, {});
  std::vector<Value> items = iterate(in.heap, input);
  return items.empty() ? Value::undefined("no last item, the sequence was empty") : items.back();
}

Value list_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("list", args, {});
  return in.heap.list(iterate(in.heap, input));
}

Value join(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("join", args, {"d", "attribute"});
  std::string separator = bound[0] ? to_text(in.heap, *bound[0]) : "";
  std::string path = bound[1] && !bound[1]->is_none() ? to_text(in.heap, *bound[1]) : "";
  std::string out;
  bool first_item = true;
  for (auto& item : iterate(in.heap, input)) {
    std::string part = to_text(in.heap, path.empty() ? item : at_path(in, item, path));
    in.heap.charge_bytes(part.size() + separator.size());
    if (!first_item) out += separator;
    first_item = false;
    out += part;
  }
  return in.heap.string(std::move(out));
}

Value items_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("items", args, {});
  if (input.is_undefined()) return in.heap.list({});
  if (!input.is_dict()) throw Failure{"items: can only get item pairs from a mapping"};
  return find_method(input, "items")->function(in, input, {});
}

Value reverse_filter(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("reverse", args, {});
  std::vector<Value> items = iterate(in.heap, input);
  std::reverse(items.begin(), items.end());
  if (!input.is_string()) return in.heap.list(std::move(items));
  std::string text;
  for (auto& item : items) text += item.text();
  return in.heap.string(std::move(text));
}

// Sorts by a key computed once per item. The order of values is deterministic, so a comparison that throws ends it cleanly.
std::vector<Value> sorted(Interpreter& in, std::vector<Value> items, const Key& key, bool descending) {
  std::vector<std::pair<Value, Value>> keyed;
  in.heap.charge_bytes(items.size() * sizeof(keyed[0]));
  for (auto& item : items) keyed.emplace_back(key(item), item);
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return descending ? less(in.heap, b.first, a.first, "<") : less(in.heap, a.first, b.first, "<");
  });
  for (size_t i = 0; i < items.size(); i++) items[i] = std::move(keyed[i].second);
  return items;
}

Value sort(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("sort", args, {"reverse", "case_sensitive", "attribute"});
  Key key(in, bound[2], bound.flag(1, false));
  return in.heap.list(sorted(in, iterate(in.heap, input), key, bound.flag(0, false)));
}

Value dictsort(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("dictsort", args, {"case_sensitive", "by", "reverse"});
  std::string by = bound[1] ? bound.text(1) : "key";
  if (by != "key" && by != "value") throw Failure{"dictsort: by must be 'key' or 'value'"};
  Value position = Value::integer(by == "key" ? 0 : 1);
  Value items = items_filter(in, input, {});
  Key key(in, &position, bound.flag(0, false));
  return in.heap.list(sorted(in, items.items(), key, bound.flag(2, false)));
}

Value unique(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("unique", args, {"case_sensitive", "attribute"});
  Key key(in, bound[1], bound.flag(0, false));
  std::vector<Value> seen, out;
  for (auto& item : iterate(in.heap, input)) {
    Value k = key(item);
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& s) { return equal(in.heap, s, k); })) continue;
    seen.push_back(std::move(k));
    out.push_back(item);
  }
  return in.heap.list(std::move(out));
}

Value extreme(Interpreter& in, const Value& input, const Args& args, bool largest) {
  Bound bound(largest ? "max" : "min", args, {"case_sensitive", "attribute"});
  Key key(in, bound[1], bound.flag(0, false));
  std::vector<Value> items = iterate(in.heap, input);
  if (items.empty()) return Value::undefined("no aggregated item, the sequence was empty");
  size_t best = 0;
  Value best_key = key(items[0]);
  for (size_t i = 1; i < items.size(); i++) {
    Value k = key(items[i]);
    if (largest ? less(in.heap, best_key, k, ">") : less(in.heap, k, best_key, "<")) {
      best = i;
      best_key = std::move(k);
    }
  }
  return items[best];
}
Value min_filter(Interpreter& in, const Value& input, const Args& args) { return extreme(in, input, args, false); }
Value max_filter(Interpreter& in, const Value& input, const Args& args) { return extreme(in, input, args, true); }

Value sum(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("sum", args, {"attribute", "start"});
  Value total = bound[1] ? *bound[1] : Value::integer(0);
  bool path = bound[0] && !bound[0]->is_none();
  for (auto& item : iterate(in.heap, input)) {
    in.heap.charge(1);
    total = in.arithmetic(Op::kAdd, total, path ? at_path(in, item, to_text(in.heap, *bound[0])) : item);
  }
  return total;
}

// map('upper'), map('default', 1), map(attribute='a.b', default=0)
Value map_filter(Interpreter& in, const Value& input, const Args& args) {
  std::vector<Value> out;
  if (args.positional.empty()) {
    Bound bound("map", args, {"attribute", "default"});
    std::string path = to_text(in.heap, bound.required(0));
    for (auto& item : iterate(in.heap, input)) {
      Value value = at_path(in, item, path);
      out.push_back(value.is_undefined() && bound[1] ? *bound[1] : value);
    }
    return in.heap.list(std::move(out));
  }
  if (!args.positional[0].is_string()) throw Failure{"map: the first argument must be the name of a filter"};
  Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  for (auto& item : iterate(in.heap, input)) out.push_back(in.filter(args.positional[0].text(), item, rest));
  return in.heap.list(std::move(out));
}

// select, reject, selectattr, rejectattr: keep the items (or those whose attribute) for which the test gives `wanted`.
Value choose(Interpreter& in, const Value& input, const Args& args, bool attribute, bool wanted) {
  size_t at = 0;
  std::string path;
  if (attribute) {
    if (args.positional.empty()) throw Failure{"selectattr: the name of the attribute is missing"};
    path = to_text(in.heap, args.positional[at++]);
  }
  std::string test;
  if (at < args.positional.size()) {
    if (!args.positional[at].is_string()) throw Failure{"select: the name of the test must be a string"};
    test = args.positional[at++].text();
  }
  Args rest{{args.positional.begin() + static_cast<std::ptrdiff_t>(at), args.positional.end()}, args.named};
  std::vector<Value> out;
  for (auto& item : iterate(in.heap, input)) {
    in.heap.charge(1);
    Value value = attribute ? at_path(in, item, path) : item;
    if ((test.empty() ? truth(value) : in.test(test, value, rest)) == wanted) out.push_back(item);
  }
  return in.heap.list(std::move(out));
}
Value select(Interpreter& in, const Value& input, const Args& args) { return choose(in, input, args, false, true); }
Value reject(Interpreter& in, const Value& input, const Args& args) { return choose(in, input, args, false, false); }
Value selectattr(Interpreter& in, const Value& input, const Args& args) { return choose(in, input, args, true, true); }
Value rejectattr(Interpreter& in, const Value& input, const Args& args) { return choose(in, input, args, true, false); }

Value attr(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("attr", args, {"name"});
  return in.attribute(input, bound.text(0));
}

Value batch(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("batch", args, {"linecount", "fill_with"});
  int64_t size = bound.integer(0, 0);
  if (size <= 0) throw Failure{"batch: linecount must be positive"};
  std::vector<Value> rows, row;
  for (auto& item : iterate(in.heap, input)) {
    if (static_cast<int64_t>(row.size()) == size) rows.push_back(in.heap.list(std::exchange(row, {})));
    row.push_back(item);
  }
  if (!row.empty()) {
    if (bound[1] && !bound[1]->is_none()) {
      in.heap.charge_bytes(std::min<size_t>(static_cast<size_t>(size), SIZE_MAX / sizeof(Value) / 2) * sizeof(Value));
      row.resize(static_cast<size_t>(size), *bound[1]);
    }
    rows.push_back(in.heap.list(std::move(row)));
  }
  return in.heap.list(std::move(rows));
}

Value slice(Interpreter& in, const Value& input, const Args& args) {
  Bound bound("slice", args, {"slices", "fill_with"});
  int64_t slices = bound.integer(0, 0);
  if (slices <= 0 || slices > 100'000) throw Failure{"slice: slices must be between 1 and 100000"};
  std::vector<Value> items = iterate(in.heap, input), columns;
  size_t each = items.size() / static_cast<size_t>(slices), extra = items.size() % static_cast<size_t>(slices), from = 0;
  for (size_t i = 0; i < static_cast<size_t>(slices); i++) {
    size_t n = each + (i < extra ? 1 : 0);
    std::vector<Value> column(items.begin() + static_cast<std::ptrdiff_t>(from), items.begin() + static_cast<std::ptrdiff_t>(from + n));
    from += n;
    if (bound[1] && !bound[1]->is_none() && i >= extra) column.push_back(*bound[1]);
    columns.push_back(in.heap.list(std::move(column)));
  }
  return in.heap.list(std::move(columns));
}

constexpr std::pair<std::string_view, Filter> kSequenceFilters[] = {
    {"length", length_filter},
    {"count", length_filter},
    {"default", default_filter},
    {"d", default_filter},
    {"first", first},
    {"last", last},
    {"list", list_filter},
    {"join", join},
    {"items", items_filter},
    {"reverse", reverse_filter},
    {"sort", sort},
    {"dictsort", dictsort},
    {"unique", unique},
    {"min", min_filter},
    {"max", max_filter},
    {"sum", sum},
    {"map", map_filter},
    {"select", select},
    {"reject", reject},
    {"selectattr", selectattr},
    {"rejectattr", rejectattr},
    {"attr", attr},
    {"batch", batch},
    {"slice", slice},
};

}  // namespace

Filter find_sequence_filter(std::string_view name) {
  for (auto& [n, filter] : kSequenceFilters)
    if (n == name) return filter;
  return nullptr;
}

Value Interpreter::filter(const std::string& name, const Value& input, const Args& args) {
  Nesting nesting(*this);
  heap.charge(1);
  if (Filter f = find_sequence_filter(name)) return f(*this, input, args);
  if (Filter f = find_text_filter(name)) return f(*this, input, args);
  throw Failure{fmt::format("no filter named {}", python_repr(std::string_view(name).substr(0, 40)))};
}

}  // namespace dg::jinja
