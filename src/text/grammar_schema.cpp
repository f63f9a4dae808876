#include "text/grammar_schema.h"

#include <fmt/core.h>

#include <algorithm>
#include <deque>
#include <map>

#include "base/json.h"
#include "text/grammar_regex.h"
#include "text/grammar_schema_parts.h"

namespace dg::grammar {
namespace {

constexpr size_t kMaxSchemas = 50'000;  // after references are followed
constexpr size_t kMaxObjectStates = 50'000;
constexpr size_t kMaxOneOf = 256;
constexpr int kMaxSchemaDepth = 150;  // calls of value() and flat_value() inside one another; JSON text nests 64 levels
constexpr uint64_t kMaxLength = UINT32_MAX - 1;

class SchemaBuilder {
 public:
  SchemaBuilder(Ast& ast, const Json& root) : ast_(ast), merger_(root) {}

  Result<RuleId> run() {
    const RuleId root = reference_rule("#");
    while (!pending_.empty()) {  // definitions wait here instead of nesting: a chain of references costs no stack
      const std::string ref = std::move(pending_.front());
      pending_.pop_front();
      DG_ASSIGN(const Json* schema, merger_.resolve(ref, "$"));
      const std::string path = ref == "#" ? "$" : "$" + dotted(ref);
      DG_ASSIGN(const ExprId body, value(*schema, path));
      ast_.define(references_[ref], body);
    }
    return root;
  }

 private:
  static std::string dotted(const std::string& ref) {
    std::string path = ref.substr(1);
    std::replace(path.begin(), path.end(), '/', '.');
    for (char& c : path)
      if (static_cast<unsigned char>(c) < 0x20) c = '?';
    return path.size() > 200 ? path.substr(0, 200) + "..." : path;
  }
  static std::string member_path(const std::string& path, const std::string& key) {
    const std::string name = json_excerpt(Json(key));
    return fmt::format("{}.properties.{}", path, name.substr(1, name.size() - 2));
  }

  RuleId reference_rule(const std::string& ref) {
    auto [it, fresh] = references_.try_emplace(ref, 0);
    if (fresh) {
      it->second = ast_.add_rule(ref);
      pending_.push_back(ref);
    }
    return it->second;
  }
  JsonRules& json() {
    if (!json_) json_ = add_json_rules(ast_);
    return *json_;
  }
  ExprId in_rule(std::string name, ExprId body) {
    const RuleId rule = ast_.add_rule(std::move(name));
    ast_.define(rule, body);
    return ast_.call(rule);
  }

  struct DepthGuard {
    explicit DepthGuard(int& depth) : depth(depth) { depth++; }
    ~DepthGuard() { depth--; }
    int& depth;
  };

  Result<ExprId> value(const Json& schema, const std::string& path) {
    const DepthGuard guard(depth_);
    if (depth_ > kMaxSchemaDepth)
      return input_error(fmt::format("{}: expected at most {} levels; a recursive schema may use $ref only without siblings or allOf",
                                     path.substr(0, 200), kMaxSchemaDepth));
    if (++schemas_ > kMaxSchemas || ast_.rules().size() > kMaxRules)
      return input_error(fmt::format("{}: expected a schema of at most {} parts with its references followed", path, kMaxSchemas));
    if (schema == Json(true)) return ast_.call(json().value);
    if (schema == Json(false)) return input_error(path + ": expected a schema that some value satisfies, found false");
    DG_TRY(check_keywords(schema, path, false));
    if (schema.contains("$ref")) {
      const Json& ref = schema["$ref"];
      if (stands_alone(schema, "$ref") && ref.is_string()) {
        DG_ASSIGN(const Json* target, merger_.resolve(ref.get<std::string>(), path));
        (void)target;
        return ast_.call(reference_rule(ref.get<std::string>()));
      }
    }
    // allOf of one schema is how generators write a reference with a description; it must not be merged, it may be recursive.
    if (schema.contains("allOf") && stands_alone(schema, "allOf") && schema["allOf"].is_array() && schema["allOf"].size() == 1)
      return value(schema["allOf"][0], path + ".allOf[0]");
    DG_ASSIGN(const Json flat, merger_.flatten(schema, path));
    return flat_value(flat, path);
  }

