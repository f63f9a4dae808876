#include <fmt/core.h>

#include <algorithm>

#include "text/jinja_parser.h"
#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

constexpr int kMaxTreeDepth = 150;  // a + b + c ... is a tree as deep as it is long

ExprPtr make(ExprKind kind, int line) {
  auto e = std::make_unique<Expr>();
  e->kind = kind;
  e->line = line;
  return e;
}

}  // namespace

void Parser::adopt(Expr& parent, ExprPtr child) {
  if (child) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxTreeDepth) fail(fmt::format("an expression is deeper than {} levels", kMaxTreeDepth));
  }
  parent.items.push_back(std::move(child));
}

ExprPtr Parser::combine(ExprKind kind, int line, ExprPtr a, ExprPtr b) {
  auto e = make(kind, line);
  adopt(*e, std::move(a));
  if (b) adopt(*e, std::move(b));
  return e;
}

ExprPtr Parser::parse_expression(bool conditional) {
  Nesting nesting(*this);
  int line = token().line;
  ExprPtr value = parse_or();
  while (conditional && skip_name("if")) {
    ExprPtr condition = parse_or();
    ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    ExprPtr e = combine(ExprKind::kConditional, line, std::move(value), std::move(condition));
    adopt(*e, std::move(otherwise));
    value = std::move(e);
  }
  return value;
}

// One expression, or several separated by commas: then a tuple. `end_word` ends the list as a closing bracket does.
ExprPtr Parser::parse_tuple(bool conditional, bool parenthesised, std::string_view end_word) {
  auto tuple = make(ExprKind::kTuple, token().line);
  bool comma = false;
  auto at_end = [&] {
    return token().kind == TokenKind::kPrintEnd || token().kind == TokenKind::kBlockEnd || is_operator(")") ||
           (!end_word.empty() && is_name(end_word));
  };
  while (!at_end()) {
    adopt(*tuple, parse_expression(conditional));
    if (!skip_operator(",")) break;
    comma = true;
  }
  if (comma) return tuple;
  if (!tuple->items.empty()) return std::move(tuple->items[0]);
  if (!parenthesised) fail(fmt::format("expected an expression, found {}", describe_token()));
  return tuple;
}

ExprPtr Parser::parse_or() {
  int line = token().line;
  ExprPtr left = parse_and();
  while (skip_name("or")) left = combine(ExprKind::kOr, line, std::move(left), parse_and());
  return left;
}

ExprPtr Parser::parse_and() {
  int line = token().line;
  ExprPtr left = parse_not();
  while (skip_name("and")) left = combine(ExprKind::kAnd, line, std::move(left), parse_not());
  return left;
}

ExprPtr Parser::parse_not() {
  int line = token().line;
  if (!skip_name("not")) return parse_compare();
  Nesting nesting(*this);
  return combine(ExprKind::kNot, line, parse_not());
}

ExprPtr Parser::parse_compare() {
  int line = token().line;
  ExprPtr first = parse_sum();
  ExprPtr compare;
  for (;;) {
    static constexpr std::pair<std::string_view, Op> kOps[] = {{"==", Op::kEqual},     {"!=", Op::kNotEqual}, {"<", Op::kLess},
                                                               {"<=", Op::kLessEqual}, {">", Op::kGreater},   {">=", Op::kGreaterEqual}};
    auto found = std::find_if(std::begin(kOps), std::end(kOps), [this](auto& o) { return is_operator(o.first); });
    Op op;
    if (found != std::end(kOps)) {
      op = found->second;
      next();
    } else if (is_name("in")) {
      op = Op::kIn;
      next();
    } else if (is_name("not") && tokens_[at_ + 1].kind == TokenKind::kName && tokens_[at_ + 1].text == "in") {
      op = Op::kNotIn;
      next();
      next();
    } else {
      return compare ? std::move(compare) : std::move(first);
    }
    if (!compare) compare = combine(ExprKind::kCompare, line, std::move(first));
    compare->ops.push_back(op);
    adopt(*compare, parse_sum());
  }
}

