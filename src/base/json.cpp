#include "base/json.h"

#include <fmt/core.h>

#include <type_traits>
#include <vector>

#include "base/file.h"

namespace dg {
namespace {

// Checks the limits by one linear scan, so that a hostile document is refused before any parser recursion or allocation.
// Returns "" or what is wrong.
std::string check_limits(std::string_view text, const JsonLimits& limits, bool limit_members) {
  std::vector<int> members;  // values seen so far at each open level; -1: an array
  bool in_string = false;
  for (size_t i = 0; i < text.size(); i++) {
    char c = text[i];
    if (c == '\0') return fmt::format("NUL byte at byte {}", i);
    if (in_string) {
      if (c == '\\') i++;
      else if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (static_cast<int>(members.size()) == limits.max_depth)
        return fmt::format("JSON nested deeper than {} levels at byte {}", limits.max_depth, i);
      members.push_back(c == '{' ? 0 : -1);
    } else if (c == '}' || c == ']') {
      if (!members.empty()) members.pop_back();
    } else if (c == ':' && limit_members && !members.empty() && members.back() >= 0) {
      if (++members.back() > limits.max_members)
        return fmt::format("a JSON object with more than {} members at byte {}", limits.max_members, i);
    }
  }
  return "";
}

template <class J>
Result<J> parse_any(std::string_view text, std::string_view origin, JsonLimits limits) {
  if (text.size() > limits.max_bytes)
    return input_error(fmt::format("{}: {} bytes of JSON, at most {} are accepted", origin, text.size(), limits.max_bytes));
  std::string wrong = check_limits(text, limits, std::is_same_v<J, Json>);
  if (!wrong.empty()) return input_error(fmt::format("{}: {}", origin, wrong));
  try {
    return J::parse(text.begin(), text.end());
  } catch (const nlohmann::json::parse_error& e) {
    std::string_view what = e.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." -> keep the part for people
    size_t at = what.find("parse error");
    if (at != std::string_view::npos) what.remove_prefix(at);
    std::string reason(what.substr(0, 300));
    for (char& c : reason)
      if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    return input_error(fmt::format("{}: not valid JSON: {}", origin, reason));
  } catch (const std::exception& e) {
    return input_error(fmt::format("{}: not valid JSON: {}", origin, e.what()));
  }
}

void dump_into(const Json& value, int indent, int level, std::string& out) {
  auto newline = [&](int at) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent) * static_cast<size_t>(at), ' ');
  };
  if (value.is_object()) {
    if (value.empty()) {
      out += "{}";
      return;
    }
    out += '{';
    bool first = true;
    for (auto& [key, item] : value.items()) {
      if (!first) out += indent < 0 ? ", " : ",";
      first = false;
      newline(level + 1);
      out += Json(key).dump();
      out += ": ";
      dump_into(item, indent, level + 1, out);
    }
    newline(level);
    out += '}';
  } else if (value.is_array()) {
    if (value.empty()) {
      out += "[]";
      return;
    }
    out += '[';
    bool first = true;
    for (auto& item : value) {
      if (!first) out += indent < 0 ? ", " : ",";
      first = false;
      newline(level + 1);
      dump_into(item, indent, level + 1, out);
    }
    newline(level);
    out += ']';
  } else {
    out += value.dump(-1, ' ', false, Json::error_handler_t::replace);
  }
}

template <class J>
Result<J> read_any(const std::string& path, JsonLimits limits) {
  DG_ASSIGN(std::string text, read_file(path, limits.max_bytes));
  return parse_any<J>(text, path, limits);
}

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view origin, JsonLimits limits) { return parse_any<Json>(text, origin, limits); }
Result<SortedJson> parse_sorted_json(std::string_view text, std::string_view origin, JsonLimits limits) {
  return parse_any<SortedJson>(text, origin, limits);
}
Result<Json> read_json_file(const std::string& path, JsonLimits limits) { return read_any<Json>(path, limits); }
Result<SortedJson> read_sorted_json_file(const std::string& path, JsonLimits limits) { return read_any<SortedJson>(path, limits); }

std::string dump_json_python(const Json& value, int indent) {
  std::string out;
  dump_into(value, indent, 0, out);
  return out;
}

}  // namespace dg
