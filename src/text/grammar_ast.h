// What the front ends (JSON schema, regular expressions, EBNF) build and the automaton compiler reads: rules of expressions
// over bytes. Text is UTF-8: a set of code points stands for the byte sequences that encode them.
//
// Expressions are nodes of one vector, referred to by index, so that building and dropping a grammar never recurses.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/unicode.h"

namespace dg::grammar {

using ExprId = uint32_t;
using RuleId = uint32_t;

inline constexpr uint32_t kUnlimited = UINT32_MAX;
inline constexpr uint32_t kMaxRepeat = 100'000;  // largest count that a specification may write
inline constexpr size_t kMaxRules = 10'000;

// Rule 0 of every grammar: a JSON string with its quotes. It carries a counter of its characters, so that all strings of all
// grammars, whatever their length limits, share one automaton and the token sets computed for it.
inline constexpr RuleId kStringRule = 0;

enum class ExprKind : uint8_t {
  kEmpty,    // the empty text
  kNothing,  // no text at all
  kBytes,    // `text` literally
  kChars,    // one code point of `chars`
  kSeq,
  kAlt,
  kRepeat,   // children[0] {min, max} times, unrolled
  kRule,     // what `rule` derives
  kCounted,  // the same, {min, max} times, with a counter on the stack: the text must determine the count
  kString,   // JSON string of min..max code points
  kToken,    // exactly the added token `token`
  kGraph,    // `min` states; paths of `arcs` from state 0 to state 1
  kBoth,     // texts in children[0] and children[1]; neither may contain rules or tokens
  kExcept,   // texts in children[0] but not in `literals`; no rules or tokens
};

struct Arc {
  uint32_t from, to;
  ExprId expr;
};

struct Expr {
  ExprKind kind = ExprKind::kEmpty;
  uint32_t min = 0, max = 0;
  RuleId rule = 0;
  int32_t token = -1;
  std::string text;
  unicode::Ranges chars;
  std::vector<ExprId> children;
  std::vector<Arc> arcs;
  std::vector<std::string> literals;
};

struct Rule {
  std::string name;
  ExprId expr = 0;
  bool defined = false;
};

class Ast {
 public:
  Ast();  // with the string rule

  ExprId empty() const { return 0; }
  ExprId nothing() const { return 1; }
  ExprId text(std::string_view bytes);
  ExprId chars(unicode::Ranges ranges);  // surrogates are left out
  ExprId one_of(std::string_view ascii);
  ExprId seq(std::vector<ExprId> children);
  ExprId alt(std::vector<ExprId> children);
  ExprId repeat(ExprId child, uint32_t min, uint32_t max);
  ExprId optional(ExprId child) { return repeat(child, 0, 1); }
  ExprId call(RuleId rule);
  ExprId counted(RuleId rule, uint32_t min, uint32_t max);
  ExprId string(uint32_t min, uint32_t max);
  ExprId token(int32_t id);
  ExprId graph(uint32_t states, std::vector<Arc> arcs);
  ExprId both(ExprId a, ExprId b);
  ExprId except(ExprId child, std::vector<std::string> literals);

  RuleId add_rule(std::string name);
  void define(RuleId rule, ExprId expr);

  const Expr& expr(ExprId id) const { return exprs_[id]; }
  const std::vector<Rule>& rules() const { return rules_; }
  size_t size() const { return exprs_.size(); }

 private:
  ExprId add(Expr expr);
  std::vector<Expr> exprs_;
  std::vector<Rule> rules_;
};

// Which rules derive the empty text.
std::vector<bool> nullable_rules(const Ast& ast);
bool is_nullable(const Ast& ast, ExprId expr, const std::vector<bool>& rules);

// --- pieces of JSON that several front ends need
// The texts that stand for the code points of `set` inside a JSON string: raw where JSON allows it, else the short escape or
// \u00XX.
ExprId json_chars(Ast& ast, const unicode::Ranges& set);
ExprId json_any_char(Ast& ast);  // one code point in every way JSON can write it
// Rules of any JSON value and any JSON object, made on first use.
struct JsonRules {
  RuleId value = 0, object = 0;
};
JsonRules add_json_rules(Ast& ast);
ExprId json_gap(Ast& ast);     // white space between tokens: nothing, one blank, or a newline and at most 16 blanks
ExprId json_number(Ast& ast);  // digits are bounded: 18 before the point, 18 behind it, 2 in the exponent
ExprId json_integer(Ast& ast);

}  // namespace dg::grammar