ExprPtr Parser::parse_sum() {
  int line = token().line;
  ExprPtr left = parse_concat();
  while (is_operator("+") || is_operator("-")) {
    Op op = next().text == "+" ? Op::kAdd : Op::kSubtract;
    left = combine(ExprKind::kArithmetic, line, std::move(left), parse_concat());
    left->op = op;
  }
  return left;
}

ExprPtr Parser::parse_concat() {
  int line = token().line;
  ExprPtr left = parse_product();
  if (!is_operator("~")) return left;
  ExprPtr concat = combine(ExprKind::kConcat, line, std::move(left));
  while (skip_operator("~")) adopt(*concat, parse_product());
  return concat;
}

ExprPtr Parser::parse_product() {
  int line = token().line;
  ExprPtr left = parse_power();
  for (;;) {
    static constexpr std::pair<std::string_view, Op> kOps[] = {
        {"*", Op::kMultiply}, {"/", Op::kDivide}, {"//", Op::kFloorDivide}, {"%", Op::kModulo}};
    auto found = std::find_if(std::begin(kOps), std::end(kOps), [this](auto& o) { return is_operator(o.first); });
    if (found == std::end(kOps)) return left;
    next();
    left = combine(ExprKind::kArithmetic, line, std::move(left), parse_power());
    left->op = found->second;
  }
}

ExprPtr Parser::parse_power() {
  int line = token().line;
  ExprPtr left = parse_unary(true);
  while (skip_operator("**")) {
    left = combine(ExprKind::kArithmetic, line, std::move(left), parse_unary(true));
    left->op = Op::kPower;
  }
  return left;
}

ExprPtr Parser::parse_unary(bool filters) {
  int line = token().line;
  ExprPtr e;
  if (is_operator("-") || is_operator("+")) {
    Nesting nesting(*this);
    ExprKind kind = next().text == "-" ? ExprKind::kNegative : ExprKind::kPositive;
    e = combine(kind, line, parse_unary(false));
  } else {
    e = parse_primary();
  }
  e = parse_postfix(std::move(e));
  return filters ? parse_filters(std::move(e)) : std::move(e);
}

ExprPtr Parser::parse_primary() {
  const Token& t = token();
  auto literal = [&](Value value) {
    auto e = make(ExprKind::kLiteral, t.line);
    e->literal = std::move(value);
    return e;
  };
  switch (t.kind) {
    case TokenKind::kString: {
      std::string text;
      while (token().kind == TokenKind::kString) text += next().text;  // adjacent literals are one
      return literal(Value::string(std::move(text)));
    }
    case TokenKind::kInteger: return literal(Value::integer(next().integer));
    case TokenKind::kFloat: return literal(Value::real(next().real));
    case TokenKind::kName: {
      const std::string& name = next().text;
      if (name == "true" || name == "True") return literal(Value::boolean(true));
      if (name == "false" || name == "False") return literal(Value::boolean(false));
      if (name == "none" || name == "None") return literal(Value::none());
      auto e = make(ExprKind::kName, t.line);
      e->name = name;
      return e;
    }
    case TokenKind::kOperator:
      if (t.text == "[") return parse_list();
      if (t.text == "{") return parse_dict();
      if (t.text == "(") {
        next();
        ExprPtr e = parse_tuple(true, true);
        expect_operator(")");
        return e;
      }
      break;
    default: break;
  }
  fail(fmt::format("expected an expression, found {}", describe_token()));
}

ExprPtr Parser::parse_list() {
  auto e = make(ExprKind::kList, token().line);
  expect_operator("[");
  while (!is_operator("]")) {
    if (!e->items.empty()) {
      expect_operator(",");
      if (is_operator("]")) break;
    }
    adopt(*e, parse_expression());
  }
  next();
  return e;
}

ExprPtr Parser::parse_dict() {
  auto e = make(ExprKind::kDict, token().line);
  expect_operator("{");
  while (!is_operator("}")) {
    if (!e->items.empty()) {
      expect_operator(",");
      if (is_operator("}")) break;
    }
    adopt(*e, parse_expression());
    expect_operator(":");
    adopt(*e, parse_expression());
  }
  next();
  return e;
}

ExprPtr Parser::parse_postfix(ExprPtr e) {
  for (;;) {
    if (is_operator(".") || is_operator("[")) e = parse_subscript(std::move(e));
    else if (is_operator("(")) e = parse_call(std::move(e));
    else return e;
  }
}

