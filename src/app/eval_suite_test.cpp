#include "app/eval_suite.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dg {
namespace {

using ::testing::HasSubstr;

EvalQuestion question(MatchKind match, std::string answer) {
  EvalQuestion q;
  q.match = match;
  q.answer = std::move(answer);
  return q;
}
bool right(MatchKind match, const std::string& answer, const std::string& text) {
  return judge_answer(question(match, answer), text).value();
}

TEST(Judge, LooksBehindTheLastThinkTag) {
  EXPECT_TRUE(right(MatchKind::kExact, "17:08", "It is 5.</think>no</think>\n\n17:08 \xe3\x80\x80\n"));
  EXPECT_TRUE(right(MatchKind::kExact, " a b ", "a b<｜end▁of▁sentence｜>"));
  EXPECT_FALSE(right(MatchKind::kExact, "17:08", "17:08</think>"));
  EXPECT_FALSE(right(MatchKind::kExact, "a", "A"));
}

TEST(Judge, Contains) {
  EXPECT_TRUE(right(MatchKind::kContains, "French", "The language is French."));
  EXPECT_FALSE(right(MatchKind::kContains, "French", "French</think>Spanish"));
}

// Expected values from Python: re.findall(r'-?\d+(?:\.\d+)?', text)[-1].
TEST(Judge, LastNumber) {
  EXPECT_TRUE(right(MatchKind::kLastNumber, "42", "12 + 30 = 42."));
  EXPECT_TRUE(right(MatchKind::kLastNumber, "3.50", "so 3.50"));
  EXPECT_TRUE(right(MatchKind::kLastNumber, "-7", "x = -7"));
  EXPECT_TRUE(right(MatchKind::kLastNumber, "-3", "5-3"));
  EXPECT_TRUE(right(MatchKind::kLastNumber, "3", "1.2.3"));
  EXPECT_TRUE(right(MatchKind::kLastNumber, "4", "--4.") == false);
  EXPECT_TRUE(right(MatchKind::kLastNumber, "-4", "--4."));
  EXPECT_FALSE(right(MatchKind::kLastNumber, "3.5", "3.50"));
  EXPECT_FALSE(right(MatchKind::kLastNumber, "", "none"));
  EXPECT_FALSE(right(MatchKind::kLastNumber, "4", "4 or \xef\xbc\x95")) << "a full-width five is a digit as well";
}

TEST(Judge, JsonComparesAsPython) {
  EXPECT_TRUE(right(MatchKind::kJson, R"({"a": 1, "b": [true, null]})", R"(x</think> {"b": [1, null], "a": 1.0} )"));
  EXPECT_FALSE(right(MatchKind::kJson, R"({"a": 1})", R"({"a": 1, "b": 2})"));
  EXPECT_FALSE(right(MatchKind::kJson, R"({"a": "1"})", R"({"a": 1})"));
  EXPECT_FALSE(right(MatchKind::kJson, R"([1, 2])", "[2, 1]"));
  EXPECT_FALSE(right(MatchKind::kJson, "{}", "not json"));
}

TEST(Judge, ToolCalls) {
  const std::string one = R"([["send", {"to": "a"}]])";
  const std::string call =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
      "send<｜tool▁sep｜>{\"to\": \"a\"}<｜tool▁call▁end｜>";
  EXPECT_TRUE(right(MatchKind::kTool, one, "think</think>" + call + "<｜tool▁calls▁end｜>"));
  EXPECT_FALSE(right(MatchKind::kTool, one, call + "<｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜>"));
  EXPECT_FALSE(right(MatchKind::kTool, one, "<｜tool▁call▁begin｜>send<｜tool▁sep｜>{oops<｜tool▁call▁end｜>"));
  EXPECT_TRUE(right(MatchKind::kTool, "[]", "no call"));
  EXPECT_TRUE(right(MatchKind::kTool, "[]", "<｜tool▁call▁begin｜>cut off<｜tool▁sep｜>{}"));
}

TEST(Judge, OpenIsNotJudged) { EXPECT_FALSE(judge_answer(question(MatchKind::kOpen, "x"), "x").has_value()); }

std::string message(std::string_view text) {
  auto questions = parse_eval_suite(text, "suite.jsonl");
  return questions.ok() ? "" : questions.error().message;
}

TEST(EvalSuite, ErrorsNameFileLineAndField) {
  const std::string good = R"({"messages": [{"role": "user", "content": "x"}], "match": "exact", "answer": "y"})";
  EXPECT_EQ(message(good + "\n\n" + good), "");
  EXPECT_THAT(message(good + "\n{\"messages\": [1], \"match\": \"fuzzy\", \"answer\": \"\"}"),
              HasSubstr("suite.jsonl:2: match: expected exact, contains, lastnum, json, tool or open, found \"\\\"fuzzy\\\"\""));
  EXPECT_THAT(message("\n\n{oops"), HasSubstr("suite.jsonl:3: not valid JSON"));
  EXPECT_THAT(message("[]"), HasSubstr("suite.jsonl:1: expected an object"));
  EXPECT_THAT(message(R"({"messages": "hi", "match": "open"})"), HasSubstr("suite.jsonl:1: messages: expected a list"));
  EXPECT_THAT(message(R"({"messages": [1], "match": "exact"})"), HasSubstr("answer: expected a string, found nothing"));
  EXPECT_THAT(message(R"({"messages": [1], "match": "json", "answer": "{"})"), HasSubstr("answer: expected JSON in a string"));
  EXPECT_THAT(message(R"({"messages": [1], "match": "open", "thinking": 3})"), HasSubstr("thinking: expected true or false"));
  EXPECT_THAT(message(" \n"), HasSubstr("suite.jsonl: expected one question a line, found none"));
}

TEST(EvalSuite, LimitSpreads) {
  std::string text;
  for (int i = 0; i < 10; i++) text += R"({"messages": [1], "match": "open", "id": )" + std::to_string(i) + "}\n";
  auto all = parse_eval_suite(text, "s");
  ASSERT_TRUE(all.ok());
  auto three = spread_questions(*all, 3);
  ASSERT_EQ(three.size(), 3u);
  EXPECT_EQ(three[0].id + three[1].id + three[2].id, "036");
  EXPECT_EQ(spread_questions(*all, 0).size(), 10u);
  EXPECT_EQ(spread_questions(*all, 100).size(), 10u);
}

TEST(EvalSuite, TheEmbeddedSuiteIsReadable) {
  auto questions = read_eval_suite(DG_SOURCE_DIR "/models/mini-r1/eval/mini_eval.jsonl");
  ASSERT_TRUE(questions.ok()) << questions.error().message;
  EXPECT_EQ(questions->size(), 713u);
}

}  // namespace
}  // namespace dg
