// JSON schema (draft 2020-12 and draft-07, the part a grammar can enforce) -> rules for the JSON texts that satisfy it.
//
// Every text derived is valid against the schema; where JSON schema leaves freedom, the texts are the ones that models write:
// - properties come in the order of their declaration, additional ones last; enum, const and keys are written in one way;
// - "additionalProperties" absent: none beside declared properties, any where no property is declared; "items" absent behind
//   "prefixItems": none;
// - keywords of one type without "type" mean that type;
// - oneOf is enforced where no value can satisfy two alternatives, judged by types, constants and required properties; else it
//   is an error that asks for anyOf;
// - white space as in json_gap(); integers without bounds have at most 18 digits.
#pragma once
#include <string_view>

#include "base/result.h"
#include "text/grammar_ast.h"

namespace dg::grammar {

// Errors begin with the place: "$.properties.a.type: ...".
Result<RuleId> add_schema(Ast& ast, std::string_view json_text);

}  // namespace dg::grammar