  static bool stands_alone(const Json& schema, std::string_view keyword) {
    for (const auto& [key, v] : schema.items())
      if (key != keyword && !is_annotation(key)) return false;
    return true;
  }

  // A schema without $ref, allOf and annotations.
  Result<ExprId> flat_value(Json schema, const std::string& path) {
    const DepthGuard guard(depth_);
    if (depth_ > kMaxSchemaDepth) return input_error(path.substr(0, 200) + ": alternatives nest too deeply after merging");
    DG_TRY(check_keywords(schema, path, true));
    if (schema.contains("nullable")) {
      if (!schema["nullable"].is_boolean()) return input_error(fmt::format("{}.nullable: expected true or false", path));
      const bool nullable = schema["nullable"].get<bool>();
      schema.erase("nullable");
      DG_ASSIGN(const ExprId body, flat_value(schema, path));
      return nullable ? ast_.alt({body, ast_.text("null")}) : body;
    }
    for (const char* keyword : {"anyOf", "oneOf"})
      if (schema.contains(keyword)) return alternatives(std::move(schema), keyword, path);
    if (schema.contains("const") || schema.contains("enum")) return listed_values(schema, path);
    std::vector<std::string> types = types_of(schema);
    if (types.empty()) return ast_.call(json().value);
    const bool number = std::find(types.begin(), types.end(), "number") != types.end();
    std::vector<ExprId> ways;
    std::vector<std::string> done;
    for (const std::string& type : types) {
      if ((number && type == "integer") || std::find(done.begin(), done.end(), type) != done.end()) continue;
      done.push_back(type);
      DG_ASSIGN(const ExprId way, typed(schema, type, path));
      ways.push_back(way);
    }
    return ast_.alt(std::move(ways));
  }

  Result<ExprId> alternatives(Json schema, const char* keyword, const std::string& path) {
    const Json options = schema[keyword];
    const std::string here = fmt::format("{}.{}", path, keyword);
    if (!options.is_array() || options.empty())
      return input_error(fmt::format("{}: expected an array of schemas, found {}", here, json_excerpt(options)));
    if (keyword == std::string_view("oneOf")) {
      if (options.size() > kMaxOneOf)
        return input_error(fmt::format("{}: expected at most {} alternatives, found {}; use anyOf", here, kMaxOneOf, options.size()));
      for (size_t i = 0; i < options.size(); i++) {
        for (size_t j = 0; j < i; j++) {
          DG_ASSIGN(const bool apart, merger_.disjoint(options[j], options[i], fmt::format("{}[{}]", here, i)));
          if (!apart)
            return input_error(
                fmt::format("{}: alternatives {} and {} may accept the same value; expected different types or a required property "
                            "with different constants, or use anyOf",
                            here, j, i));
        }
      }
    }
    schema.erase(keyword);
    std::vector<ExprId> ways;
    for (size_t i = 0; i < options.size(); i++) {
      const std::string place = fmt::format("{}[{}]", here, i);
      if (schema.empty()) {
        DG_ASSIGN(const ExprId way, value(options[i], place));
        ways.push_back(way);
        continue;
      }
      DG_ASSIGN(const Json option, merger_.flatten(options[i], place));
      DG_ASSIGN(Json both, merger_.merge(schema, option, place));
      if (++schemas_ > kMaxSchemas) return input_error(path + ": too many alternatives after merging; expected fewer");
      DG_ASSIGN(const ExprId way, flat_value(std::move(both), place));
      ways.push_back(way);
    }
    return ast_.alt(std::move(ways));
  }

