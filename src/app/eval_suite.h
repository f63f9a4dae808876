// The questions of `dougong eval --suite` and how an answer is judged: the rules of models/mini-r1/MODEL_CARD.md and of
// `judge` in tools/mini-r1/evalx.py.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"

namespace dg {

enum class MatchKind { kExact, kContains, kLastNumber, kJson, kTool, kOpen };

struct EvalQuestion {
  std::string task, id;         // id as JSON text
  std::string messages, tools;  // JSON texts; tools "null" when there are none
  std::optional<bool> thinking;
  MatchKind match = MatchKind::kOpen;
  std::string match_name, answer;
  int64_t line = 0;
};

// Errors name file:line and field.
Result<std::vector<EvalQuestion>> read_eval_suite(const std::string& path);
Result<std::vector<EvalQuestion>> parse_eval_suite(std::string_view text, const std::string& origin);

// `limit` questions spread evenly over the suite; 0: all.
std::vector<EvalQuestion> spread_questions(std::vector<EvalQuestion> all, int64_t limit);

// `text` is the whole generated text, without the end-of-sequence token but with <think> and tool-call markup.
// nullopt: `open`, not judged.
std::optional<bool> judge_answer(const EvalQuestion& question, std::string_view text);

}  // namespace dg
