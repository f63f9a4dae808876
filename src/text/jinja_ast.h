// The parsed form of a template. Built by the parser, never changed afterwards, shared by all renderings.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace dg::jinja {

enum class ExprKind : uint8_t {
  kLiteral,  // literal
  kName,     // name
  kList,
  kTuple,  // items
  kDict,   // items: key, value, key, value ...
  kNot,
  kNegative,
  kPositive,    // items[0]
  kArithmetic,  // op, items[0], items[1]
  kConcat,      // items: a ~ b ~ c
  kCompare,     // items[0] ops[0] items[1] ops[1] items[2] ...
  kAnd,
  kOr,           // items[0], items[1]
  kConditional,  // items: value, condition, otherwise (may be null)
  kAttribute,    // items[0] . name
  kSubscript,    // items[0] [ items[1] ]
  kSlice,        // items[0] [ items[1] : items[2] : items[3] ], each bound may be null
  kCall,         // items[0] ( items[1..], named )
  kFilter,       // items[0] | name ( items[1..], named ); items[0] null inside a filter block
  kTest,         // items[0] is name ( items[1..] )
};

enum class Op : uint8_t {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind = ExprKind::kLiteral;
  Op op = Op::kAdd;
  int line = 0;
  int depth = 1;  // of the tree below, limited by the parser so that evaluation and destruction cannot exhaust the stack
  std::string name;
  Value literal;
  std::vector<ExprPtr> items;
  std::vector<Op> ops;
  std::vector<std::pair<std::string, ExprPtr>> named;
};

enum class StmtKind : uint8_t { kText, kPrint, kIf, kFor, kSet, kSetBlock, kMacro, kCallBlock, kFilterBlock, kScope, kBreak, kContinue };

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

struct Stmt {
  StmtKind kind = StmtKind::kText;
  int line = 0;
  std::string text;   // kText; kMacro: its name
  ExprPtr target;     // kFor, kSet, kSetBlock
  ExprPtr value;      // kPrint, kSet, kFor (iterable), kCallBlock (the call), kFilterBlock and kSetBlock (filters or null)
  ExprPtr condition;  // kFor
  Block body;
  Block otherwise;                                           // kFor: else; kIf: the final else
  std::vector<std::pair<ExprPtr, Block>> branches;           // kIf
  std::vector<std::pair<std::string, ExprPtr>> parameters;   // kMacro, kCallBlock: name, default or null
  std::vector<std::pair<std::string, ExprPtr>> assignments;  // kScope ({% with %})
  bool uses_caller = false;                                  // kMacro
};

struct Program {
  Block body;
};

}  // namespace dg::jinja
