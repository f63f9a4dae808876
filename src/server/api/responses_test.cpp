#include "base/json.h"
#include "server/api/api_test_tools.h"

namespace dg::api {
namespace {

constexpr const char* kResponses = "/v1/responses";

class ResponsesTest : public ApiTest {};

TEST_F(ResponsesTest, WholeResponse) {
  auto responder =
      post(kResponses,
           R"({"input":"Hi","instructions":"Be brief.","temperature":0.5,"max_output_tokens":7,"metadata":{"k":"v"},"store":false})");
  EXPECT_EQ(prompt_text(), "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜><think>");
  EXPECT_EQ(engine.submitted[0].request.max_tokens, 7);
  engine.say(0, "hm</think>Hello");
  engine.stop(0);
  engine.end(0, nullptr, 1);
  Json json = *parse_json(responder->answer->body, "answer");
  EXPECT_EQ(json["id"], "resp_r1");
  EXPECT_EQ(json["object"], "response");
  EXPECT_EQ(json["status"], "completed");
  EXPECT_EQ(json["instructions"], "Be brief.");
  EXPECT_EQ(json["temperature"], 0.5);
  EXPECT_EQ(json["metadata"]["k"], "v");
  EXPECT_EQ(json["max_output_tokens"], 7);
  EXPECT_EQ(json["store"], false);
  ASSERT_EQ(json["output"].size(), 2u);
  EXPECT_EQ(json["output"][0]["type"], "reasoning");
  EXPECT_EQ(json["output"][0]["content"][0]["text"], "hm");
  EXPECT_EQ(json["output"][1]["content"][0]["type"], "output_text");
  EXPECT_EQ(json["output"][1]["content"][0]["text"], "Hello");
  EXPECT_EQ(json["usage"]["input_tokens_details"]["cached_tokens"], 1);
  EXPECT_EQ(json["usage"]["output_tokens"], 1);
}

TEST_F(ResponsesTest, StreamOfTextAndCall) {
  auto responder = post(
      kResponses, R"({"input":[{"role":"user","content":[{"type":"input_text","text":"Hi"}]}],"stream":true,"reasoning":{"effort":"none"},
    "tools":[{"type":"function","name":"add","parameters":{"type":"object"},"strict":false}]})");
  engine.say(0, "On it");
  engine.say(0, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  engine.stop(0);
  engine.end(0);
  std::vector<std::string> types;
  int64_t sequence = 0;
  std::string arguments;
  Json last;
  for (const std::string& event : events_of(responder->sent)) {
    Json json = *parse_json(event, "event");
    EXPECT_EQ(json["sequence_number"], sequence++);
    std::string type = json["type"].get<std::string>();
    if (type == "response.function_call_arguments.delta") {
      arguments += json["delta"].get<std::string>();
      EXPECT_EQ(json["output_index"], 1);
      if (types.back() == type) continue;
    }
    types.push_back(type);
    last = json;
  }
  const std::vector<std::string> expected = {"response.created",
                                             "response.in_progress",
                                             "response.output_item.added",
                                             "response.content_part.added",
                                             "response.output_text.delta",
                                             "response.output_text.done",
                                             "response.content_part.done",
                                             "response.output_item.done",
                                             "response.output_item.added",
                                             "response.function_call_arguments.delta",
                                             "response.function_call_arguments.done",
                                             "response.output_item.done",
                                             "response.completed"};
  EXPECT_EQ(types, expected);
  EXPECT_EQ(arguments, "{\"a\":1}");
  const Json& output = last["response"]["output"];
  ASSERT_EQ(output.size(), 2u);
  EXPECT_EQ(output[0]["content"][0]["text"], "On it");
  EXPECT_EQ(output[1]["type"], "function_call");
  EXPECT_EQ(output[1]["name"], "add");
  EXPECT_EQ(output[1]["arguments"], "{\"a\":1}");
  EXPECT_EQ(last["response"]["status"], "completed");
}

TEST_F(ResponsesTest, LengthIsIncompleteAndFailureIsFailed) {
  auto cut = post(kResponses, R"({"input":"Hi","stream":true,"reasoning":{"effort":"none"}})");
  engine.say(0, "a");
  engine.stop(0, FinishReason::kLength);
  engine.end(0);
  Json last = *parse_json(events_of(cut->sent).back(), "event");
  EXPECT_EQ(last["type"], "response.incomplete");
  EXPECT_EQ(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
  EXPECT_EQ(last["response"]["output"][0]["status"], "incomplete");

  auto failed = post(kResponses, R"({"input":"Hi","stream":true})");
  Error error{ErrorKind::kDevice, "broken"};
  engine.end(1, &error);
  last = *parse_json(events_of(failed->sent).back(), "event");
  EXPECT_EQ(last["type"], "response.failed");
  EXPECT_EQ(last["response"]["error"]["message"], "broken");
  EXPECT_EQ(last["response"]["status"], "failed");
}

TEST_F(ResponsesTest, ItemsOfEarlierTurnsBecomeMessages) {
  auto responder =
      post(kResponses,
           R"({"tools":[{"type":"function","name":"add"}],"input":[{"role":"developer","content":"S"},{"role":"user","content":"1+1"},
    {"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"t"}]},
    {"type":"message","role":"assistant","content":[{"type":"output_text","text":"Adding."}]},
    {"type":"function_call","call_id":"c1","name":"add","arguments":"{\"a\":1}"},{"type":"function_call","call_id":"c2",
        "name":"add","arguments":"{\"a\":2}"},
    {"type":"function_call_output","call_id":"c1","output":"2"},{"type":"function_call_output","call_id":"c2",
        "output":[{"type":"input_text","text":"3"}]}]})");
  ASSERT_EQ(engine.submitted.size(), 1u) << error_of(*responder);
  std::string text = prompt_text();
  EXPECT_NE(
      text.find("Adding.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>add"),
      std::string::npos)
      << text;
  EXPECT_TRUE(text.ends_with("<｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜>")) << text;
}

TEST_F(ResponsesTest, Errors) {
  auto expect = [&](const char* body, const std::string& error) { EXPECT_EQ(error_of(*post(kResponses, body)), error) << body; };
  expect(R"({"input":"x","previous_response_id":"resp_1"})",
         "400 [previous_response_id] previous_response_id: this server keeps no responses; send the whole conversation as input");
  expect(R"({"input":"x","store":true})",
         "400 [store] store: this server keeps no responses; send the whole conversation as input and leave store out or false");
  expect(R"({"input":"x","background":true})",
         "400 [background] background: this server answers while the client waits; leave background out");
  expect(R"({"input":[]})", "400 [input] input: expected a string or a list of items, found an empty list");
  expect(R"({"input":[{"type":"item_reference","id":"x"}]})",
         "400 [input[0].type] input[0].type: expected \"message\", \"function_call\", \"function_call_output\" or \"reasoning\", found "
         "\"item_reference\"");
  expect(R"({"input":"x","tools":[{"type":"web_search"}]})",
         "400 [tools[0].type] tools[0].type: expected \"function\" (this server runs no tools of its own), found \"web_search\"");
  expect(R"({"input":"x","text":{"format":{"type":"xml"}}})",
         "400 [text.format.type] text.format.type: expected \"text\", \"json_object\" or \"json_schema\", found \"xml\"");
  EXPECT_TRUE(engine.submitted.empty());
  post(kResponses, R"({"input":"x","text":{"format":{"type":"json_schema","name":"n","strict":true,"schema":{"type":"object"}}}})");
  EXPECT_NE(engine.submitted.at(0).request.grammar, nullptr);
}

}  // namespace
}  // namespace dg::api