  Result<ExprId> typed(const Json& schema, const std::string& type, const std::string& path) {
    if (type == "null") return ast_.text("null");
    if (type == "boolean") return ast_.alt({ast_.text("true"), ast_.text("false")});
    if (type == "string") return string(schema, path);
    if (type == "array") return array(schema, path);
    if (type == "object") return object(schema, path);
    DG_ASSIGN(const auto bounded, number_with_bounds(ast_, schema, type == "integer", path));
    if (bounded) return *bounded;
    return type == "integer" ? json_integer(ast_) : json_number(ast_);
  }

  // --- enum and const
  ExprId literal(const Json& v) {
    if (!v.is_structured()) return ast_.text(v.dump());
    const bool object = v.is_object();
    std::vector<ExprId> parts{ast_.text(object ? "{" : "["), json_gap(ast_)};
    bool first = true;
    for (const auto& [key, item] : v.items()) {
      if (!first) parts.insert(parts.end(), {ast_.text(","), json_gap(ast_)});
      first = false;
      if (object) parts.insert(parts.end(), {ast_.text(Json(key).dump() + ":"), ast_.optional(ast_.text(" "))});
      parts.push_back(literal(item));
    }
    if (!first) parts.push_back(json_gap(ast_));
    parts.push_back(ast_.text(object ? "}" : "]"));
    return ast_.seq(std::move(parts));
  }

  Result<ExprId> listed_values(const Json& schema, const std::string& path) {
    Json values = Json::array();
    if (schema.contains("enum")) {
      values = schema["enum"];
      if (!values.is_array() || values.empty())
        return input_error(fmt::format("{}.enum: expected an array of values, found {}", path, json_excerpt(values)));
    }
    if (schema.contains("const")) {
      const Json& one = schema["const"];
      if (schema.contains("enum") && std::find(values.begin(), values.end(), one) == values.end())
        return input_error(path + ".const: expected one of the values of enum, found " + json_excerpt(one));
      values = Json::array({one});
    }
    for (const auto& [key, constraint] : schema.items()) {
      if (key == "enum" || key == "const" || key == "type") continue;
      return input_error(fmt::format("{}.{}: cannot be enforced beside enum or const; remove it", path, key));
    }
    const std::vector<std::string> types = types_of(schema);
    std::vector<ExprId> ways;
    for (const Json& v : values)
      if (types.empty() || std::any_of(types.begin(), types.end(), [&](const std::string& type) { return value_has_type(v, type); }))
        ways.push_back(literal(v));
    if (ways.empty()) return input_error(path + ": expected a value of the type among enum or const, found none");
    return ast_.alt(std::move(ways));
  }

  // --- strings
  Result<std::pair<uint32_t, uint32_t>> count_bounds(const Json& schema, const char* least, const char* most, const std::string& path) {
    uint64_t bounds[2] = {0, kUnlimited};
    int i = 0;
    for (const char* keyword : {least, most}) {
      uint64_t& bound = bounds[i++];
      if (!schema.contains(keyword)) continue;
      const Json& v = schema[keyword];
      const double number = v.is_number() ? v.get<double>() : -1;
      if (number < 0 || number > static_cast<double>(kMaxLength) || number != static_cast<double>(static_cast<uint64_t>(number)))
        return input_error(fmt::format("{}.{}: expected an integer from 0 to {}, found {}", path, keyword, kMaxLength, json_excerpt(v)));
      bound = static_cast<uint64_t>(number);
    }
    if (bounds[0] > bounds[1])
      return input_error(fmt::format("{}: expected {} <= {}, found {} and {}", path, least, most, bounds[0], bounds[1]));
    return std::pair(static_cast<uint32_t>(bounds[0]), static_cast<uint32_t>(bounds[1]));
  }

