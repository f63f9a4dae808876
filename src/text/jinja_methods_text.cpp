// Methods of str.
#include <fmt/core.h>

#include <algorithm>

#include "text/jinja_eval.h"
#include "text/jinja_format.h"
#include "text/jinja_methods.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

Value integer(size_t n) { return Value::integer(static_cast<int64_t>(n)); }

Value text_list(Heap& heap, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (auto part : parts) items.push_back(heap.string(std::string(part)));
  return heap.list(std::move(items));
}

Value split_any(Interpreter& in, const Value& self, const Args& args, bool from_right) {
  Bound bound(from_right ? "rsplit()" : "split()", args, {"sep", "maxsplit"});
  const std::string& text = self.text();
  int64_t max_splits = bound.integer(1, -1);
  if (!bound[0] || bound[0]->is_none()) {
    size_t rounds = from_right && max_splits >= 0 ? std::min(static_cast<size_t>(max_splits), text.size()) + 1 : 1;
    in.heap.charge_search(text.size(), rounds * 64);
    return text_list(in.heap, split_space(text, max_splits, from_right));
  }
  const std::string& separator = bound.text(0);
  if (separator.empty()) throw Failure{"empty separator"};
  in.heap.charge_search(text.size(), separator.size());
  return text_list(in.heap, split(text, separator, max_splits, from_right));
}

Value split_left(Interpreter& in, const Value& self, const Args& args) { return split_any(in, self, args, false); }
Value split_right(Interpreter& in, const Value& self, const Args& args) { return split_any(in, self, args, true); }

Value splitlines(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("splitlines()", args, {"keepends"});
  std::string_view rest = self.text();
  bool keep = bound.flag(0, false);
  in.heap.charge(rest.size() / 16);
  std::vector<std::string_view> parts;
  while (!rest.empty()) {
    size_t end = rest.find_first_of("\n\r");
    if (end == std::string_view::npos) {
      parts.push_back(rest);
      break;
    }
    size_t n = rest.substr(end, 2) == "\r\n" ? 2 : 1;
    parts.push_back(rest.substr(0, keep ? end + n : end));
    rest.remove_prefix(end + n);
  }
  return text_list(in.heap, parts);
}

Value strip_any(Interpreter& in, const Value& self, const Args& args, bool left, bool right) {
  Bound bound("strip()", args, {"chars"});
  const std::string* set = bound[0] && !bound[0]->is_none() ? &bound.text(0) : nullptr;
  in.heap.charge_search(self.text().size(), set ? set->size() * 64 : 1);
  std::string_view text = self.text();
  if (left) text = strip_left(text, set);
  if (right) text = strip_right(text, set);
  return in.heap.string(std::string(text));
}
Value strip_both(Interpreter& in, const Value& self, const Args& args) { return strip_any(in, self, args, true, true); }
Value strip_start(Interpreter& in, const Value& self, const Args& args) { return strip_any(in, self, args, true, false); }
Value strip_end(Interpreter& in, const Value& self, const Args& args) { return strip_any(in, self, args, false, true); }

// startswith and endswith: a string or a tuple of strings.
Value affix(Interpreter& in, const Value& self, const Args& args, bool start) {
  Bound bound(start ? "startswith()" : "endswith()", args, {"affix"});
  const Value& wanted = bound.required(0);
  std::vector<Value> choices = wanted.kind() == Kind::kTuple ? wanted.items() : std::vector<Value>{wanted};
  const std::string& text = self.text();
  for (auto& choice : choices) {
    if (!choice.is_string())
      throw Failure{
          fmt::format("{}: expected a string or a tuple of strings, not {}", start ? "startswith" : "endswith", type_name(choice))};
    in.heap.charge(1 + choice.text().size() / 64);
    if (start ? text.starts_with(choice.text()) : text.ends_with(choice.text())) return Value::boolean(true);
  }
  return Value::boolean(false);
}
Value startswith(Interpreter& in, const Value& self, const Args& args) { return affix(in, self, args, true); }
Value endswith(Interpreter& in, const Value& self, const Args& args) { return affix(in, self, args, false); }

