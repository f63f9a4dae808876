// Statements.
#include "text/jinja_eval.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg::jinja {
namespace {

struct MacroObject : Object {
  MacroObject(const Stmt& macro, std::shared_ptr<Scope> outer) : macro(macro), outer(std::move(outer)) {}
  std::string describe() const override { return fmt::format("<Macro '{}'>", macro.text); }
  Value call(Interpreter& in, const Args& args) override { return in.call_macro(macro, outer, args); }
  Value attribute(Interpreter& in, std::string_view name) override {
    return name == "name" ? Value::string(macro.text) : Object::attribute(in, name);
  }
  const Stmt& macro;
  std::shared_ptr<Scope> outer;
};

// `loop` inside a for block.
struct LoopObject : Object {
  explicit LoopObject(std::vector<Value> all) : items(std::move(all)) {}
  std::string describe() const override { return fmt::format("<LoopContext {}/{}>", index0 + 1, items.size()); }
  Value attribute(Interpreter& in, std::string_view name) override {
    auto integer = [](size_t n) { return Value::integer(static_cast<int64_t>(n)); };
    if (name == "index") return integer(index0 + 1);
    if (name == "index0") return integer(index0);
    if (name == "first") return Value::boolean(index0 == 0);
    if (name == "last") return Value::boolean(index0 + 1 == items.size());
    if (name == "length") return integer(items.size());
    if (name == "revindex") return integer(items.size() - index0);
    if (name == "revindex0") return integer(items.size() - index0 - 1);
    if (name == "depth") return Value::integer(1);  // grows only in recursive loops
    if (name == "depth0") return Value::integer(0);
    if (name == "previtem") return index0 > 0 ? items[index0 - 1] : Value::undefined("there is no previous item");
    if (name == "nextitem") return index0 + 1 < items.size() ? items[index0 + 1] : Value::undefined("there is no next item");
    if (name == "cycle" || name == "changed") return Value::object(in.heap.adopt(std::make_unique<LoopMethod>(*this, name == "cycle")));
    return Object::attribute(in, name);
  }

  struct LoopMethod : Object {
    LoopMethod(LoopObject& loop, bool cycle) : loop(loop), cycle(cycle) {}
    std::string describe() const override { return "<bound method of loop>"; }
    Value call(Interpreter& in, const Args& args) override {
      if (cycle) {
        if (args.positional.empty()) throw Failure{"no items for cycling given"};
        return args.positional[loop.index0 % args.positional.size()];
      }
      Value now = in.heap.list(args.positional, Kind::kTuple);
      bool changed = loop.last_seen.is_undefined() || !equal(in.heap, loop.last_seen, now);
      loop.last_seen = now;
      return Value::boolean(changed);
    }
    LoopObject& loop;  // also on the heap of this rendering
    bool cycle;
  };

  std::vector<Value> items;
  size_t index0 = 0;
  Value last_seen;
};

}  // namespace

void set_name(Scope& scope, std::string_view name, Value value) {
  for (auto& [n, v] : scope.names)
    if (n == name) {
      v = std::move(value);
      return;
    }
  scope.names.emplace_back(name, std::move(value));
}

Interpreter::Nesting::Nesting(Interpreter& interpreter) : in(interpreter) {
  if (in.depth_ >= in.limits_.max_depth)
    throw Failure{fmt::format("evaluation nested deeper than {} levels (endless recursion?)", in.limits_.max_depth)};
  in.depth_++;
}

std::string Interpreter::run(const Program& program, const Json& variables) {
  auto root = std::make_shared<Scope>(nullptr);
  for (auto& [name, value] : variables.items()) root->names.emplace_back(name, heap.from_json(value));
  auto top = std::make_shared<Scope>(root);
  std::string out;
  out_ = &out;
  execute(program.body, *top);
  return out;
}

void Interpreter::write(std::string_view text) {
  heap.charge_bytes(text.size());
  if (out_->size() + text.size() > limits_.max_output_bytes)
    throw Failure{fmt::format("the rendered text is longer than {} bytes", limits_.max_output_bytes)};
  *out_ += text;
}

