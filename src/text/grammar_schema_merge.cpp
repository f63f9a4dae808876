#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/json.h"
#include "text/grammar_schema_parts.h"

namespace dg::grammar {
namespace {

constexpr int kMaxMerges = 4000;  // references can double the work of each level
constexpr int kMaxMergeDepth = 64;

constexpr std::array<std::string_view, 19> kAnnotations = {
    "title",   "description",      "default",         "example",       "examples",   "$schema", "$id",
    "id",      "$comment",         "deprecated",      "readOnly",      "writeOnly",  "$defs",   "definitions",
    "$anchor", "contentMediaType", "contentEncoding", "discriminator", "$vocabulary"};
constexpr std::array<std::string_view, 29> kKeywords = {"type",
                                                        "properties",
                                                        "required",
                                                        "additionalProperties",
                                                        "minProperties",
                                                        "maxProperties",
                                                        "enum",
                                                        "const",
                                                        "anyOf",
                                                        "oneOf",
                                                        "allOf",
                                                        "$ref",
                                                        "items",
                                                        "prefixItems",
                                                        "additionalItems",
                                                        "minItems",
                                                        "maxItems",
                                                        "uniqueItems",
                                                        "minLength",
                                                        "maxLength",
                                                        "pattern",
                                                        "format",
                                                        "minimum",
                                                        "maximum",
                                                        "exclusiveMinimum",
                                                        "exclusiveMaximum",
                                                        "multipleOf",
                                                        "nullable",
                                                        kMergedPatterns};

constexpr std::array<std::string_view, 7> kTypes = {"null", "boolean", "object", "array", "number", "string", "integer"};

template <size_t N>
bool contains_word(const std::array<std::string_view, N>& words, std::string_view word) {
  return !word.empty() && std::find(words.begin(), words.end(), word) != words.end();
}

bool has_type(const std::vector<std::string>& types, std::string_view type) {
  return std::find(types.begin(), types.end(), type) != types.end();
}

Json type_list(const std::vector<std::string>& types) {
  Json list = Json::array();
  for (const std::string& type : types) list.push_back(type);
  return list;
}

std::vector<std::string> written_types(const Json& schema) {
  std::vector<std::string> types;
  if (!schema.contains("type")) return types;
  const Json& type = schema["type"];
  if (type.is_string()) types.push_back(type.get<std::string>());
  if (type.is_array())
    for (const Json& one : type)
      if (one.is_string()) types.push_back(one.get<std::string>());
  return types;
}

Result<std::vector<std::string>> common_types(const std::vector<std::string>& a, const std::vector<std::string>& b,
                                              const std::string& path) {
  std::vector<std::string> both;
  for (const std::string& type : a) {
    const bool shared = has_type(b, type) || (type == "integer" && has_type(b, "number"));
    if (shared) both.push_back(type);
    else if (type == "number" && has_type(b, "integer")) both.push_back("integer");
  }
  if (both.empty()) return input_error(fmt::format("{}: expected schemas with a common type; no value satisfies all of them", path));
  return both;
}

// Values that `enum` or `const` list; null when the schema has neither.
const Json* listed(const Json& schema, Json& scratch) {
  if (schema.contains("const")) {
    scratch = Json::array({schema["const"]});
    return &scratch;
  }
  return schema.contains("enum") && schema["enum"].is_array() ? &schema["enum"] : nullptr;
}

const Json& property(const Json& schema, const std::string& name) {
  static const Json kTrue = true;
  return schema.contains("properties") && schema["properties"].contains(name) ? schema["properties"][name] : kTrue;
}

std::vector<std::string> names_required(const Json& schema) {
  std::vector<std::string> names;
  if (schema.contains("required") && schema["required"].is_array())
    for (const Json& name : schema["required"])
      if (name.is_string()) names.push_back(name.get<std::string>());
  return names;
}

}  // namespace

bool is_annotation(std::string_view keyword) { return contains_word(kAnnotations, keyword) || keyword.starts_with("x-"); }

std::string json_excerpt(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  std::string text = value.dump(-1, ' ', true);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

Result<void> check_keywords(const Json& schema, const std::string& path, bool merged) {
  if (!schema.is_object())
    return input_error(fmt::format("{}: expected a schema (an object, true or false), found {}", path, json_excerpt(schema)));
  for (const auto& [key, value] : schema.items()) {
    if (is_annotation(key) || (contains_word(kKeywords, key) && (merged || key != kMergedPatterns))) continue;
    return input_error(fmt::format("{}: keyword {} cannot be enforced; remove it", path, json_excerpt(key)));
  }
  if (!schema.contains("type")) return {};
  const Json& type = schema["type"];
  const Json list = type.is_array() ? type : Json::array({type});
  if (list.empty()) return input_error(fmt::format("{}.type: expected at least one type, found none", path));
  for (const Json& one : list) {
    if (one.is_string() && contains_word(kTypes, one.get<std::string>())) continue;
    return input_error(
        fmt::format("{}.type: expected null, boolean, object, array, number, string or integer, found {}", path, json_excerpt(one)));
  }
  return {};
}

std::vector<std::string> types_of(const Json& schema) {
  if (schema.contains("type")) return written_types(schema);
  struct Implied {
    const char* keyword;
    const char* type;
  };
  static constexpr Implied kImplied[] = {
      {"properties", "object"},       {"required", "object"},      {"additionalProperties", "object"},
      {"minProperties", "object"},    {"maxProperties", "object"}, {"items", "array"},
      {"prefixItems", "array"},       {"minItems", "array"},       {"maxItems", "array"},
      {"uniqueItems", "array"},       {"minLength", "string"},     {"maxLength", "string"},
      {"pattern", "string"},          {"format", "string"},        {kMergedPatterns, "string"},
      {"minimum", "number"},          {"maximum", "number"},       {"exclusiveMinimum", "number"},
      {"exclusiveMaximum", "number"}, {"multipleOf", "number"},    {"additionalItems", "array"},
  };
  std::vector<std::string> types;
  for (const Implied& implied : kImplied)
    if (schema.contains(implied.keyword) && !has_type(types, implied.type)) types.push_back(implied.type);
  return types;
}

bool value_has_type(const Json& value, std::string_view type) {
  if (type == "null") return value.is_null();
  if (type == "boolean") return value.is_boolean();
  if (type == "object") return value.is_object();
  if (type == "array") return value.is_array();
  if (type == "string") return value.is_string();
  if (type == "number") return value.is_number();
  if (value.is_number_integer()) return true;
  return value.is_number_float() && std::floor(value.get<double>()) == value.get<double>();
}

Result<const Json*> SchemaMerger::resolve(const std::string& ref, const std::string& path) const {
  auto missing = [&] {
    return input_error(fmt::format("{}.$ref: expected a place in this schema, found {}", path, json_excerpt(Json(ref))));
  };
  if (!ref.starts_with("#") || (ref.size() > 1 && ref[1] != '/'))
    return input_error(
        fmt::format("{}.$ref: expected a reference inside the schema (#/$defs/name), found {}", path, json_excerpt(Json(ref))));
  std::string pointer;
  for (size_t i = 1; i < ref.size(); i++) {  // "%25" is '%'
    auto hex = [](char c) { return c >= '0' && c <= '9' ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : -1; };
    if (ref[i] == '%' && i + 2 < ref.size() && hex(ref[i + 1]) >= 0 && hex(ref[i + 2]) >= 0) {
      pointer += static_cast<char>(hex(ref[i + 1]) * 16 + hex(ref[i + 2]));
      i += 2;
    } else {
      pointer += ref[i];
    }
  }
  const Json* at = &root_;
  for (size_t begin = 0; begin < pointer.size();) {
    const size_t end = std::min(pointer.find('/', begin + 1), pointer.size());
    std::string name;
    for (size_t i = begin + 1; i < end; i++) {
      if (pointer[i] == '~' && i + 1 < end && (pointer[i + 1] == '0' || pointer[i + 1] == '1')) name += pointer[++i] == '0' ? '~' : '/';
      else name += pointer[i];
    }
    if (at->is_object() && at->contains(name)) {
      at = &(*at)[name];
    } else if (at->is_array() && !name.empty() && name.size() < 7 && name.find_first_not_of("0123456789") == std::string::npos &&
               std::stoul(name) < at->size()) {
      at = &(*at)[std::stoul(name)];
    } else {
      return missing();
    }
    begin = end;
  }
  return at;
}

Result<Json> SchemaMerger::flatten(const Json& schema, const std::string& path, int depth) {
  if (schema.is_boolean()) {
    if (schema.get<bool>()) return Json::object();
    return input_error(path + ": expected a schema that some value satisfies, found false");
  }
  DG_TRY(check_keywords(schema, path, false));
  if (schema.contains("$ref") || schema.contains("allOf")) merges_++;
  if (depth > kMaxMergeDepth || merges_ > kMaxMerges)
    return input_error(path + ": references and allOf nest too deeply to be merged; expected fewer of them, without cycles");
  Json flat = Json::object();
  for (const auto& [key, value] : schema.items())
    if (!is_annotation(key) && key != "$ref" && key != "allOf") flat[key] = value;
  if (schema.contains("$ref")) {
    if (!schema["$ref"].is_string())
      return input_error(fmt::format("{}.$ref: expected a string, found {}", path, json_excerpt(schema["$ref"])));
    DG_ASSIGN(const Json* target, resolve(schema["$ref"].get<std::string>(), path));
    DG_ASSIGN(const Json other, flatten(*target, path + ".$ref", depth + 1));
    DG_ASSIGN(flat, merge(flat, other, path));
  }
  if (schema.contains("allOf")) {
    const Json& all = schema["allOf"];
    if (!all.is_array() || all.empty())
      return input_error(fmt::format("{}.allOf: expected an array of schemas, found {}", path, json_excerpt(all)));
    for (size_t i = 0; i < all.size(); i++) {
      DG_ASSIGN(const Json other, flatten(all[i], fmt::format("{}.allOf[{}]", path, i), depth + 1));
      DG_ASSIGN(flat, merge(flat, other, path));
    }
  }
  return flat;
}

// A closed object forbids the properties that only the other schema declares; such a merge says more than we can write.
Result<void> SchemaMerger::check_closed(const Json& closed, const Json& other, const std::string& path) const {
  if (!closed.contains("additionalProperties") || closed["additionalProperties"] == Json(true)) return {};
  std::vector<std::string> names = names_required(other);
  if (other.contains("properties") && other["properties"].is_object())
    for (const auto& [name, value] : other["properties"].items()) names.push_back(name);
  for (const std::string& name : names) {
    if (closed.contains("properties") && closed["properties"].contains(name)) continue;
    return input_error(
        fmt::format("{}: additionalProperties of one schema bears on property {} of another; declare the property in both or "
                    "remove additionalProperties",
                    path, json_excerpt(Json(name))));
  }
  return {};
}

Result<Json> SchemaMerger::merge(const Json& a, const Json& b, const std::string& path) {
  if (++merges_ > kMaxMerges) return input_error(path + ": too many references and allOf to merge; expected fewer of them");
  DG_TRY(check_closed(a, b, path));
  DG_TRY(check_closed(b, a, path));
  Json out = a;
  for (const auto& [key, value] : b.items()) {
    if (is_annotation(key)) continue;
    if (!out.contains(key)) {
      if (key == "nullable") continue;  // null must satisfy both
      out[key] = value;
      continue;
    }
    Json& mine = out[key];
    if (mine == value) continue;
    auto number = [&mine, &other = value] { return mine.is_number() && other.is_number(); };
    if (key == "type") {
      DG_ASSIGN(const auto both, common_types(written_types(a), written_types(b), path));
      mine = type_list(both);
    } else if (key == "properties" && mine.is_object() && value.is_object()) {
      for (const auto& [name, schema] : value.items()) {
        if (!mine.contains(name)) mine[name] = schema;
        else if (mine[name] != schema) mine[name] = Json{{"allOf", Json::array({Json(mine[name]), schema})}};
      }
    } else if (key == "required" && mine.is_array() && value.is_array()) {
      for (const Json& name : value)
        if (std::find(mine.begin(), mine.end(), name) == mine.end()) mine.push_back(name);
    } else if (key.starts_with("min") || key == "exclusiveMinimum") {
      if (!number()) return input_error(fmt::format("{}.{}: expected a number", path, key));
      if (value > mine) mine = value;
    } else if (key.starts_with("max") || key == "exclusiveMaximum") {
      if (!number()) return input_error(fmt::format("{}.{}: expected a number", path, key));
      if (value < mine) mine = value;
    } else if (key == "pattern") {
      out[kMergedPatterns].push_back(value);
    } else if (key == kMergedPatterns) {
      for (const Json& pattern : value) mine.push_back(pattern);
    } else if (key == "enum" && mine.is_array() && value.is_array()) {
      Json both = Json::array();
      for (const Json& one : mine)
        if (std::find(value.begin(), value.end(), one) != value.end()) both.push_back(one);
      if (both.empty()) return input_error(path + ".enum: expected a value common to the merged schemas, found none");
      mine = both;
    } else if (key == "additionalProperties" || key == "items") {
      if (mine == Json(false) || value == Json(false)) mine = false;
      else mine = Json{{"allOf", Json::array({Json(mine), value})}};
    } else if (key == "uniqueItems" || key == "nullable") {
      mine = key == "nullable" ? Json(false) : Json(true);
    } else {
      return input_error(fmt::format("{}.{}: expected one value, found two that cannot be merged", path, key));
    }
  }
  if (!b.contains("nullable")) out.erase("nullable");
  return out;
}

Result<bool> SchemaMerger::disjoint(const Json& first, const Json& second, const std::string& path, int depth) {
  if (depth > 4) return false;
  DG_ASSIGN(const Json a, flatten(first, path));
  DG_ASSIGN(const Json b, flatten(second, path));
  if (a.contains("nullable") || b.contains("nullable")) return false;
  Json scratch_a, scratch_b;
  const Json* values_a = listed(a, scratch_a);
  const Json* values_b = listed(b, scratch_b);
  if (values_a && values_b) {
    return std::none_of(values_a->begin(), values_a->end(),
                        [&](const Json& value) { return std::find(values_b->begin(), values_b->end(), value) != values_b->end(); });
  }
  auto types = [](const Json& schema, const Json* values) {
    std::vector<std::string> out = types_of(schema);
    if (values && !schema.contains("type")) {
      out.clear();
      for (std::string_view type : kTypes)
        if (std::any_of(values->begin(), values->end(), [&](const Json& v) { return value_has_type(v, type); })) out.emplace_back(type);
    }
    return out;
  };
  const auto types_a = types(a, values_a), types_b = types(b, values_b);
  if (types_a.empty() || types_b.empty()) return false;
  const bool written = (a.contains("type") || values_a) && (b.contains("type") || values_b);  // implied types bind our texts only
  if (written && !common_types(types_a, types_b, path).ok()) return true;
  if (values_a || values_b || types_a != std::vector<std::string>{"object"} || types_a != types_b) return false;
  for (const auto& [closed, other] : {std::pair(&a, &b), std::pair(&b, &a)}) {
    if (!closed->contains("additionalProperties") || (*closed)["additionalProperties"] != Json(false)) continue;
    for (const std::string& name : names_required(*other))
      if (!closed->contains("properties") || !(*closed)["properties"].contains(name)) return true;
  }
  const auto required_b = names_required(b);
  for (const std::string& name : names_required(a)) {
    if (std::find(required_b.begin(), required_b.end(), name) == required_b.end()) continue;
    DG_ASSIGN(const bool apart, disjoint(property(a, name), property(b, name), path, depth + 1));
    if (apart) return true;
  }
  return false;
}

}  // namespace dg::grammar