template <std::string (*F)(std::string_view)>
Value mapped_text(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("the method", args, {});
  in.heap.charge(self.text().size() / 8);
  return in.heap.string(F(self.text()));
}

Value replace_text(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("replace()", args, {"old", "new", "count"});
  return in.heap.string(replace_checked(in.heap, self.text(), bound.text(0), bound.text(1), bound.integer(2, -1)));
}

Value join_text(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("join()", args, {"iterable"});
  std::string out;
  bool first = true;
  for (auto& item : iterate(in.heap, bound.required(0))) {
    if (!item.is_string()) throw Failure{fmt::format("join(): expected str, found {}", type_name(item))};
    in.heap.charge_bytes(item.text().size() + self.text().size());
    if (!first) out += self.text();
    first = false;
    out += item.text();
  }
  return in.heap.string(std::move(out));
}

Value format_text(Interpreter& in, const Value& self, const Args& args) {
  in.heap.charge(self.text().size() / 16);
  return in.heap.string(brace_format(in.heap, self.text(), args));
}

int64_t position(Interpreter& in, const Value& self, const Args& args, const char* what, bool last) {
  Bound bound(what, args, {"sub"});
  const std::string& sub = bound.text(0);
  in.heap.charge_search(self.text().size(), sub.size());
  size_t at = last ? self.text().rfind(sub) : self.text().find(sub);
  if (at == std::string::npos) return -1;
  return static_cast<int64_t>(count_characters(std::string_view(self.text()).substr(0, at)));
}
Value find_first(Interpreter& in, const Value& self, const Args& args) { return Value::integer(position(in, self, args, "find()", false)); }
Value find_last(Interpreter& in, const Value& self, const Args& args) { return Value::integer(position(in, self, args, "rfind()", true)); }
Value index_of(Interpreter& in, const Value& self, const Args& args) {
  int64_t at = position(in, self, args, "index()", false);
  if (at < 0) throw Failure{"substring not found"};
  return Value::integer(at);
}

Value count_text(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("count()", args, {"sub"});
  const std::string& sub = bound.text(0);
  in.heap.charge_search(self.text().size(), sub.size());
  if (sub.empty()) return integer(count_characters(self.text()) + 1);
  size_t count = 0;
  for (size_t at = self.text().find(sub); at != std::string::npos; at = self.text().find(sub, at + sub.size())) count++;
  return integer(count);
}

Value partition(Interpreter& in, const Value& self, const Args& args) {
  Bound bound("partition()", args, {"sep"});
  const std::string &text = self.text(), &separator = bound.text(0);
  if (separator.empty()) throw Failure{"empty separator"};
  in.heap.charge_search(text.size(), separator.size());
  size_t at = text.find(separator);
  bool found = at != std::string::npos;
  std::vector<Value> parts;
  parts.push_back(in.heap.string(text.substr(0, at)));
  parts.push_back(Value::string(found ? separator : ""));
  parts.push_back(in.heap.string(found ? text.substr(at + separator.size()) : ""));
  return in.heap.list(std::move(parts), Kind::kTuple);
}

Value remove_affix(Interpreter& in, const Value& self, const Args& args, bool start) {
  Bound bound(start ? "removeprefix()" : "removesuffix()", args, {"affix"});
  std::string_view text = self.text(), affix = bound.text(0);
  if (start && text.starts_with(affix)) text.remove_prefix(affix.size());
  if (!start && text.ends_with(affix)) text.remove_suffix(affix.size());
  return in.heap.string(std::string(text));
}
Value remove_prefix(Interpreter& in, const Value& self, const Args& args) { return remove_affix(in, self, args, true); }
Value remove_suffix(Interpreter& in, const Value& self, const Args& args) { return remove_affix(in, self, args, false); }

