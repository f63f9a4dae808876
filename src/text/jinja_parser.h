// Recursive-descent parser of templates; grammar and precedence of jinja2. Nesting is limited, so hostile input cannot
// exhaust the stack here or later in the evaluator.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace dg::jinja {

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Program parse();  // throws Failure

 private:
  // statements: jinja_parser.cpp
  Block parse_block(std::initializer_list<std::string_view> ends);
  std::unique_ptr<Stmt> parse_statement();
  void parse_if(Stmt& s);
  void parse_for(Stmt& s);
  void parse_set(Stmt& s);
  void parse_macro(Stmt& s);
  void parse_call_block(Stmt& s);
  void parse_parameters(Stmt& s);
  void finish_block(std::string_view name);  // "{%" and the name are next: takes them and "%}"
  ExprPtr parse_target(bool attributes);

  // expressions: jinja_parser_expr.cpp
  ExprPtr parse_expression(bool conditional = true);
  ExprPtr parse_tuple(bool conditional, bool parenthesised, std::string_view end_word = {});
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool filters);
  ExprPtr parse_primary();
  ExprPtr parse_list();
  ExprPtr parse_dict();
  ExprPtr parse_postfix(ExprPtr e);
  ExprPtr parse_filters(ExprPtr e);
  ExprPtr parse_filter(ExprPtr input);
  ExprPtr parse_test(ExprPtr input);
  ExprPtr parse_subscript(ExprPtr e);
  ExprPtr parse_call(ExprPtr e);
  void parse_arguments(Expr& call);
  ExprPtr combine(ExprKind kind, int line, ExprPtr a, ExprPtr b = nullptr);
  void adopt(Expr& parent, ExprPtr child);  // appends to items, keeps depth within the limit

  const Token& token() const { return tokens_[at_]; }
  const Token& next();
  bool is_operator(std::string_view op) const { return token().kind == TokenKind::kOperator && token().text == op; }
  bool is_name(std::string_view name) const { return token().kind == TokenKind::kName && token().text == name; }
  bool skip_operator(std::string_view op);
  bool skip_name(std::string_view name);
  void expect_operator(std::string_view op);
  void expect(TokenKind kind, const char* what);
  std::string expect_name(const char* what);
  std::string describe_token() const;
  [[noreturn]] void fail(std::string message) const;

  struct Nesting {
    explicit Nesting(Parser& parser);
    ~Nesting() { parser.depth_--; }
    Parser& parser;
  };

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loops_ = 0;  // open for blocks of the current macro
};

}  // namespace dg::jinja