  Result<ExprId> string(const Json& schema, const std::string& path) {
    DG_ASSIGN(const auto length, count_bounds(schema, "minLength", "maxLength", path));
    std::vector<ExprId> all;
    Json patterns = schema.contains(kMergedPatterns) ? schema[kMergedPatterns] : Json::array();
    if (schema.contains("pattern")) patterns.push_back(schema["pattern"]);
    for (const Json& pattern : patterns) {
      if (!pattern.is_string()) return input_error(fmt::format("{}.pattern: expected a string, found {}", path, json_excerpt(pattern)));
      auto expr = add_regex(ast_, pattern.get_ref<const std::string&>(), {.search = true, .json_string = true});
      if (!expr.ok()) return input_error(fmt::format("{}.pattern: {}", path, expr.error().message));
      all.push_back(*expr);
    }
    if (schema.contains("format")) {
      const Json& format = schema["format"];
      const char* pattern = format.is_string() ? format_pattern(format.get<std::string>()) : nullptr;
      if (!pattern) return input_error(fmt::format("{}.format: expected {}, found {}", path, known_formats(), json_excerpt(format)));
      DG_ASSIGN(const ExprId expr, add_regex(ast_, pattern, {.json_string = true}));
      all.push_back(expr);
    }
    if (all.empty()) return ast_.string(length.first, length.second);
    if (length.first > 0 || length.second != kUnlimited) {
      if (length.first > kMaxRepeat || (length.second != kUnlimited && length.second > kMaxRepeat))
        return input_error(fmt::format("{}: expected minLength and maxLength of at most {} beside pattern or format", path, kMaxRepeat));
      all.push_back(ast_.repeat(json_any_char(ast_), length.first, length.second));
    }
    ExprId inside = all[0];
    for (size_t i = 1; i < all.size(); i++) inside = ast_.both(inside, all[i]);
    return ast_.seq({ast_.text("\""), inside, ast_.text("\"")});
  }

  // --- arrays
  Result<ExprId> array(const Json& schema, const std::string& path) {
    DG_ASSIGN(auto count, count_bounds(schema, "minItems", "maxItems", path));
    if (schema.contains("uniqueItems") && schema["uniqueItems"] != Json(false) && count.second > 1)
      return input_error(path + ".uniqueItems: cannot be enforced; remove it");
    const bool draft7 = schema.contains("items") && schema["items"].is_array();
    const char* prefix_keyword = draft7 ? "items" : "prefixItems";
    const char* rest_keyword = draft7 ? "additionalItems" : "items";
    Json prefix = schema.contains(prefix_keyword) ? schema[prefix_keyword] : Json::array();
    if (!prefix.is_array())
      return input_error(fmt::format("{}.{}: expected an array of schemas, found {}", path, prefix_keyword, json_excerpt(prefix)));
    const Json rest = schema.contains(rest_keyword) ? schema[rest_keyword] : Json(prefix.empty() || count.first > prefix.size());
    if (prefix.size() > count.second) prefix.erase(prefix.begin() + count.second, prefix.end());
    const bool more = rest != Json(false) && count.second > prefix.size();
    if (!more && count.first > prefix.size())
      return input_error(
          fmt::format("{}.minItems: expected at most {}, found {}; no further items are allowed", path, prefix.size(), count.first));

    const ExprId gap = json_gap(ast_), comma = ast_.seq({ast_.text(","), gap});
    const ExprId close = ast_.seq({gap, ast_.text("]")});
    // State 2 + k: k items have come, up to the end of the prefix or the first item.
    const auto listed = static_cast<uint32_t>(std::max<size_t>(prefix.size(), more ? 1 : 0));
    std::vector<Arc> arcs{{0, 2, ast_.seq({ast_.text("["), gap})}};
    if (count.first == 0) arcs.push_back({2, 1, ast_.text("]")});
    ExprId item = 0;
    if (more) {
      DG_ASSIGN(item, value(rest, fmt::format("{}.{}", path, rest_keyword)));
    }
    for (uint32_t k = 0; k < listed; k++) {
      ExprId one = item;
      if (k < prefix.size()) {
        DG_ASSIGN(one, value(prefix[k], fmt::format("{}.{}[{}]", path, prefix_keyword, k)));
      }
      arcs.push_back({2 + k, 3 + k, k == 0 ? one : ast_.seq({comma, one})});
      if (k + 1 < listed && k + 1 >= count.first) arcs.push_back({3 + k, 1, close});
    }
    const uint32_t least = count.first > listed ? count.first - listed : 0;
    const uint32_t most = !more ? 0 : count.second == kUnlimited ? kUnlimited : count.second - listed;
    if (listed > 0) {
      const ExprId next = most == 0 ? ast_.empty() : ast_.seq({comma, item});
      ExprId tail = ast_.empty();
      if (most == kUnlimited && least == 0) {
        tail = ast_.repeat(next, 0, kUnlimited);
      } else if (most > 0) {
        const RuleId rule = ast_.add_rule(path + " item");
        ast_.define(rule, next);
        tail = ast_.counted(rule, least, most);
      }
      arcs.push_back({2 + listed, 1, ast_.seq({tail, close})});
    }
    return in_rule(path, ast_.graph(3 + listed, std::move(arcs)));
  }

