#include <limits>

#include "base/json.h"
#include "server/api/api_test_tools.h"

namespace dg::api {
namespace {

constexpr const char* kCompletions = "/v1/completions";

class CompletionsTest : public ApiTest {
 protected:
  void expect_refused(const std::string& body, const std::string& error) { EXPECT_EQ(error_of(*post(kCompletions, body)), error) << body; }
};

TEST_F(CompletionsTest, OnePrompt) {
  auto responder = post(kCompletions, R"({"prompt":[5,6],"stop":"!"})");
  EXPECT_EQ(engine.submitted[0].request.max_tokens, 16);
  EXPECT_EQ(engine.submitted[0].request.prompt, (std::vector<int32_t>{5, 6}));
  post(kCompletions, R"({"prompt":"Hello"})");
  EXPECT_EQ(engine.submitted[1].request.prompt, tokenizer->encode("Hello"));
  engine.say(0, "<think> is text");
  engine.stop(0, FinishReason::kStop, 0, "!");
  engine.end(0);
  EXPECT_EQ(
      masked(responder->answer->body),
      R"({"id":"cmpl-r1","object":"text_completion","created":0,"model":"mini","choices":[{"index":0,"text":"<think> is text",)"
      R"("logprobs":null,"finish_reason":"stop","stop_reason":"!"}],"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3,)"
      R"("prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}})");
}

TEST_F(CompletionsTest, SeveralPromptsAndAnswersAreNumberedPromptByPrompt) {
  auto responder = post(kCompletions, R"({"prompt":[[5,6],[7]],"n":2,"echo":true})");
  ASSERT_EQ(engine.submitted.size(), 2u);
  EXPECT_EQ(engine.submitted[1].request.prompt, std::vector<int32_t>{7});
  for (size_t part : {1, 0})
    for (int index : {1, 0}) {
      engine.say(part, std::to_string(part) + std::to_string(index), {{.id = 9}}, index);
      engine.stop(part, FinishReason::kLength, index);
    }
  engine.end(1);
  EXPECT_FALSE(responder->answer);
  engine.end(0);
  Json json = *parse_json(responder->answer->body, "answer");
  ASSERT_EQ(json["choices"].size(), 4u);
  const char* ends[] = {"00", "01", "10", "11"};
  for (size_t i = 0; i < 4; i++) {
    EXPECT_EQ(json["choices"][i]["index"], i);
    std::vector<int32_t> ids = i < 2 ? std::vector<int32_t>{5, 6} : std::vector<int32_t>{7};
    EXPECT_EQ(json["choices"][i]["text"], tokenizer->decode(ids, true) + ends[i]);
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], 3);
  EXPECT_EQ(json["usage"]["completion_tokens"], 4);
}

TEST_F(CompletionsTest, OldLogprobsWithEcho) {
  auto responder = post(kCompletions, R"({"prompt":"Hello","echo":true,"logprobs":1,"max_tokens":0})");
  const EngineRequest& request = engine.submitted[0].request;
  EXPECT_EQ(request.max_tokens, 1);
  EXPECT_EQ(request.prompt_logprobs, 1);
  int32_t a = tokenizer->id_of("a").value();
  float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<TokenInfo> tokens = {{.id = 0, .logprob = nan}, {.id = a, .logprob = -2, .top = {{5, -1.5f}}}};
  engine.submitted[0].listener->on_prompt_logprobs(tokens);
  engine.say(0, "dropped");
  engine.stop(0, FinishReason::kLength);
  engine.end(0);
  Json json = *parse_json(responder->answer->body, "answer");
  const Json& choice = json["choices"][0];
  EXPECT_EQ(choice["text"], "Hello");
  EXPECT_EQ(choice["finish_reason"], "length");
  const Json& logprobs = choice["logprobs"];
  EXPECT_EQ(logprobs["tokens"][1], "a");
  EXPECT_EQ(logprobs["token_logprobs"], Json::array({nullptr, -2.0}));
  EXPECT_EQ(logprobs["top_logprobs"][0], nullptr);
  EXPECT_EQ(logprobs["top_logprobs"][1].value("a", 0.0), -2.0);
  EXPECT_EQ(logprobs["top_logprobs"][1].size(), 2u);
  EXPECT_EQ(logprobs["text_offset"], Json::array({0, 0})) << "the special token gives no text";
  EXPECT_EQ(json["usage"]["completion_tokens"], 0);
}

