#include "base/json.h"
#include "server/api/api_test_tools.h"

namespace dg::api {
namespace {

constexpr const char* kMessages = "/v1/messages";

class MessagesTest : public ApiTest {};

TEST_F(MessagesTest, StreamOfThinkingTextAndToolUse) {
  auto responder = post(kMessages, R"({"model":"mini","max_tokens":50,"stream":true,"thinking":{"type":"enabled","budget_tokens":1024},
    "system":[{"type":"text","text":"Be "},{"type":"text","text":"brief."}],
    "tools":[{"name":"add","description":"adds","input_schema":{"type":"object"}}],"messages":[{"role":"user",
        "content":[{"type":"text","text":"Hi"}]}]})");
  EXPECT_EQ(prompt_text().find("Be brief."), std::string("<｜begin▁of▁sentence｜>").size()) << prompt_text();
  EXPECT_TRUE(prompt_text().ends_with("<｜User｜>Hi<｜Assistant｜><think>"));
  EXPECT_EQ(events_of(responder->sent).size(), 2u) << "message_start comes at once";
  engine.say(0, "hm");
  engine.say(0, "</think>On");
  engine.say(0, " it<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  engine.stop(0);
  engine.end(0, nullptr, 2);
  int64_t prompt = static_cast<int64_t>(engine.submitted[0].request.prompt.size());
  std::string tokens = std::to_string(prompt), computed = std::to_string(prompt - 2);
  auto events = events_of(responder->sent);
  std::vector<std::string> merged;  // pieces of one delta type joined: how the parser cuts is its own affair
  for (const std::string& event : events) {
    if (event.find("input_json_delta") != std::string::npos && !merged.empty() &&
        merged.back().find("input_json_delta") != std::string::npos)
      continue;
    merged.push_back(event);
  }
  std::vector<std::string> expected = {
      R"({"type":"message_start","message":{"id":"msg_r1","type":"message","role":"assistant","model":"mini","content":[],)"
      R"("stop_reason":null,)"
      R"("stop_sequence":null,"usage":{"input_tokens":)" +
          tokens + R"(,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":0}}})",
      R"({"type":"ping"})",
      R"({"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}})",
      R"({"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}})",
      R"({"type":"content_block_stop","index":0})",
      R"({"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}})",
      R"({"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"On"}})",
      R"({"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":" it"}})",
      R"({"type":"content_block_stop","index":1})",
      R"({"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"toolu_*","name":"add","input":{}}})",
      R"({"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":1}"}})",
      R"({"type":"content_block_stop","index":2})",
      R"({"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"input_tokens":)" + computed +
          R"(,"cache_creation_input_tokens":0,"cache_read_input_tokens":2,"output_tokens":3}})",
      R"({"type":"message_stop"})"};
  EXPECT_EQ(merged, expected);
}

TEST_F(MessagesTest, WholeAnswerAndStopSequence) {
  auto responder = post(kMessages, R"({"max_tokens":5,"stop_sequences":["END"],"messages":[{"role":"user","content":"Hi"}]})");
  EXPECT_TRUE(prompt_text().ends_with("<｜Assistant｜></think>")) << "thinking only on request";
  EXPECT_EQ(engine.submitted[0].request.stop, std::vector<std::string>{"END"});
  EXPECT_EQ(engine.submitted[0].request.max_tokens, 5);
  engine.say(0, "Hello");
  engine.stop(0, FinishReason::kStop, 0, "END");
  engine.end(0, nullptr, 2);
  EXPECT_EQ(responder->answer->body,
            R"({"id":"msg_r1","type":"message","role":"assistant","model":"mini","content":[{"type":"text","text":"Hello"}],)"
            R"("stop_reason":"stop_sequence","stop_sequence":"END","usage":{"input_tokens":3,"cache_creation_input_tokens":0,)"
            R"("cache_read_input_tokens":2,"output_tokens":1}})");
}

