// Parts of the JSON schema front end (grammar_schema.h) that stand alone: references and allOf, numbers, formats.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"
#include "text/grammar_ast.h"

namespace dg::grammar {

// Patterns that allOf has brought together; a keyword of ours, which no user's schema may contain.
inline constexpr const char* kMergedPatterns = "$patterns";

// Resolves references and merges allOf and the siblings of $ref into one flat schema.
class SchemaMerger {
 public:
  explicit SchemaMerger(const Json& root) : root_(root) {}
  // nullptr in an error only. `ref`: "#", "#/$defs/a", ...; `path`: where it stands, for the error.
  Result<const Json*> resolve(const std::string& ref, const std::string& path) const;
  // Without $ref, allOf and annotations. `schema` may be a boolean: true is {}.
  Result<Json> flatten(const Json& schema, const std::string& path, int depth = 0);
  Result<Json> merge(const Json& a, const Json& b, const std::string& path);
  // Whether no value satisfies both. false when in doubt.
  Result<bool> disjoint(const Json& a, const Json& b, const std::string& path, int depth = 0);

 private:
  Result<void> check_closed(const Json& closed, const Json& other, const std::string& path) const;
  const Json& root_;
  int merges_ = 0;
};

Result<void> check_keywords(const Json& schema, const std::string& path, bool merged);
bool is_annotation(std::string_view keyword);
std::vector<std::string> types_of(const Json& schema);  // "type", or what the keywords imply; empty: any type
bool value_has_type(const Json& value, std::string_view type);
std::string json_excerpt(const Json& value);  // one line of bounded length for an error

// The numbers that minimum, maximum, exclusive* and multipleOf leave; null when the schema has none of them.
Result<std::optional<ExprId>> number_with_bounds(Ast& ast, const Json& schema, bool integer, const std::string& path);

// Regular expression of a format, nullptr when it is unknown.
const char* format_pattern(std::string_view format);
const char* known_formats();

}  // namespace dg::grammar
