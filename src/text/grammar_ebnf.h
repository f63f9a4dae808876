// Grammars as llama.cpp users write them (GBNF): `name ::= "text" [a-z] other ( ... | ... ) x? x* x+ x{2,5} . # comment`,
// starting at rule `root`. Two extensions: `<[CONTENT]>` is exactly the added token with this content (literal text when the
// tokenizer has none), and `name ::= %json{ ... }` is a rule for the JSON texts that the schema accepts.
#pragma once
#include <functional>
#include <optional>
#include <string_view>

#include "base/result.h"
#include "text/grammar_ast.h"

namespace dg::grammar {

// Errors begin with the place: "line 1, column 5: ...".
Result<RuleId> add_ebnf(Ast& ast, std::string_view text, const std::function<std::optional<int32_t>(std::string_view)>& find_added);

}  // namespace dg::grammar
