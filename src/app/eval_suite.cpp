#include "app/eval_suite.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/file.h"
#include "base/json.h"
#include "config/options.h"
#include "text/unicode.h"

namespace dg {
namespace {

constexpr size_t kMaxSuiteBytes = size_t{512} << 20;

struct Kind {
  const char* name;
  MatchKind kind;
};
constexpr Kind kKinds[] = {{"exact", MatchKind::kExact}, {"contains", MatchKind::kContains}, {"lastnum", MatchKind::kLastNumber},
                           {"json", MatchKind::kJson},   {"tool", MatchKind::kTool},         {"open", MatchKind::kOpen}};

// What Python's str.strip() removes: White_Space and the four information separators.
bool is_python_space(char32_t c) { return unicode::is_white_space(c) || (c >= 0x1c && c <= 0x1f); }

std::string_view stripped(std::string_view text) {
  while (!text.empty()) {
    unicode::Decoded first = unicode::decode(text.data(), text.data() + text.size());
    if (!is_python_space(first.code)) break;
    text.remove_prefix(first.bytes);
  }
  while (!text.empty()) {
    size_t at = text.size() - 1;
    while (at > 0 && text.size() - at < 4 && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) at--;
    if (!is_python_space(unicode::decode(text.data() + at, text.data() + text.size()).code)) break;
    text = text.substr(0, at);
  }
  return text;
}

void remove_all(std::string& text, std::string_view what) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos;) text.erase(at, what.size());
}

// The last match of -?\d+(?:\.\d+)?, found from the left as Python's findall does; \d is any decimal digit of Unicode.
std::string last_number(std::string_view text) {
  const char* end = text.data() + text.size();
  auto digits = [&](const char* at) {
    while (at < end) {
      unicode::Decoded c = unicode::decode(at, end);
      if (unicode::category(c.code) != unicode::Category::kNd) break;
      at += c.bytes;
    }
    return at;
  };
  std::string last;
  for (const char* at = text.data(); at < end;) {
    const char* begin = at;
    const char* whole = digits(*at == '-' ? at + 1 : at);
    if (whole == (*at == '-' ? at + 1 : at)) {
      at += unicode::decode(at, end).bytes;
      continue;
    }
    at = whole;
    if (at < end && *at == '.') {
      const char* fraction = digits(at + 1);
      if (fraction > at + 1) at = fraction;
    }
    last.assign(begin, at);
  }
  return last;
}

// Python's ==: numbers by value, true equals 1, objects without order.
bool python_equal(const SortedJson& a, const SortedJson& b) {
  auto numeric = [](const SortedJson& x) { return x.is_number() || x.is_boolean(); };
  auto value = [](const SortedJson& x) { return x.is_boolean() ? SortedJson(x.get<bool>() ? 1 : 0) : x; };
  if (numeric(a) && numeric(b)) return value(a) == value(b);
  if (a.type() != b.type()) return false;
  if (a.is_array()) return std::equal(a.begin(), a.end(), b.begin(), b.end(), python_equal);
  if (a.is_object()) {
    if (a.size() != b.size()) return false;
    for (auto& [key, item] : a.items())
      if (auto it = b.find(key); it == b.end() || !python_equal(item, *it)) return false;
    return true;
  }
  return a == b;
}

// [[name, arguments], ...] of the calls in the text; false when the arguments of one are not JSON.
bool parse_tool_calls(std::string_view text, SortedJson* calls) {
  constexpr std::string_view kBegin = "<｜tool▁call▁begin｜>", kSeparator = "<｜tool▁sep｜>", kEnd = "<｜tool▁call▁end｜>";
  *calls = SortedJson::array();
  for (size_t at = 0; (at = text.find(kBegin, at)) != std::string_view::npos;) {
    size_t name = at + kBegin.size(), separator = text.find(kSeparator, name);
    size_t arguments = separator == std::string_view::npos ? separator : separator + kSeparator.size();
    size_t end = arguments == std::string_view::npos ? arguments : text.find(kEnd, arguments);
    if (end == std::string_view::npos) break;
    auto parsed = parse_sorted_json(text.substr(arguments, end - arguments), "arguments");
    if (!parsed.ok()) return false;
    calls->push_back(SortedJson::array({std::string(text.substr(name, separator - name)), *parsed}));
    at = end + kEnd.size();
  }
  return true;
}