ExprPtr Parser::parse_filters(ExprPtr e) {
  for (;;) {
    if (skip_operator("|")) e = parse_filter(std::move(e));
    else if (skip_name("is")) e = parse_test(std::move(e));
    else if (e && is_operator("(")) e = parse_call(std::move(e));
    else return e;
  }
}

// At the name of the filter; `input` null inside a filter block.
ExprPtr Parser::parse_filter(ExprPtr input) {
  auto e = make(ExprKind::kFilter, token().line);
  adopt(*e, std::move(input));
  e->name = expect_name("the name of a filter");
  while (skip_operator(".")) e->name += "." + expect_name("the name of a filter");
  if (is_operator("(")) parse_arguments(*e);
  return e;
}

ExprPtr Parser::parse_test(ExprPtr input) {
  int line = token().line;
  bool negated = skip_name("not");
  auto e = make(ExprKind::kTest, line);
  adopt(*e, std::move(input));
  e->name = expect_name("the name of a test");
  if (is_operator("(")) {
    parse_arguments(*e);
  } else {
    static constexpr std::string_view kWords[] = {"else", "or", "and", "if", "is", "not", "in", "recursive"};
    const Token& t = token();
    bool word = t.kind == TokenKind::kName && std::find(std::begin(kWords), std::end(kWords), t.text) == std::end(kWords);
    bool literal = t.kind == TokenKind::kString || t.kind == TokenKind::kInteger || t.kind == TokenKind::kFloat;
    bool argument = word || literal || is_operator("[") || is_operator("{");
    if (argument) {
      Nesting nesting(*this);
      adopt(*e, parse_postfix(parse_primary()));
    }
  }
  return negated ? combine(ExprKind::kNot, line, std::move(e)) : std::move(e);
}

ExprPtr Parser::parse_subscript(ExprPtr object) {
  int line = token().line;
  if (skip_operator(".")) {
    if (token().kind == TokenKind::kInteger) {  // list.0
      auto index = make(ExprKind::kLiteral, line);
      index->literal = Value::integer(next().integer);
      return combine(ExprKind::kSubscript, line, std::move(object), std::move(index));
    }
    ExprPtr e = combine(ExprKind::kAttribute, line, std::move(object));
    e->name = expect_name("the name of an attribute");
    return e;
  }
  expect_operator("[");
  ExprPtr bounds[3];
  bool slice = false;
  for (int i = 0; i < 3; i++) {
    if (!is_operator(":") && !is_operator("]")) bounds[i] = parse_expression();
    if (!skip_operator(":")) break;
    slice = true;
    if (i == 2) fail("a slice has at most two colons");
  }
  expect_operator("]");
  if (!slice) {
    if (!bounds[0]) fail("expected an index between '[' and ']'");
    return combine(ExprKind::kSubscript, line, std::move(object), std::move(bounds[0]));
  }
  ExprPtr e = combine(ExprKind::kSlice, line, std::move(object));
  for (auto& bound : bounds) adopt(*e, std::move(bound));
  return e;
}

ExprPtr Parser::parse_call(ExprPtr callee) {
  ExprPtr e = combine(ExprKind::kCall, token().line, std::move(callee));
  parse_arguments(*e);
  return e;
}

void Parser::parse_arguments(Expr& call) {
  Nesting nesting(*this);
  expect_operator("(");
  bool first = true;
  while (!is_operator(")")) {
    if (!first) {
      expect_operator(",");
      if (is_operator(")")) break;
    }
    first = false;
    if (is_operator("*") || is_operator("**")) fail("'*' and '**' arguments are not supported");
    if (token().kind == TokenKind::kName && tokens_[at_ + 1].kind == TokenKind::kOperator && tokens_[at_ + 1].text == "=") {
      std::string name = next().text;
      next();
      ExprPtr value = parse_expression();
      call.depth = std::max(call.depth, value->depth + 1);
      if (call.depth > kMaxTreeDepth) fail(fmt::format("an expression is deeper than {} levels", kMaxTreeDepth));
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call.named.empty()) fail("a positional argument follows a named one");
      adopt(call, parse_expression());
    }
  }
  next();
}

}  // namespace dg::jinja
