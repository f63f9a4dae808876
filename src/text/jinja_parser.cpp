#include "text/jinja_parser.h"

#include <fmt/core.h>

#include <algorithm>

#include "text/jinja_text.h"

namespace dg::jinja {
namespace {

constexpr int kMaxParserNesting = 100;  // of the parser's own recursion
constexpr size_t kMaxShown = 40;        // bytes of a token quoted in a message

}  // namespace

Parser::Nesting::Nesting(Parser& p) : parser(p) {
  if (p.depth_ >= kMaxParserNesting) p.fail(fmt::format("nested deeper than {} levels", kMaxParserNesting));
  p.depth_++;
}

void Parser::fail(std::string message) const { throw Failure{std::move(message), token().line}; }

const Token& Parser::next() {
  const Token& t = tokens_[at_];
  if (t.kind != TokenKind::kEnd) at_++;
  return t;
}

std::string Parser::describe_token() const {
  switch (token().kind) {
    case TokenKind::kEnd: return "the end of the template";
    case TokenKind::kBlockEnd: return "'%}'";
    case TokenKind::kPrintEnd: return "'}}'";
    case TokenKind::kText: return "text";
    default: return python_repr(std::string_view(token().text).substr(0, kMaxShown));
  }
}

bool Parser::skip_operator(std::string_view op) {
  if (!is_operator(op)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view name) {
  if (!is_name(name)) return false;
  next();
  return true;
}

void Parser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail(fmt::format("expected '{}', found {}", op, describe_token()));
}

void Parser::expect(TokenKind kind, const char* what) {
  if (token().kind != kind) fail(fmt::format("expected {}, found {}", what, describe_token()));
  next();
}

std::string Parser::expect_name(const char* what) {
  if (token().kind != TokenKind::kName) fail(fmt::format("expected {}, found {}", what, describe_token()));
  return next().text;
}

Program Parser::parse() {
  Program program;
  program.body = parse_block({});
  return program;
}

// Statements up to a tag whose name is one of `ends` (left for the caller to take) or, with no ends, the end.
Block Parser::parse_block(std::initializer_list<std::string_view> ends) {
  Nesting nesting(*this);
  Block block;
  for (;;) {
    const Token& t = token();
    auto add = [&](StmtKind kind) -> Stmt& {
      block.push_back(std::make_unique<Stmt>());
      block.back()->kind = kind;
      block.back()->line = t.line;
      return *block.back();
    };
    if (t.kind == TokenKind::kEnd) {
      if (ends.size() > 0) fail(fmt::format("the template ends before {{% {} %}}", *(ends.end() - 1)));
      return block;
    }
    if (t.kind == TokenKind::kText) {
      add(StmtKind::kText).text = next().text;
    } else if (t.kind == TokenKind::kPrintBegin) {
      next();
      Stmt& s = add(StmtKind::kPrint);
      s.value = parse_tuple(true, false);
      expect(TokenKind::kPrintEnd, "'}}'");
    } else if (t.kind == TokenKind::kBlockBegin) {
      const Token& name = tokens_[at_ + 1];
      if (name.kind == TokenKind::kName && std::find(ends.begin(), ends.end(), name.text) != ends.end()) return block;
      next();
      block.push_back(parse_statement());
    } else {
      fail(fmt::format("unexpected {}", describe_token()));
    }
  }
}

void Parser::finish_block(std::string_view name) {
  expect(TokenKind::kBlockBegin, "'{%'");
  if (!skip_name(name)) fail(fmt::format("expected '{}', found {}", name, describe_token()));
  expect(TokenKind::kBlockEnd, "'%}'");
}

std::unique_ptr<Stmt> Parser::parse_statement() {
  auto s = std::make_unique<Stmt>();
  s->line = token().line;
  std::string name = expect_name("the name of a statement");
  if (name == "if") {
    parse_if(*s);
  } else if (name == "for") {
    parse_for(*s);
  } else if (name == "set") {
    parse_set(*s);
  } else if (name == "macro") {
    parse_macro(*s);
  } else if (name == "call") {
    parse_call_block(*s);
  } else if (name == "filter") {
    s->kind = StmtKind::kFilterBlock;
    s->value = parse_filters(parse_filter(nullptr));
    expect(TokenKind::kBlockEnd, "'%}'");
    s->body = parse_block({"endfilter"});
    finish_block("endfilter");
  } else if (name == "generation") {  // marks assistant text for training; no scope, no output of its own
    s->kind = StmtKind::kIf;
    expect(TokenKind::kBlockEnd, "'%}'");
    s->otherwise = parse_block({"endgeneration"});
    finish_block("endgeneration");
  } else if (name == "with") {
    s->kind = StmtKind::kScope;
    while (token().kind != TokenKind::kBlockEnd) {
      if (!s->assignments.empty()) expect_operator(",");
      std::string variable = expect_name("a variable");
      expect_operator("=");
      s->assignments.emplace_back(std::move(variable), parse_expression());
    }
    next();
    s->body = parse_block({"endwith"});
    finish_block("endwith");
  } else if (name == "break" || name == "continue") {
    if (loops_ == 0) fail(fmt::format("'{}' outside of a loop", name));
    s->kind = name == "break" ? StmtKind::kBreak : StmtKind::kContinue;
    expect(TokenKind::kBlockEnd, "'%}'");
  } else if (name == "include" || name == "import" || name == "from" || name == "extends" || name == "block") {
    fail(fmt::format("'{}' is not available in a chat template", name));
  } else {
    fail(fmt::format("unknown statement {}", python_repr(std::string_view(name).substr(0, kMaxShown))));
  }
  return s;
}

void Parser::parse_if(Stmt& s) {
  s.kind = StmtKind::kIf;
  for (;;) {
    ExprPtr condition = parse_tuple(false, false);
    expect(TokenKind::kBlockEnd, "'%}'");
    Block body = parse_block({"elif", "else", "endif"});
    s.branches.emplace_back(std::move(condition), std::move(body));
    next();
    if (skip_name("elif")) continue;
    if (skip_name("else")) {
      expect(TokenKind::kBlockEnd, "'%}'");
      s.otherwise = parse_block({"endif"});
      return finish_block("endif");
    }
    next();
    return expect(TokenKind::kBlockEnd, "'%}'");
  }
}

void Parser::parse_for(Stmt& s) {
  s.kind = StmtKind::kFor;
  s.target = parse_target(false);
  if (!skip_name("in")) fail(fmt::format("expected 'in', found {}", describe_token()));
  s.value = parse_tuple(false, false, "recursive");
  if (skip_name("if")) s.condition = parse_expression();
  if (is_name("recursive")) fail("'recursive' loops are not supported");
  expect(TokenKind::kBlockEnd, "'%}'");
  loops_++;
  s.body = parse_block({"else", "endfor"});
  loops_--;
  next();
  if (skip_name("else")) {
    expect(TokenKind::kBlockEnd, "'%}'");
    s.otherwise = parse_block({"endfor"});
    return finish_block("endfor");
  }
  next();
  expect(TokenKind::kBlockEnd, "'%}'");
}

void Parser::parse_set(Stmt& s) {
  s.target = parse_target(true);
  if (skip_operator("=")) {
    s.kind = StmtKind::kSet;
    s.value = parse_tuple(true, false);
    return expect(TokenKind::kBlockEnd, "'%}'");
  }
  s.kind = StmtKind::kSetBlock;
  if (s.target->kind == ExprKind::kTuple) fail(fmt::format("expected '=', found {}", describe_token()));
  if (is_operator("|")) s.value = parse_filters(nullptr);
  expect(TokenKind::kBlockEnd, "'%}'");
  s.body = parse_block({"endset"});
  finish_block("endset");
}

// a | a, b | (a, b) | ns.attribute (only for set)
ExprPtr Parser::parse_target(bool attributes) {
  Nesting nesting(*this);
  auto tuple = std::make_unique<Expr>();
  tuple->kind = ExprKind::kTuple;
  tuple->line = token().line;
  bool comma = false;
  for (;;) {
    if (skip_operator("(")) {
      adopt(*tuple, parse_target(attributes));
      expect_operator(")");
    } else {
      auto target = std::make_unique<Expr>();
      target->kind = ExprKind::kName;
      target->line = token().line;
      target->name = expect_name("the name of a variable");
      static constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None",
                                                       "not",  "and",   "or",   "if",   "in",    "is"};
      if (std::find(std::begin(kReserved), std::end(kReserved), target->name) != std::end(kReserved))
        fail(fmt::format("cannot assign to '{}'", target->name));
      if (attributes && skip_operator(".")) {
        int line = target->line;
        auto attribute = combine(ExprKind::kAttribute, line, std::move(target));
        attribute->name = expect_name("the name of an attribute");
        target = std::move(attribute);
      }
      adopt(*tuple, std::move(target));
    }
    if (!skip_operator(",")) break;
    comma = true;
    if (is_name("in") || is_operator("=") || is_operator(")")) break;
  }
  return comma ? std::move(tuple) : std::move(tuple->items[0]);
}