// True when there is a character and `f` accepts all of them.
template <class F>
Value all_characters(Interpreter& in, const Value& self, F f) {
  const std::string& text = self.text();
  in.heap.charge(text.size() / 16);
  for (size_t i = 0; i < text.size(); i += sequence_length(text, i))
    if (!f(decode_character(text, i))) return Value::boolean(false);
  return Value::boolean(!text.empty());
}
bool ascii_digit(uint32_t c) { return c >= '0' && c <= '9'; }
bool letter(uint32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= 0xc0 && c != 0xd7 && c != 0xf7 && !is_space(c));
}
Value isdigit_text(Interpreter& in, const Value& self, const Args&) { return all_characters(in, self, ascii_digit); }
Value isalpha_text(Interpreter& in, const Value& self, const Args&) { return all_characters(in, self, letter); }
Value isalnum_text(Interpreter& in, const Value& self, const Args&) {
  return all_characters(in, self, [](uint32_t c) { return ascii_digit(c) || letter(c); });
}
Value isspace_text(Interpreter& in, const Value& self, const Args&) { return all_characters(in, self, is_space); }
Value islower_text(Interpreter& in, const Value& self, const Args&) {
  in.heap.charge(self.text().size() / 8);
  return Value::boolean(is_lower(self.text()));
}
Value isupper_text(Interpreter& in, const Value& self, const Args&) {
  in.heap.charge(self.text().size() / 8);
  return Value::boolean(is_upper(self.text()));
}

constexpr Method kMethods[] = {
    {Kind::kString, "split", split_left},
    {Kind::kString, "rsplit", split_right},
    {Kind::kString, "splitlines", splitlines},
    {Kind::kString, "strip", strip_both},
    {Kind::kString, "lstrip", strip_start},
    {Kind::kString, "rstrip", strip_end},
    {Kind::kString, "startswith", startswith},
    {Kind::kString, "endswith", endswith},
    {Kind::kString, "upper", mapped_text<upper>},
    {Kind::kString, "lower", mapped_text<lower>},
    {Kind::kString, "casefold", mapped_text<lower>},
    {Kind::kString, "title", mapped_text<title>},
    {Kind::kString, "capitalize", mapped_text<capitalize>},
    {Kind::kString, "replace", replace_text},
    {Kind::kString, "join", join_text},
    {Kind::kString, "format", format_text},
    {Kind::kString, "find", find_first},
    {Kind::kString, "rfind", find_last},
    {Kind::kString, "index", index_of},
    {Kind::kString, "count", count_text},
    {Kind::kString, "partition", partition},
    {Kind::kString, "removeprefix", remove_prefix},
    {Kind::kString, "removesuffix", remove_suffix},
    {Kind::kString, "isdigit", isdigit_text},
    {Kind::kString, "isnumeric", isdigit_text},
    {Kind::kString, "isalpha", isalpha_text},
    {Kind::kString, "isalnum", isalnum_text},
    {Kind::kString, "isspace", isspace_text},
    {Kind::kString, "islower", islower_text},
    {Kind::kString, "isupper", isupper_text},
};

}  // namespace

bool is_lower(std::string_view text) { return lower(text) == text && upper(text) != text; }
bool is_upper(std::string_view text) { return upper(text) == text && lower(text) != text; }

std::string replace_checked(Heap& heap, std::string_view text, std::string_view from, std::string_view to, int64_t max_count) {
  heap.charge_search(text.size(), from.size());
  size_t matches = from.empty() ? text.size() + 1 : text.size() / from.size();
  size_t growth = to.size() > from.size() ? to.size() - from.size() : 0;
  if (growth > 0 && !from.empty()) {  // count them before building: the result may be much larger than the text
    matches = 0;
    for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, at + from.size())) matches++;
  }
  size_t extra = 0;
  if (__builtin_mul_overflow(matches, growth, &extra)) extra = SIZE_MAX / 2;
  heap.charge_bytes(extra);
  return replace(text, from, to, max_count);
}

const Method* find_text_method(std::string_view name) {
  for (auto& method : kMethods)
    if (method.name == name) return &method;
  return nullptr;
}

}  // namespace dg::jinja