TEST_F(MessagesTest, ConversationWithToolsIsTranslated) {
  auto responder = post(kMessages,
                        R"({"max_tokens":5,"tools":[{"name":"add","input_schema":{"type":"object"}}],"tool_choice":{"type":"any",
          "disable_parallel_tool_use":true},
    "messages":[{"role":"user","content":"1+1"},
      {"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":""},{"type":"text","text":"Adding."},
        {"type":"tool_use","id":"toolu_1","name":"add","input":{"a":1}}]},
      {"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_1","content":[{"type":"text","text":"2"}]},
          {"type":"text","text":"So?"}]}]})");
  ASSERT_EQ(engine.submitted.size(), 1u) << error_of(*responder);
  std::string text = prompt_text();
  EXPECT_NE(text.find("Adding.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": 1}"), std::string::npos) << text;
  EXPECT_NE(text.find("<｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜User｜>So?"), std::string::npos) << text;
  EXPECT_NE(engine.submitted[0].request.grammar, nullptr);
  engine.say(0, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\":2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  engine.stop(0);
  engine.end(0);
  EXPECT_NE(masked(responder->answer->body)
                .find(R"("content":[{"type":"tool_use","id":"toolu_*","name":"add","input":{"a":2}}],"stop_reason":"tool_use")"),
            std::string::npos)
      << responder->answer->body;
}

TEST_F(MessagesTest, APrefilledAnswerIsContinued) {
  post(kMessages, R"({"max_tokens":5,"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"{"}]})");
  EXPECT_TRUE(prompt_text().ends_with("{")) << prompt_text();
}

TEST_F(MessagesTest, ErrorsHaveAnthropicsShape) {
  auto expect = [&](const char* body, int status, const std::string& json) {
    auto responder = post(kMessages, body);
    EXPECT_EQ(responder->answer->status, status) << body;
    EXPECT_EQ(responder->answer->body, json);
  };
  expect(R"({"messages":[{"role":"user","content":"x"}]})", 400,
         R"({"type":"error","error":{"type":"invalid_request_error",)"
         R"("message":"max_tokens: expected an integer of at least 1, found nothing"}})");
  expect(R"({"max_tokens":1,"messages":[{"role":"user","content":[{"type":"image"}]}]})", 400,
         R"({"type":"error","error":{"type":"invalid_request_error",)"
         R"("message":"messages[0].content[0].type: expected \"text\" or \"tool_result\" (this )"
         R"(server reads text only), found \"image\""}})");
  expect(R"({"max_tokens":1,"model":"claude"})", 404,
         R"({"type":"error","error":{"type":"not_found_error",)"
         R"("message":"model: expected a model that is served here (mini, org/mini), found \"claude\""}})");
  expect(R"({"max_tokens":1})", 400,
         R"({"type":"error","error":{"type":"invalid_request_error",)"
         R"("message":"messages: expected a list with at least one message, found nothing"}})");
  expect(R"({"max_tokens":1,"tools":[{"name":"x"}],"messages":[{"role":"user","content":"x"}]})", 400,
         R"({"type":"error","error":{"type":"invalid_request_error",)"
         R"("message":"tools[0].input_schema: expected an object with a JSON schema, found nothing"}})");
  engine.refuse_after = 0;
  expect(R"({"max_tokens":1,"messages":[{"role":"user","content":"x"}]})", 429,
         R"({"type":"error","error":{"type":"rate_limit_error","message":"the queue is full"}})");
}

TEST_F(MessagesTest, AFailureInTheStreamIsAnErrorEvent) {
  auto responder = post(kMessages, R"({"max_tokens":5,"stream":true,"messages":[{"role":"user","content":"Hi"}]})");
  engine.say(0, "a");
  Error error{ErrorKind::kDevice, "broken"};
  engine.end(0, &error);
  EXPECT_EQ(events_of(responder->sent).back(), R"({"type":"error","error":{"type":"api_error","message":"broken"}})");
  EXPECT_TRUE(responder->finished);
}

TEST_F(MessagesTest, CountsTokensLikeTheRequestItself) {
  auto responder = post("/v1/messages/count_tokens", R"({"messages":[{"role":"user","content":"Hi"}]})");
  post(kMessages, R"({"max_tokens":5,"messages":[{"role":"user","content":"Hi"}]})");
  EXPECT_EQ(responder->answer->body, "{\"input_tokens\":" + std::to_string(engine.submitted[0].request.prompt.size()) + "}");
}

}  // namespace
}  // namespace dg::api