void Parser::parse_parameters(Stmt& s) {
  expect_operator("(");
  while (!is_operator(")")) {
    if (!s.parameters.empty()) {
      expect_operator(",");
      if (is_operator(")")) break;
    }
    std::string name = expect_name("the name of a parameter");
    ExprPtr value = skip_operator("=") ? parse_expression() : nullptr;
    if (!value && !s.parameters.empty() && s.parameters.back().second) fail("a parameter without default follows one with default");
    s.parameters.emplace_back(std::move(name), std::move(value));
  }
  next();
}

void Parser::parse_macro(Stmt& s) {
  s.kind = StmtKind::kMacro;
  s.text = expect_name("the name of a macro");
  parse_parameters(s);
  expect(TokenKind::kBlockEnd, "'%}'");
  int outer = std::exchange(loops_, 0);
  size_t from = at_;
  s.body = parse_block({"endmacro"});
  for (size_t i = from; i < at_; i++)
    if (tokens_[i].kind == TokenKind::kName && tokens_[i].text == "caller") s.uses_caller = true;
  loops_ = outer;
  finish_block("endmacro");
}

void Parser::parse_call_block(Stmt& s) {
  s.kind = StmtKind::kCallBlock;
  if (is_operator("(")) parse_parameters(s);
  s.value = parse_expression();
  if (s.value->kind != ExprKind::kCall) fail("expected a call of a macro");
  expect(TokenKind::kBlockEnd, "'%}'");
  int outer = std::exchange(loops_, 0);
  s.body = parse_block({"endcall"});
  loops_ = outer;
  finish_block("endcall");
}

}  // namespace dg::jinja