Result<EvalQuestion> parse_question(std::string_view line, const std::string& where) {
  DG_ASSIGN(Json object, parse_json(line, where));
  auto shown = [](const Json& value) { return in_quotes(value.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 60)); };
  auto wrong = [&](const char* field, const char* expected) {
    return input_error(
        fmt::format("{}: {}: expected {}, found {}", where, field, expected, object.contains(field) ? shown(object[field]) : "nothing"));
  };
  if (!object.is_object()) return input_error(fmt::format("{}: expected an object, found {}", where, shown(object)));
  EvalQuestion q;
  if (!object.contains("messages") || !object["messages"].is_array() || object["messages"].empty())
    return wrong("messages", "a list of {\"role\", \"content\"}");
  q.messages = object["messages"].dump();
  if (object.contains("tools") && !object["tools"].is_null() && !object["tools"].is_array()) return wrong("tools", "a list or null");
  q.tools = object.contains("tools") ? object["tools"].dump() : "null";
  if (object.contains("thinking") && !object["thinking"].is_null()) {
    if (!object["thinking"].is_boolean()) return wrong("thinking", "true or false");
    q.thinking = object["thinking"].get<bool>();
  }
  if (!object.contains("match") || !object["match"].is_string()) return wrong("match", "exact, contains, lastnum, json, tool or open");
  q.match_name = object["match"].get<std::string>();
  auto kind = std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return q.match_name == k.name; });
  if (kind == std::end(kKinds)) return wrong("match", "exact, contains, lastnum, json, tool or open");
  q.match = kind->kind;
  if (object.contains("answer") && object["answer"].is_string()) q.answer = object["answer"].get<std::string>();
  else if (q.match != MatchKind::kOpen) return wrong("answer", "a string");
  if ((q.match == MatchKind::kJson || q.match == MatchKind::kTool) && !parse_sorted_json(q.answer, "answer").ok())
    return wrong("answer", "JSON in a string");
  q.task = "all";
  if (object.contains("task")) {
    if (!object["task"].is_string()) return wrong("task", "a string");
    q.task = object["task"].get<std::string>();
  }
  q.id = object.contains("id") ? object["id"].dump() : "null";
  return q;
}

}  // namespace

Result<std::vector<EvalQuestion>> parse_eval_suite(std::string_view text, const std::string& origin) {
  std::vector<EvalQuestion> questions;
  for (int64_t number = 1; !text.empty(); number++) {
    size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    DG_ASSIGN(EvalQuestion question, parse_question(line, fmt::format("{}:{}", origin, number)));
    question.line = number;
    questions.push_back(std::move(question));
  }
  if (questions.empty()) return input_error(fmt::format("{}: expected one question a line, found none", origin));
  return questions;
}

Result<std::vector<EvalQuestion>> read_eval_suite(const std::string& path) {
  DG_ASSIGN(std::string text, read_file(path, kMaxSuiteBytes));
  return parse_eval_suite(text, path);
}

std::vector<EvalQuestion> spread_questions(std::vector<EvalQuestion> all, int64_t limit) {
  auto wanted = static_cast<size_t>(limit);
  if (limit <= 0 || wanted >= all.size()) return all;
  size_t step = all.size() / wanted;
  std::vector<EvalQuestion> out;
  for (size_t i = 0; i < all.size() && out.size() < wanted; i += step) out.push_back(std::move(all[i]));
  return out;
}

std::optional<bool> judge_answer(const EvalQuestion& question, std::string_view text) {
  constexpr std::string_view kThinkEnd = "</think>";
  if (size_t at = text.rfind(kThinkEnd); at != std::string_view::npos) text.remove_prefix(at + kThinkEnd.size());
  std::string whole(text);
  remove_all(whole, "<｜end▁of▁sentence｜>");
  std::string_view content = stripped(whole);
  switch (question.match) {
    case MatchKind::kExact: return content == stripped(question.answer);
    case MatchKind::kContains: return content.find(question.answer) != std::string_view::npos;
    case MatchKind::kLastNumber: {
      std::string number = last_number(content);
      return !number.empty() && number == question.answer;
    }
    case MatchKind::kJson: {
      auto got = parse_sorted_json(content, "answer"), wanted = parse_sorted_json(question.answer, "answer");
      return got.ok() && wanted.ok() && python_equal(*got, *wanted);
    }
    case MatchKind::kTool: {
      SortedJson calls;
      auto wanted = parse_sorted_json(question.answer, "answer");
      return parse_tool_calls(content, &calls) && wanted.ok() && python_equal(calls, *wanted);
    }
    case MatchKind::kOpen: return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace dg
