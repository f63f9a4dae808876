#include "text/grammar_ast.h"

#include "base/check.h"

namespace dg::grammar {

Ast::Ast() {
  add({});
  add({.kind = ExprKind::kNothing});
  const RuleId string_rule = add_rule("json string");
  CHECK(string_rule == kStringRule);
  define(string_rule, seq({text("\""), repeat(json_any_char(*this), 0, kUnlimited), text("\"")}));
}

ExprId Ast::add(Expr expr) {
  exprs_.push_back(std::move(expr));
  return static_cast<ExprId>(exprs_.size() - 1);
}

ExprId Ast::text(std::string_view bytes) {
  if (bytes.empty()) return empty();
  return add({.kind = ExprKind::kBytes, .text = std::string(bytes)});
}

ExprId Ast::chars(unicode::Ranges ranges) {
  unicode::tidy(ranges);
  ranges = unicode::intersection(ranges, {{0, 0xd7ff}, {0xe000, unicode::kMaxCodePoint}});
  if (ranges.empty()) return nothing();
  return add({.kind = ExprKind::kChars, .chars = std::move(ranges)});
}

ExprId Ast::one_of(std::string_view ascii) {
  unicode::Ranges ranges;
  for (char c : ascii) ranges.push_back({static_cast<unsigned char>(c), static_cast<unsigned char>(c)});
  return chars(std::move(ranges));
}

ExprId Ast::seq(std::vector<ExprId> children) {
  if (children.empty()) return empty();
  if (children.size() == 1) return children[0];
  return add({.kind = ExprKind::kSeq, .children = std::move(children)});
}

ExprId Ast::alt(std::vector<ExprId> children) {
  if (children.empty()) return nothing();
  if (children.size() == 1) return children[0];
  return add({.kind = ExprKind::kAlt, .children = std::move(children)});
}

ExprId Ast::repeat(ExprId child, uint32_t min, uint32_t max) {
  if (max == 0 || child == empty()) return empty();
  if (min == 1 && max == 1) return child;
  return add({.kind = ExprKind::kRepeat, .min = min, .max = max, .children = {child}});
}

ExprId Ast::call(RuleId rule) { return add({.kind = ExprKind::kRule, .rule = rule}); }

ExprId Ast::counted(RuleId rule, uint32_t min, uint32_t max) {
  if (max == 0) return empty();
  return add({.kind = ExprKind::kCounted, .min = min, .max = max, .rule = rule});
}

ExprId Ast::string(uint32_t min, uint32_t max) {
  if (min > max) return nothing();
  return add({.kind = ExprKind::kString, .min = min, .max = max, .rule = kStringRule});
}

ExprId Ast::token(int32_t id) { return add({.kind = ExprKind::kToken, .token = id}); }

ExprId Ast::graph(uint32_t states, std::vector<Arc> arcs) {
  return add({.kind = ExprKind::kGraph, .min = states, .arcs = std::move(arcs)});
}

ExprId Ast::both(ExprId a, ExprId b) { return add({.kind = ExprKind::kBoth, .children = {a, b}}); }

ExprId Ast::except(ExprId child, std::vector<std::string> literals) {
  if (literals.empty()) return child;
  return add({.kind = ExprKind::kExcept, .children = {child}, .literals = std::move(literals)});
}

RuleId Ast::add_rule(std::string name) {
  rules_.push_back({std::move(name), 1, false});
  return static_cast<RuleId>(rules_.size() - 1);
}

void Ast::define(RuleId rule, ExprId expr) {
  rules_[rule].expr = expr;
  rules_[rule].defined = true;
}

namespace {

bool graph_is_nullable(const Ast& ast, const Expr& expr, const std::vector<bool>& rules) {
  std::vector<bool> reached(expr.min, false);
  reached[0] = true;
  for (bool grown = true; grown;) {
    grown = false;
    for (const Arc& arc : expr.arcs) {
      if (!reached[arc.from] || reached[arc.to] || !is_nullable(ast, arc.expr, rules)) continue;
      reached[arc.to] = grown = true;
    }
  }
  return reached[1];
}

void collect_rules(const Ast& ast, ExprId root, std::vector<RuleId>& out) {
  std::vector<ExprId> work{root};
  while (!work.empty()) {
    const Expr& expr = ast.expr(work.back());
    work.pop_back();
    if (expr.kind == ExprKind::kRule || expr.kind == ExprKind::kCounted) out.push_back(expr.rule);
    work.insert(work.end(), expr.children.begin(), expr.children.end());
    for (const Arc& arc : expr.arcs) work.push_back(arc.expr);
  }
}

}  // namespace

bool is_nullable(const Ast& ast, ExprId id, const std::vector<bool>& rules) {
  const Expr& expr = ast.expr(id);
  auto all = [&] {
    for (ExprId child : expr.children)
      if (!is_nullable(ast, child, rules)) return false;
    return true;
  };
  switch (expr.kind) {
    case ExprKind::kEmpty: return true;
    case ExprKind::kNothing:
    case ExprKind::kBytes:
    case ExprKind::kChars:
    case ExprKind::kString:
    case ExprKind::kToken: return false;
    case ExprKind::kSeq:
    case ExprKind::kBoth: return all();
    case ExprKind::kAlt:
      for (ExprId child : expr.children)
        if (is_nullable(ast, child, rules)) return true;
      return false;
    case ExprKind::kRepeat: return expr.min == 0 || all();
    case ExprKind::kRule: return rules[expr.rule];
    case ExprKind::kCounted: return expr.min == 0 || rules[expr.rule];
    case ExprKind::kGraph: return graph_is_nullable(ast, expr, rules);
    case ExprKind::kExcept: {
      for (const std::string& literal : expr.literals)
        if (literal.empty()) return false;
      return all();
    }
  }
  return false;
}

std::vector<bool> nullable_rules(const Ast& ast) {
  const size_t n = ast.rules().size();
  std::vector<std::vector<RuleId>> callers(n);
  for (RuleId rule = 0; rule < n; rule++) {
    std::vector<RuleId> called;
    collect_rules(ast, ast.rules()[rule].expr, called);
    for (RuleId callee : called)
      if (callers[callee].empty() || callers[callee].back() != rule) callers[callee].push_back(rule);
  }
  std::vector<bool> nullable(n, false);
  std::vector<RuleId> work;
  for (RuleId rule = 0; rule < n; rule++) work.push_back(rule);
  while (!work.empty()) {
    const RuleId rule = work.back();
    work.pop_back();
    if (nullable[rule] || !is_nullable(ast, ast.rules()[rule].expr, nullable)) continue;
    nullable[rule] = true;
    work.insert(work.end(), callers[rule].begin(), callers[rule].end());
  }
  return nullable;
}

// --- JSON

namespace {

unicode::Ranges raw_json_chars() { return {{0x20, 0x21}, {0x23, 0x5b}, {0x5d, 0xd7ff}, {0xe000, unicode::kMaxCodePoint}}; }

ExprId hex_digit(Ast& ast) { return ast.chars({{'0', '9'}, {'A', 'F'}, {'a', 'f'}}); }

}  // namespace

ExprId json_any_char(Ast& ast) {
  const ExprId hex = hex_digit(ast);
  const ExprId d = ast.one_of("dD");
  const ExprId plain = ast.alt({ast.seq({ast.chars({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}), hex, hex, hex}),
                                ast.seq({d, ast.chars({{'0', '7'}}), hex, hex})});
  const ExprId pair = ast.seq({d, ast.one_of("89abAB"), hex, hex, ast.text("\\u"), d, ast.one_of("cdefCDEF"), hex, hex});
  const ExprId escape = ast.alt({ast.one_of("\"\\/bfnrt"), ast.seq({ast.text("u"), ast.alt({plain, pair})})});
  return ast.alt({ast.chars(raw_json_chars()), ast.seq({ast.text("\\"), escape})});
}

ExprId json_chars(Ast& ast, const unicode::Ranges& set) {
  std::vector<ExprId> ways{ast.chars(unicode::intersection(set, raw_json_chars()))};
  for (const unicode::Range& range : unicode::intersection(set, {{0, 0x1f}, {'"', '"'}, {'\\', '\\'}})) {
    for (char32_t c = range.first; c <= range.last; c++) {
      static constexpr char kHex[] = "0123456789abcdef";
      const char code[] = {'\\', 'u', '0', '0', kHex[c >> 4], kHex[c & 15], 0};
      ways.push_back(ast.text(code));
      switch (c) {
        case '"': ways.push_back(ast.text("\\\"")); break;
        case '\\': ways.push_back(ast.text("\\\\")); break;
        case '\b': ways.push_back(ast.text("\\b")); break;
        case '\f': ways.push_back(ast.text("\\f")); break;
        case '\n': ways.push_back(ast.text("\\n")); break;
        case '\r': ways.push_back(ast.text("\\r")); break;
        case '\t': ways.push_back(ast.text("\\t")); break;
        default: break;
      }
    }
  }
  return ast.alt(std::move(ways));
}

ExprId json_gap(Ast& ast) {
  return ast.optional(ast.alt({ast.text(" "), ast.seq({ast.text("\n"), ast.repeat(ast.one_of(" \t"), 0, 16)})}));
}

ExprId json_integer(Ast& ast) {
  const ExprId digit = ast.chars({{'0', '9'}});
  return ast.seq({ast.optional(ast.text("-")), ast.alt({ast.text("0"), ast.seq({ast.chars({{'1', '9'}}), ast.repeat(digit, 0, 17)})})});
}

ExprId json_number(Ast& ast) {
  const ExprId digit = ast.chars({{'0', '9'}});
  const ExprId fraction = ast.seq({ast.text("."), ast.repeat(digit, 1, 18)});
  const ExprId exponent = ast.seq({ast.one_of("eE"), ast.optional(ast.one_of("+-")), ast.repeat(digit, 1, 2)});
  return ast.seq({json_integer(ast), ast.optional(fraction), ast.optional(exponent)});
}

JsonRules add_json_rules(Ast& ast) {
  JsonRules json{ast.add_rule("json value"), ast.add_rule("json object")};
  const RuleId array = ast.add_rule("json array");
  const ExprId gap = json_gap(ast), value = ast.call(json.value);
  const ExprId colon = ast.seq({ast.text(":"), ast.optional(ast.text(" "))});
  const ExprId member = ast.seq({ast.string(0, kUnlimited), colon, value});
  auto list = [&](const char* open, ExprId item, const char* close) {
    const ExprId more = ast.repeat(ast.seq({ast.text(","), gap, item}), 0, kUnlimited);
    return ast.seq({ast.text(open), gap, ast.optional(ast.seq({item, more, gap})), ast.text(close)});
  };
  ast.define(json.object, list("{", member, "}"));
  ast.define(array, list("[", value, "]"));
  ast.define(json.value, ast.alt({ast.call(json.object), ast.call(array), ast.string(0, kUnlimited), json_number(ast), ast.text("true"),
                                  ast.text("false"), ast.text("null")}));
  return json;
}

}  // namespace dg::grammar
