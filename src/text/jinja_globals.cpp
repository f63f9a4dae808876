// Global functions: range, namespace, dict, raise_exception, strftime_now, cycler, joiner.
#include <fmt/core.h>

#include <algorithm>
#include <ctime>

#include "text/jinja_eval.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // as jinja2's sandbox

Value range(Interpreter& in, const Args& args) {
  Bound bound("range()", args, {"start", "stop", "step"});
  for (size_t i = 0; i < 3; i++) {
    if (!bound[i] || bound[i]->is_integer()) continue;
    if (bound[i]->is_undefined()) throw Failure{bound[i]->text()};
    throw Failure{fmt::format("range(): expected integers, found {}", type_name(*bound[i]))};
  }
  bound.required(0);
  int64_t start = bound[1] ? bound.integer(0, 0) : 0, stop = bound[1] ? bound.integer(1, 0) : bound.integer(0, 0);
  int64_t step = bound.integer(2, 1);
  if (step == 0) throw Failure{"range(): arg 3 must not be zero"};
  __int128 distance = step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  __int128 stride = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
  __int128 count = distance > 0 ? (distance + stride - 1) / stride : 0;
  if (count > kMaxRange) throw Failure{fmt::format("range(): more than {} items", kMaxRange)};
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < static_cast<int64_t>(count); i++) items.push_back(Value::integer(start + i * step));
  return in.heap.list(std::move(items));
}

Value make_dict(Interpreter& in, const Args& args, Kind kind) {
  if (args.positional.size() > 1) throw Failure{"dict() and namespace() take at most 1 positional argument"};
  Value dict = in.heap.dict(kind);
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (source.is_dict()) {
      for (auto& [key, value] : source.dict().items) assign(in.heap, dict.dict(), key, value);
    } else {
      for (auto& entry : iterate(in.heap, source)) {
        std::vector<Value> pair = iterate(in.heap, entry);
        if (pair.size() != 2) throw Failure{"dict(): expected pairs of a key and a value"};
        assign(in.heap, dict.dict(), pair[0], pair[1]);
      }
    }
  }
  for (auto& [name, value] : args.named) assign_text(in.heap, dict.dict(), name, value);
  return dict;
}
Value dict(Interpreter& in, const Args& args) { return make_dict(in, args, Kind::kDict); }
Value make_namespace(Interpreter& in, const Args& args) { return make_dict(in, args, Kind::kNamespace); }

Value raise_exception(Interpreter& in, const Args& args) {
  Bound bound("raise_exception()", args, {"message"});
  throw Failure{bound[0] ? to_text(in.heap, *bound[0]) : "the template raised an exception"};
}

// strftime with only conversions that the C library defines: the format comes from the template.
Value strftime_now(Interpreter& in, const Args& args) {
  Bound bound("strftime_now()", args, {"format"});
  const std::string& format = bound.text(0);
  if (format.size() > 1000) throw Failure{"strftime_now(): the format is longer than 1000 bytes"};
  std::time_t now = in.now();
  std::tm parts{};
  if (!localtime_r(&now, &parts)) throw Failure{"strftime_now(): the time cannot be converted"};
  std::string out;
  for (size_t i = 0; i < format.size(); i++) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    std::string conversion = "%";
    size_t j = i + 1;
    if (j < format.size() && format[j] == '-') conversion += format[j++];
    if (j >= format.size() || std::string_view("aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%").find(format[j]) == std::string_view::npos) {
      out += '%';
      continue;
    }
    conversion += format[j];
    char buffer[128];
    out.append(buffer, std::strftime(buffer, sizeof buffer, conversion.c_str(), &parts));
    i = j;
  }
  return in.heap.string(std::move(out));
}

struct Joiner : Object {
  explicit Joiner(std::string separator) : separator(std::move(separator)) {}
  std::string describe() const override { return "<joiner>"; }
  Value call(Interpreter&, const Args&) override { return Value::string(std::exchange(used, true) ? separator : ""); }
  std::string separator;
  bool used = false;
};

Value joiner(Interpreter& in, const Args& args) {
  Bound bound("joiner()", args, {"sep"});
  return Value::object(in.heap.adopt(std::make_unique<Joiner>(bound[0] ? bound.text(0) : ", ")));
}

struct Cycler : Object {
  explicit Cycler(std::vector<Value> all) : items(std::move(all)) {}
  std::string describe() const override { return "<cycler>"; }
  Value attribute(Interpreter& in, std::string_view name) override {
    if (name == "current") return items[at];
    if (name == "next" || name == "reset") return Value::object(in.heap.adopt(std::make_unique<Step>(*this, name == "next")));
    return Object::attribute(in, name);
  }
  struct Step : Object {
    Step(Cycler& cycler, bool forward) : cycler(cycler), forward(forward) {}
    std::string describe() const override { return "<bound method of cycler>"; }
    Value call(Interpreter&, const Args&) override {
      Value current = cycler.items[cycler.at];
      cycler.at = forward ? (cycler.at + 1) % cycler.items.size() : 0;
      return forward ? current : Value::none();
    }
    Cycler& cycler;  // also on the heap of this rendering
    bool forward;
  };
  std::vector<Value> items;
  size_t at = 0;
};

Value cycler(Interpreter& in, const Args& args) {
  if (args.positional.empty() || !args.named.empty()) throw Failure{"cycler(): at least one item has to be provided"};
  return Value::object(in.heap.adopt(std::make_unique<Cycler>(args.positional)));
}

constexpr std::pair<std::string_view, Function> kGlobals[] = {
    {"range", range},
    {"dict", dict},
    {"namespace", make_namespace},
    {"raise_exception", raise_exception},
    {"strftime_now", strftime_now},
    {"joiner", joiner},
    {"cycler", cycler},
};

}  // namespace

Function find_global(std::string_view name) {
  for (auto& [n, function] : kGlobals)
    if (n == name) return function;
  return nullptr;
}

}  // namespace dg::jinja