  // --- objects
  struct Property {
    std::string key;
    ExprId value = 0;
    bool required = false;
  };

  Result<std::vector<Property>> properties(const Json& schema, const Json& additional, const std::string& path) {
    std::vector<Property> out;
    std::vector<std::string> required;
    if (schema.contains("required")) {
      const Json& list = schema["required"];
      if (!list.is_array()) return input_error(fmt::format("{}.required: expected an array of names, found {}", path, json_excerpt(list)));
      for (const Json& name : list) {
        if (!name.is_string()) return input_error(fmt::format("{}.required: expected names, found {}", path, json_excerpt(name)));
        required.push_back(name.get<std::string>());
      }
      std::sort(required.begin(), required.end());
    }
    if (schema.contains("properties")) {
      const Json& declared = schema["properties"];
      if (!declared.is_object())
        return input_error(fmt::format("{}.properties: expected an object, found {}", path, json_excerpt(declared)));
      for (const auto& [key, property] : declared.items()) {
        const bool needed = std::binary_search(required.begin(), required.end(), key);
        if (property == Json(false) && !needed) continue;  // never present
        DG_ASSIGN(const ExprId expr, value(property, member_path(path, key)));
        out.push_back({key, expr, needed});
      }
    }
    required.erase(std::unique(required.begin(), required.end()), required.end());
    for (const std::string& name : required) {
      if (schema.contains("properties") && schema["properties"].contains(name)) continue;
      if (additional == Json(false))
        return input_error(fmt::format("{}.required: expected names among properties, found {}; additionalProperties is false", path,
                                       json_excerpt(Json(name))));
      DG_ASSIGN(const ExprId expr, value(additional, path + ".additionalProperties"));
      out.push_back({name, expr, true});
    }
    return out;
  }

