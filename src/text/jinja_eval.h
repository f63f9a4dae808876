// Evaluates one rendering of a template. One Interpreter per rendering, used by one thread, holding all its mutable state.
#pragma once
#include <ctime>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_template.h"
#include "text/jinja_value.h"

namespace dg::jinja {

// Names bound in a block. Loop bodies, macros, call and filter blocks open a new scope; `if` does not. Shared, because
// a macro keeps the scope it was defined in.
struct Scope : std::enable_shared_from_this<Scope> {
  explicit Scope(std::shared_ptr<Scope> outer) : parent(std::move(outer)) {}
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string, Value>> names;
};

// Matches arguments to the parameters of a builtin; throws Failure for unknown names or too many values.
class Bound {
 public:
  Bound(std::string_view what, const Args& args, std::initializer_list<const char*> names);

  const Value* operator[](size_t i) const { return values_[i]; }  // null: not given
  const Value& required(size_t i) const;
  bool flag(size_t i, bool otherwise) const { return values_[i] ? truth(*values_[i]) : otherwise; }
  int64_t integer(size_t i, int64_t otherwise) const;  // None counts as not given
  const std::string& text(size_t i) const;             // Failure unless a string

 private:
  std::string what_;
  std::vector<const char*> names_;
  std::vector<const Value*> values_;
};

struct Method {
  Kind kind;
  std::string_view name;
  Value (*function)(Interpreter& in, const Value& self, const Args& args);
};
using Function = Value (*)(Interpreter& in, const Args& args);

const Method* find_method(const Value& self, std::string_view name);  // jinja_methods_*.cpp
Function find_global(std::string_view name);                          // jinja_globals.cpp

class Interpreter {
 public:
  Interpreter(const JinjaLimits& limits, std::optional<std::time_t> now)
      : heap(limits.max_steps, limits.max_created_bytes), limits_(limits), now_(now) {}

  std::string run(const Program& program, const Json& variables);
  int line() const { return line_; }  // of what was evaluated last
  std::time_t now() const { return now_ ? *now_ : std::time(nullptr); }

  Value call(const Value& callee, const Args& args);
  Value filter(const std::string& name, const Value& input, const Args& args);  // jinja_filters*.cpp
  bool test(const std::string& name, const Value& value, const Args& args);     // jinja_tests.cpp
  Value attribute(const Value& object, std::string_view name);                  // object.name
  Value subscript(const Value& object, const Value& key);                       // object[key]
  Value arithmetic(Op op, const Value& a, const Value& b);                      // jinja_arithmetic.cpp
  Value call_macro(const Stmt& macro, const std::shared_ptr<Scope>& outer, const Args& args);

  Heap heap;

 private:
  enum class Flow : uint8_t { kNormal, kBreak, kContinue };

  struct Nesting {
    explicit Nesting(Interpreter& interpreter);
    ~Nesting() { in.depth_--; }
    Interpreter& in;
  };

  Flow execute(const Block& block, Scope& scope);
  Flow execute(const Stmt& s, Scope& scope);
  Flow execute_for(const Stmt& s, Scope& scope);
  Flow execute_with(const Stmt& s, Scope& scope);
  void execute_call_block(const Stmt& s, Scope& scope);
  std::string capture(const Block& block, Scope& scope);  // the output of a block in a scope of its own
  void write(std::string_view text);
  void assign_target(const Expr& target, const Value& value, Scope& scope);

  Value evaluate(const Expr& e, Scope& scope, const Value* block_input = nullptr);
  Value evaluate_name(const Expr& e, Scope& scope);
  Value evaluate_compare(const Expr& e, Scope& scope);
  Value evaluate_concat(const Expr& e, Scope& scope);
  Value evaluate_slice(const Expr& e, Scope& scope);
  Value evaluate_call(const Expr& e, Scope& scope);
  Value evaluate_filter(const Expr& e, Scope& scope, const Value* block_input);
  Value evaluate_test(const Expr& e, Scope& scope);
  Value evaluate_dict(const Expr& e, Scope& scope);
  Value evaluate_unary(const Expr& e, Scope& scope);
  Args evaluate_arguments(const Expr& e, Scope& scope);

  JinjaLimits limits_;
  std::optional<std::time_t> now_;
  std::string* out_ = nullptr;
  int depth_ = 0;
  int line_ = 0;
};

void set_name(Scope& scope, std::string_view name, Value value);

}  // namespace dg::jinja