TEST_F(CompletionsTest, StreamOfTwoPrompts) {
  auto responder =
      post(kCompletions,
           R"({"prompt":["a","b"],"stream":true,"echo":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}})");
  engine.say(1, "x");
  engine.say(0, "y");
  engine.stop(0);
  engine.end(0);
  EXPECT_FALSE(responder->finished);
  engine.stop(1, FinishReason::kContext);
  engine.end(1);
  auto events = events_of(responder->sent);
  ASSERT_EQ(events.size(), 6u);
  EXPECT_NE(
      events[0].find(R"("index":1,"text":"bx","logprobs":null,"finish_reason":null}],"usage":{"prompt_tokens":4,"completion_tokens":1,)"),
      std::string::npos)
      << events[0];
  EXPECT_NE(events[1].find(R"("index":0,"text":"ay")"), std::string::npos);
  EXPECT_NE(events[2].find(R"("index":0,"text":"","logprobs":null,"finish_reason":"stop")"), std::string::npos);
  EXPECT_NE(events[3].find(R"("finish_reason":"length")"), std::string::npos);
  EXPECT_NE(events[4].find(R"("choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2,)"), std::string::npos);
  EXPECT_EQ(events[5], "[DONE]");
}

TEST_F(CompletionsTest, OneRefusedPromptRefusesAll) {
  engine.refuse_after = 1;
  auto responder = post(kCompletions, R"({"prompt":["a","b"],"stream":true})");
  EXPECT_EQ(responder->answer->status, 429);
  EXPECT_EQ(engine.cancelled, std::vector<uint64_t>{1});
  engine.say(0, "late");
  engine.end(0);
  EXPECT_FALSE(responder->streaming);
  EXPECT_EQ(responder.use_count(), 1);
}

TEST_F(CompletionsTest, AFailedPromptEndsTheStreamAndCancelsTheOthers) {
  auto responder = post(kCompletions, R"({"prompt":["a","b"],"stream":true})");
  Error error{ErrorKind::kDevice, "broken"};
  engine.end(0, &error);
  EXPECT_EQ(engine.cancelled, (std::vector<uint64_t>{1, 2}));
  EXPECT_TRUE(responder->finished);
  engine.say(1, "late");
  engine.end(1, &error);
  EXPECT_EQ(events_of(responder->sent).size(), 2u);
}

TEST_F(CompletionsTest, Errors) {
  expect_refused(R"({})", "400 [prompt] prompt: expected a string, a list of strings or token ids, found nothing");
  expect_refused(R"({"prompt":5})",
                 "400 [prompt] prompt: expected a string, a list of strings, a list of token ids or a list of such lists, found 5");
  expect_refused(
      R"({"prompt":[]})",
      "400 [prompt] prompt: expected a string, a list of strings, a list of token ids or a list of such lists, found an empty list");
  expect_refused(R"({"prompt":["a",7]})", "400 [prompt[1]] prompt[1]: expected a string or a list of token ids, found 7");
  expect_refused(R"({"prompt":[1,"a"]})",
                 "400 [prompt[1]] prompt[1]: expected a token id between 0 and " + std::to_string(config.vocab - 1) + ", found \"a\"");
  expect_refused(R"({"prompt":[[]]})", "400 [prompt[0]] prompt[0]: expected at least one token, found an empty prompt");
  expect_refused(R"({"prompt":"a","suffix":"b"})",
                 "400 [suffix] suffix: this model continues text and cannot fill a gap; leave suffix out");
  expect_refused(R"({"prompt":"a","best_of":3})",
                 "400 [best_of] best_of: expected the value of n, 1 (the server returns every answer that it generates), found 3");
  expect_refused(R"({"prompt":"a","max_tokens":0})", "400 [max_tokens] max_tokens: expected an integer between 1 and 2147483647, found 0");
  EXPECT_TRUE(engine.submitted.empty());
}

}  // namespace
}  // namespace dg::api