  Result<ExprId> object(const Json& schema, const std::string& path) {
    DG_ASSIGN(auto count, count_bounds(schema, "minProperties", "maxProperties", path));
    const bool written = schema.contains("additionalProperties");
    const Json additional = written ? schema["additionalProperties"] : Json(true);
    if (!additional.is_boolean() && !additional.is_object())
      return input_error(
          fmt::format("{}.additionalProperties: expected true, false or a schema, found {}", path, json_excerpt(additional)));
    DG_ASSIGN(const std::vector<Property> all, properties(schema, additional, path));
    const bool declares = schema.contains("properties") && !schema["properties"].empty();
    const bool more = additional != Json(false) && (written || (!declares && all.empty()));

    const auto required = static_cast<size_t>(std::count_if(all.begin(), all.end(), [](const Property& p) { return p.required; }));
    if (required > count.second)
      return input_error(
          fmt::format("{}.maxProperties: expected at least the {} required properties, found {}", path, required, count.second));
    if (!more && count.first > all.size())
      return input_error(
          fmt::format("{}.minProperties: expected at most the {} declared properties, found {}", path, all.size(), count.first));
    // Keys that a model makes up may repeat, and then count once.
    if (more && count.first > required + 1)
      return input_error(
          fmt::format("{}.minProperties: {} cannot be enforced with additional properties; declare and require them", path, count.first));
    if (count.first <= required) count.first = 0;
    if (!more && count.second >= all.size()) count.second = kUnlimited;

    // State 2 + i * (cap + 1) + c: the first i properties are dealt with, c of all have come ("c or more" at the cap).
    const size_t cap = std::max<size_t>({count.first, count.second == kUnlimited ? 0 : count.second, 1});
    if ((all.size() + 1) * (cap + 1) > kMaxObjectStates)
      return input_error(fmt::format("{}: {} properties with minProperties or maxProperties {} need too many states; expected smaller ones",
                                     path, all.size(), cap));
    auto state = [&](size_t i, size_t c) { return static_cast<uint32_t>(2 + i * (cap + 1) + c); };
    const ExprId gap = json_gap(ast_), comma = ast_.seq({ast_.text(","), gap}), blank = ast_.optional(ast_.text(" "));
    const ExprId close = ast_.seq({gap, ast_.text("}")});
    std::vector<Arc> arcs{{0, state(0, 0), ast_.seq({ast_.text("{"), gap})}};
    for (size_t i = 0; i < all.size(); i++) {
      const ExprId member = ast_.seq({ast_.text(Json(all[i].key).dump() + ":"), blank, all[i].value});
      const ExprId next = ast_.seq({comma, member});
      for (size_t c = 0; c <= std::min(cap, i); c++) {
        if (c < count.second) arcs.push_back({state(i, c), state(i + 1, std::min(c + 1, cap)), c == 0 ? member : next});
        if (!all[i].required) arcs.push_back({state(i, c), state(i + 1, c), ast_.empty()});
      }
    }
    const size_t n = all.size();
    if (more) {
      std::vector<std::string> taken;
      for (const Property& p : all) taken.push_back(Json(p.key).dump());
      if (declares)  // properties that are false
        for (const auto& [key, property] : schema["properties"].items())
          if (property == Json(false)) taken.push_back(Json(key).dump());
      // Declared keys are excluded; a key that could spell one with escapes is not written at all.
      const ExprId raw = ast_.chars({{0x20, 0x21}, {0x23, 0x5b}, {0x5d, unicode::kMaxCodePoint}});
      const ExprId key = taken.empty() ? ast_.string(0, kUnlimited)
                                       : ast_.except(ast_.seq({ast_.text("\""), ast_.repeat(raw, 0, kUnlimited), ast_.text("\"")}), taken);
      DG_ASSIGN(const ExprId any, value(additional, path + ".additionalProperties"));
      const ExprId member = ast_.seq({key, ast_.text(":"), blank, any});
      for (size_t c = 0; c <= cap; c++)
        if (c < count.second) arcs.push_back({state(n, c), state(n, std::min(c + 1, cap)), c == 0 ? member : ast_.seq({comma, member})});
    }
    for (size_t c = count.first; c <= cap; c++) arcs.push_back({state(n, c), 1, c == 0 ? ast_.text("}") : close});
    return in_rule(path, ast_.graph(state(n, cap) + 1, std::move(arcs)));
  }

  Ast& ast_;
  SchemaMerger merger_;
  std::optional<JsonRules> json_;
  std::map<std::string, RuleId> references_;
  std::deque<std::string> pending_;
  size_t schemas_ = 0;
  int depth_ = 0;
};

}  // namespace

Result<RuleId> add_schema(Ast& ast, std::string_view json_text) {
  auto schema = parse_json(json_text, "$");
  if (!schema.ok()) return schema.error();
  return SchemaBuilder(ast, *schema).run();
}

}  // namespace dg::grammar