Interpreter::Flow Interpreter::execute(const Block& block, Scope& scope) {
  for (auto& s : block) {
    Flow flow = execute(*s, scope);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute(const Stmt& s, Scope& scope) {
  Nesting nesting(*this);
  heap.charge(1);
  line_ = s.line;
  switch (s.kind) {
    case StmtKind::kText: write(s.text); break;
    case StmtKind::kPrint: {
      Value value = evaluate(*s.value, scope);
      if (value.is_string()) write(value.text());
      else write(to_text(heap, value));
      break;
    }
    case StmtKind::kIf:
      for (auto& [condition, body] : s.branches)
        if (truth(evaluate(*condition, scope))) return execute(body, scope);
      return execute(s.otherwise, scope);
    case StmtKind::kFor: return execute_for(s, scope);
    case StmtKind::kSet: assign_target(*s.target, evaluate(*s.value, scope), scope); break;
    case StmtKind::kSetBlock: {
      Value text = heap.string(capture(s.body, scope));
      assign_target(*s.target, s.value ? evaluate(*s.value, scope, &text) : text, scope);
      break;
    }
    case StmtKind::kMacro:
      set_name(scope, s.text, Value::object(heap.adopt(std::make_unique<MacroObject>(s, scope.shared_from_this()))));
      break;
    case StmtKind::kCallBlock: execute_call_block(s, scope); break;
    case StmtKind::kFilterBlock: {
      Value text = heap.string(capture(s.body, scope));
      write(to_text(heap, evaluate(*s.value, scope, &text)));
      break;
    }
    case StmtKind::kScope: return execute_with(s, scope);
    case StmtKind::kBreak: return Flow::kBreak;
    case StmtKind::kContinue: return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_for(const Stmt& s, Scope& scope) {
  std::vector<Value> items = iterate(heap, evaluate(*s.value, scope));
  auto outer = scope.shared_from_this();
  if (s.condition) {
    std::vector<Value> kept;
    for (auto& item : items) {
      auto inner = std::make_shared<Scope>(outer);
      assign_target(*s.target, item, *inner);
      if (truth(evaluate(*s.condition, *inner))) kept.push_back(item);
    }
    items = std::move(kept);
  }
  if (items.empty()) return execute(s.otherwise, scope);
  auto* loop = heap.adopt(std::make_unique<LoopObject>(std::move(items)));
  heap.charge_bytes(loop->items.size() * sizeof(Value));
  for (size_t i = 0; i < loop->items.size(); i++) {
    heap.charge(1);
    loop->index0 = i;
    auto inner = std::make_shared<Scope>(outer);
    inner->names.emplace_back("loop", Value::object(loop));
    assign_target(*s.target, loop->items[i], *inner);
    if (execute(s.body, *inner) == Flow::kBreak) break;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::execute_with(const Stmt& s, Scope& scope) {
  auto inner = std::make_shared<Scope>(scope.shared_from_this());
  for (auto& [name, value] : s.assignments) set_name(*inner, name, evaluate(*value, scope));
  return execute(s.body, *inner);
}

void Interpreter::execute_call_block(const Stmt& s, Scope& scope) {
  const Expr& call_expr = *s.value;
  Value callee = evaluate(*call_expr.items[0], scope);
  Args args = evaluate_arguments(call_expr, scope);
  args.named.emplace_back("caller", Value::object(heap.adopt(std::make_unique<MacroObject>(s, scope.shared_from_this()))));
  write(to_text(heap, call(callee, args)));
}

std::string Interpreter::capture(const Block& block, Scope& scope) {
  auto inner = std::make_shared<Scope>(scope.shared_from_this());
  std::string text;
  std::string* outer = std::exchange(out_, &text);
  execute(block, *inner);  // a Failure ends the whole rendering: out_ needs no repair
  out_ = outer;
  return text;
}

Value Interpreter::call_macro(const Stmt& macro, const std::shared_ptr<Scope>& outer, const Args& args) {
  Nesting nesting(*this);
  auto scope = std::make_shared<Scope>(outer);
  auto& parameters = macro.parameters;
  if (args.positional.size() > parameters.size())
    throw Failure{fmt::format("macro '{}' takes not more than {} argument(s)", macro.text, parameters.size())};
  for (auto& [name, value] : args.named) {
    bool known = name == "caller" && macro.uses_caller;
    for (size_t i = args.positional.size(); i < parameters.size(); i++) known = known || parameters[i].first == name;
    if (!known) throw Failure{fmt::format("macro '{}' takes no keyword argument '{}'", macro.text, name.substr(0, 100))};
    set_name(*scope, name, value);
  }
  for (size_t i = 0; i < parameters.size(); i++) {
    auto& [name, fallback] = parameters[i];
    bool given = false;
    for (auto& named : args.named) given = given || named.first == name;
    if (given) continue;
    Value value = i < args.positional.size() ? args.positional[i]
                  : fallback                 ? evaluate(*fallback, *scope)
                                             : Value::undefined(fmt::format("parameter '{}' was not provided", name));
    set_name(*scope, name, std::move(value));
  }
  std::string text;
  std::string* before = std::exchange(out_, &text);
  execute(macro.body, *scope);
  out_ = before;
  return heap.string(std::move(text));
}

void Interpreter::assign_target(const Expr& target, const Value& value, Scope& scope) {
  heap.charge(1);
  if (target.kind == ExprKind::kName) {
    set_name(scope, target.name, value);
  } else if (target.kind == ExprKind::kAttribute) {
    Value object = evaluate(*target.items[0], scope);
    if (object.kind() != Kind::kNamespace) throw Failure{"cannot assign attribute on a value that is not a namespace"};
    assign_text(heap, object.dict(), target.name, value);
  } else {
    std::vector<Value> parts = iterate(heap, value);
    if (parts.size() != target.items.size())
      throw Failure{fmt::format("expected {} values to unpack, found {}", target.items.size(), parts.size())};
    for (size_t i = 0; i < parts.size(); i++) assign_target(*target.items[i], parts[i], scope);
  }
}

}  // namespace dg::jinja
