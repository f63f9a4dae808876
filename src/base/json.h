// JSON on nlohmann::json, with the limits that make untrusted input safe: a size limit, a depth limit and UTF-8
// validation. Objects keep the order of their keys (`Json`), which prompt encoders need; documents with huge objects
// (tokenizer.json: 128k keys) use `SortedJson`, whose look-up is logarithmic.
//
// Heavy header: include it only in .cpp files and use base/json_fwd.h in headers.
#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/json_fwd.h"
#include "base/result.h"

namespace dg {

struct JsonLimits {
  size_t max_bytes = size_t{64} << 20;
  int max_depth = 64;
  // Members of one object. `Json` searches them one after the other, so a large object costs quadratic time; SortedJson
  // ignores this limit.
  int max_members = 2048;
};

// Parses `text`. On failure the message names `origin` (a file or field), the byte offset and the reason.
Result<Json> parse_json(std::string_view text, std::string_view origin, JsonLimits limits = {});
Result<SortedJson> parse_sorted_json(std::string_view text, std::string_view origin, JsonLimits limits = {});

// Reads and parses a file; refuses one above the size limit before reading it.
Result<Json> read_json_file(const std::string& path, JsonLimits limits = {});
Result<SortedJson> read_sorted_json_file(const std::string& path, JsonLimits limits = {});

// Serialises like Python's json.dumps(ensure_ascii=False): separators ", " and ": "; with indent >= 0, newlines.
std::string dump_json_python(const Json& value, int indent = -1);

}  // namespace dg
