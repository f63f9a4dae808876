// Regular expressions of ECMA-262 (Unicode mode), as JSON schema's "pattern" uses them, without what no finite automaton can
// decide: back-references, look-around and word boundaries are errors that name them. ^ and $ may stand where a match begins
// or ends. Groups of every kind only group; lazy quantifiers derive the same texts as greedy ones.
#pragma once
#include <string_view>

#include "base/result.h"
#include "text/grammar_ast.h"

namespace dg::grammar {

struct RegexUse {
  bool search = false;       // somewhere in the text, as "pattern" does; else the whole text
  bool json_string = false;  // the text is the inside of a JSON string
};

// Errors begin with the byte offset: "offset 3: ...".
Result<ExprId> add_regex(Ast& ast, std::string_view pattern, RegexUse use);

}  // namespace dg::grammar
