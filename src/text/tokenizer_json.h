// Reading tokenizer.json: a value together with the path to it, so that every error names the place.
#pragma once
#include <string>
#include <string_view>

#include "base/json_fwd.h"
#include "base/result.h"
#include "text/regex.h"

namespace dg {

class JsonField {
 public:
  JsonField(const SortedJson& value, std::string path) : value_(&value), path_(std::move(path)) {}

  const SortedJson& value() const { return *value_; }
  const std::string& path() const { return path_; }

  bool has(std::string_view key) const;  // an object with this key, whose value is not null
  Result<JsonField> member(std::string_view key) const;
  JsonField element(size_t index) const;  // of an array; index < size()
  Result<size_t> array_size() const;      // an error unless it is an array

  Result<std::string> text() const;
  Result<int64_t> integer(int64_t low, int64_t high) const;
  Result<bool> boolean() const;

  // Member `key`; `fallback` when it is absent or null.
  Result<std::string> text(std::string_view key) const;
  Result<std::string> text_or(std::string_view key, std::string fallback) const;
  Result<bool> boolean_or(std::string_view key, bool fallback) const;

  // The "type" of a normalizer, pre-tokenizer, ... object.
  Result<std::string> type() const { return text("type"); }

  Error expected(std::string_view what) const;  // "path: expected what, found ..."
  Error unsupported(std::string_view what, std::string_view choices) const;

 private:
  const SortedJson* value_;
  std::string path_;
};

// A "pattern" as Split and Replace have it, {"String": s} or {"Regex": s}, as a regular expression.
Result<Regex> pattern_of(const JsonField& owner);
std::string escape_regex(std::string_view literal);

}  // namespace dg
