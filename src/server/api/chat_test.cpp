#include "base/json.h"
#include "server/api/api_test_tools.h"
#include "server/api/request_fields.h"

namespace dg::api {
namespace {

constexpr const char* kChat = "/v1/chat/completions";
constexpr const char* kTools = R"("tools":[{"type":"function","function":{"name":"add","description":"adds","parameters":{"type":"object",)"
                               R"("properties":{"a":{"type":"integer"}}}}}])";

std::string chat_body(const std::string& more) {
  return R"({"messages":[{"role":"user","content":"Hi"}])" + (more.empty() ? "" : "," + more) + "}";
}

class ChatTest : public ApiTest {
 protected:
  void expect_error(const std::string& more, const std::string& error) {
    auto responder = post(kChat, chat_body(more));
    EXPECT_EQ(error_of(*responder), error) << more;
    EXPECT_TRUE(engine.submitted.empty());
  }
};

TEST_F(ChatTest, WholeAnswerHasReasoningContentAndUsage) {
  auto responder = post(kChat, chat_body(R"("model":"org/mini","max_tokens":9)"));
  ASSERT_EQ(engine.submitted.size(), 1u);
  EXPECT_EQ(prompt_text(), "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>");
  const EngineRequest& request = engine.submitted[0].request;
  EXPECT_EQ(request.max_tokens, 9);
  EXPECT_EQ(request.id, "r1");
  EXPECT_EQ(request.tenant, "acme");
  EXPECT_EQ(request.stop_ids, std::vector<int32_t>{1});
  engine.say(0, "let me ");
  engine.say(0, "see</think>\n\n", {{.id = *tokenizer->id_of("</think>")}});
  engine.say(0, "Hello \"you\"");
  engine.stop(0, FinishReason::kStop, 0, {}, 1);
  EXPECT_FALSE(responder->answer);
  engine.end(0, nullptr, 3);
  ASSERT_TRUE(responder->answer);
  EXPECT_EQ(responder->answer->status, 200);
  std::string expected =
      R"({"id":"chatcmpl-r1","object":"chat.completion","created":0,"model":"org/mini","choices":[{"index":0,)"
      R"("message":{"role":"assistant",)"
      R"("content":"Hello \"you\"","refusal":null,"reasoning_content":"let me see","reasoning":"let me see"},"logprobs":null,)"
      R"("finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":5,"completion_tokens":4,"total_tokens":9,)"
      R"("prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":{"reasoning_tokens":2}}})";
  EXPECT_EQ(masked(responder->answer->body), expected);
  EXPECT_EQ(responder->access.model, "org/mini");
  EXPECT_EQ(responder->access.generated_tokens, 4);
  EXPECT_EQ(responder->access.finish, "stop");
}

TEST_F(ChatTest, StreamIsRoleThenDeltasThenReasonThenUsage) {
  auto responder = post(kChat, chat_body(R"("stream":true,"stream_options":{"include_usage":true})"));
  EXPECT_TRUE(responder->streaming);
  EXPECT_EQ(responder->sent, "");  // the first chunk comes with the first token
  engine.say(0, "hm");
  engine.say(0, "</think>Yes");
  engine.stop(0, FinishReason::kLength);
  engine.end(0);
  EXPECT_TRUE(responder->finished);
  const std::string head = R"({"id":"chatcmpl-r1","object":"chat.completion.chunk","created":0,"model":"mini","choices":[)";
  const std::vector<std::string> expected = {
      head + R"({"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null})",
      head + R"({"index":0,"delta":{"reasoning_content":"hm","reasoning":"hm"},"logprobs":null,"finish_reason":null}],"usage":null})",
      head + R"({"index":0,"delta":{"content":"Yes"},"logprobs":null,"finish_reason":null}],"usage":null})",
      head + R"({"index":0,"delta":{},"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":null})",
      head + R"(],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":0},)"
             R"("completion_tokens_details":{"reasoning_tokens":2}}})",
      "[DONE]"};
  EXPECT_EQ(events_of(responder->sent), expected);
}

TEST_F(ChatTest, ToolCallsStreamTheNameAndThenTheArguments) {
  auto responder = post(kChat, chat_body(std::string(R"("stream":true,"chat_template_kwargs":{"thinking":false},)") + kTools));
  EXPECT_NE(prompt_text().find("### add"), std::string::npos);
  EXPECT_NE(prompt_text().find("<｜Assistant｜></think>"), std::string::npos);
  engine.say(0, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\":");
  engine.say(0, " 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  engine.stop(0, FinishReason::kStop, 0, {}, 1);
  engine.end(0);
  auto events = events_of(responder->sent);
  std::string name, arguments, reason;
  for (const std::string& event : events) {
    if (event == "[DONE]") continue;
    Json choice = (*parse_json(event, "event"))["choices"][0];
    if (choice["delta"].contains("tool_calls")) {
      const Json& call = choice["delta"]["tool_calls"][0];
      EXPECT_EQ(call["index"], 0);
      if (call.contains("id")) {
        EXPECT_EQ(call["id"], "call_*");
        EXPECT_EQ(call["type"], "function");
        EXPECT_TRUE(arguments.empty());
        name += call["function"]["name"].get<std::string>();
      }
      arguments += call["function"]["arguments"].get<std::string>();
    }
    EXPECT_EQ(choice["delta"].value("content", ""), "");
    if (choice["finish_reason"].is_string()) reason = choice["finish_reason"].get<std::string>();
  }
  EXPECT_EQ(name, "add");
  EXPECT_EQ(arguments, "{\"a\": 1}");
  EXPECT_EQ(reason, "tool_calls");
  EXPECT_EQ(events.back(), "[DONE]");
}

TEST_F(ChatTest, WholeAnswerWithToolCallHasNullContent) {
  auto responder = post(kChat, chat_body(std::string(R"("thinking":{"type":"disabled"},)") + kTools));
  engine.say(0, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  engine.stop(0);
  engine.end(0);
  EXPECT_NE(masked(responder->answer->body)
                .find(R"("message":{"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"call_*","type":"function",)"
                      R"("function":{"name":"add","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls")"),
            std::string::npos)
      << responder->answer->body;
}

TEST_F(ChatTest, AnswersOfNInterleaveByIndex) {
  auto responder = post(kChat, chat_body(R"("stream":true,"n":2)"));
  EXPECT_EQ(engine.submitted[0].request.n, 2);
  engine.say(0, "</think>a", {{.id = 5}}, 0);
  engine.say(0, "</think>b", {{.id = 6}}, 1);
  engine.stop(0, FinishReason::kStop, 1);
  engine.say(0, "c", {{.id = 7}}, 0);
  engine.stop(0, FinishReason::kLength, 0);
  engine.end(0);
  std::string text[2], reasons[2];
  for (const std::string& event : events_of(responder->sent)) {
    if (event == "[DONE]") continue;
    Json choice = (*parse_json(event, "event"))["choices"][0];
    size_t index = choice["index"].get<size_t>();
    ASSERT_LT(index, 2u);
    text[index] += choice["delta"].value("content", "");
    if (choice["finish_reason"].is_string()) reasons[index] = choice["finish_reason"].get<std::string>();
  }
  EXPECT_EQ(text[0], "ac");
  EXPECT_EQ(text[1], "b");
  EXPECT_EQ(reasons[0], "length");
  EXPECT_EQ(reasons[1], "stop");
}

TEST_F(ChatTest, LogprobsStandInTheChunkOfTheirTextAndLeaveOutTheStopId) {
  auto responder = post(kChat, chat_body(R"("stream":true,"logprobs":true,"top_logprobs":1,"return_token_ids":true)"));
  EXPECT_EQ(engine.submitted[0].request.logprobs, 1);
  int32_t a = tokenizer->id_of("a").value();
  engine.say(0, "", {{.id = a, .logprob = -0.25f, .top = {{a, -0.25f}}}});  // a token before its text
  engine.say(0, "</think>aa", {{.id = a, .logprob = -std::numeric_limits<float>::infinity()}});
  engine.stop(0, FinishReason::kStop, 0, {}, 1);
  engine.end(0);
  auto events = events_of(responder->sent);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_NE(events[0].find(R"("prompt_token_ids":[0,)"), std::string::npos) << events[0];
  EXPECT_NE(events[0].find(R"("logprobs":null,"token_ids":[])"), std::string::npos) << events[0];
  EXPECT_NE(events[1].find(R"("logprobs":{"content":[{"token":"a","logprob":-0.25,"bytes":[97],"top_logprobs":[{"token":"a",)"
                           R"("logprob":-0.25,"bytes":[97]}]},{"token":"a","logprob":-9999,)"),
            std::string::npos)
      << events[1];
  EXPECT_NE(events[2].find(R"("logprobs":null,"token_ids":[1],"finish_reason":"stop")"), std::string::npos) << events[2];
}

TEST_F(ChatTest, DefaultsAreTheRequestsOverTheModelsOverOpenAis) {
  options.generation.temperature = 0.6;
  options.generation.top_p = 0.95;
  post(kChat, chat_body(""));
  post(kChat,
       chat_body(
           R"("temperature":0,"top_p":0.5,"top_k":-1,"seed":7,"min_p":0.1,"typical_p":0.9,"repetition_penalty":1.1,"presence_penalty":-2,)"
           R"("frequency_penalty":2,"logit_bias":{"42":-100},"stop":["x",""],"stop_token_ids":[5,1],"ignore_eos":true,"min_tokens":2,)"
           R"("include_stop_str_in_output":true,"skip_special_tokens":false,"priority":-3,"cache_salt":"s","request_id":"mine",)"
           R"("timeout":2.5,)"
           R"("max_tokens":1,"max_completion_tokens":2,"unknown":{})"));
  ASSERT_EQ(engine.submitted.size(), 2u);
  const EngineRequest& plain = engine.submitted[0].request;
  EXPECT_EQ(plain.sampling.temperature, 0.6);
  EXPECT_EQ(plain.sampling.top_p, 0.95);
  EXPECT_EQ(plain.max_tokens, 0);
  EXPECT_EQ(plain.deadline, EngineClock::time_point::max());
  const EngineRequest& full = engine.submitted[1].request;
  const SamplingParams& s = full.sampling;
  EXPECT_EQ(
      std::vector<double>({s.temperature, s.top_p, s.min_p, s.typical_p, s.repetition_penalty, s.presence_penalty, s.frequency_penalty}),
      std::vector<double>({0, 0.5, 0.1, 0.9, 1.1, -2, 2}));
  EXPECT_EQ(s.top_k, 0);
  EXPECT_EQ(s.seed, 7u);
  ASSERT_EQ(s.logit_bias.size(), 1u);
  EXPECT_EQ(s.logit_bias[0], (std::pair<int32_t, float>(42, -100)));
  EXPECT_EQ(full.stop, std::vector<std::string>{"x"});
  EXPECT_EQ(full.stop_ids, (std::vector<int32_t>{5, 1}));
  EXPECT_EQ(full.min_tokens, 2);
  EXPECT_TRUE(full.include_stop_text);
  EXPECT_FALSE(full.skip_special);
  EXPECT_EQ(full.priority, -3);
  EXPECT_EQ(full.cache_salt, "s");
  EXPECT_EQ(full.id, "mine");
  EXPECT_EQ(full.max_tokens, 2);
  auto left = full.deadline - EngineClock::now();
  EXPECT_GT(left, std::chrono::seconds(0));
  EXPECT_LE(left, std::chrono::milliseconds(2500));
}

TEST_F(ChatTest, MissingTemperatureAndSeedWithoutModelDefaults) {
  post(kChat, chat_body(""));
  post(kChat, chat_body(""));
  EXPECT_EQ(engine.submitted[0].request.sampling.temperature, 1);
  EXPECT_NE(engine.submitted[0].request.sampling.seed, engine.submitted[1].request.sampling.seed);
}

TEST_F(ChatTest, ErrorsNameTheField) {
  expect_error(R"("temperature":"hot")", "400 [temperature] temperature: expected a number between 0 and 2, found \"hot\"");
  expect_error(R"("top_p":0)", "400 [top_p] top_p: expected a number above 0 and at most 1, found 0");
  expect_error(R"("n":0)", "400 [n] n: expected an integer between 1 and 64, found 0");
  expect_error(R"("max_tokens":0)", "400 [max_tokens] max_tokens: expected an integer between 1 and 2147483647, found 0");
  expect_error(R"("stream":"yes")", "400 [stream] stream: expected true or false, found \"yes\"");
  expect_error(R"("stream_options":{"include_usage":1})",
               "400 [stream_options.include_usage] stream_options.include_usage: expected true or false, found 1");
  expect_error(R"("top_logprobs":2)", "400 [top_logprobs] top_logprobs: it needs \"logprobs\": true beside it");
  expect_error(R"("logprobs":true,"top_logprobs":21)", "400 [top_logprobs] top_logprobs: expected an integer between 0 and 20, found 21");
  expect_error(R"("logit_bias":{"x":1})", "400 [logit_bias] logit_bias: expected token ids between 0 and " +
                                              std::to_string(config.vocab - 1) + " as keys, found \"x\"");
  expect_error(R"("logit_bias":{"5":101})", "400 [logit_bias.5] logit_bias.5: expected a number between -100 and 100, found 101");
  expect_error(R"("messages":[])", "400 [messages] messages: expected at least one message, found an empty list");
  expect_error(R"("messages":[{"role":"robot","content":"x"}])",
               "400 [messages[0].role] messages[0].role: expected system, developer, user, assistant or tool, found \"robot\"");
  expect_error(R"("tool_choice":"required")",
               "400 [tool_choice] tool_choice: a call is required, but no tools are given; add tools or leave tool_choice out");
  expect_error(std::string(R"("tool_choice":{"type":"function","function":{"name":"sub"}},)") + kTools,
               "400 [tool_choice] tool_choice: expected the name of one of the tools, found \"sub\"");
  expect_error(R"("response_format":{"type":"yaml"})",
               "400 [response_format.type] response_format.type: expected \"text\", \"json_object\" or \"json_schema\", found \"yaml\"");
  expect_error(R"("response_format":{"type":"json_object"},"guided_regex":"a+")",
               "400 [guided_regex] guided_regex: response_format was given too; an answer can obey one of them");
  expect_error(
      R"("structured_outputs":{"structural_tag":"x"})",
      "400 [structured_outputs.structural_tag] structured_outputs.structural_tag: this server does not support structural tags; use json, "
      "regex, choice or grammar");
  expect_error(R"("request_id":"a b")", "400 [request_id] request_id: expected 1 to 128 letters, digits or any of . _ : -, found \"a b\"");
  expect_error(R"("stop":[")" + std::string(5000, 'x') + "\"]", "400 [stop] stop: expected at most 4096 bytes in all, found 5000");
  expect_error(R"("seed":1.5)", "400 [seed] seed: expected a 64-bit integer, found 1.5");
  expect_error(R"("prompt_logprobs":1,"stream":true)", "400 [prompt_logprobs] prompt_logprobs: they are not streamed; leave stream out");
  expect_error(R"("continue_final_message":true,"add_generation_prompt":true)",
               "400 [add_generation_prompt] add_generation_prompt: it contradicts continue_final_message; set one of them");
}

TEST_F(ChatTest, BodiesThatAreNoJsonTellTheByte) {
  auto responder = post(kChat, "{\"messages\":\n [}");
  EXPECT_EQ(error_of(*responder).substr(0, 36), "400 [body] body: not valid JSON: par");
  EXPECT_NE(error_of(*responder).find("(byte 15)"), std::string::npos) << error_of(*responder);
  EXPECT_EQ(error_of(*post(kChat, "[1]")), "400 [body] body: expected a JSON object, found a list");
  EXPECT_EQ(post(kChat, "")->answer->status, 400);
  EXPECT_EQ(post(kChat, std::string(100000, '['))->answer->status, 400);
  std::string wide = "{\"x\":[0";
  for (int i = 0; i < 2100000; i++) wide += ",0";
  EXPECT_EQ(error_of(*post(kChat, wide + "]}")), "400 [body] body: expected at most 2097152 values, found more; split the request");
}

TEST_F(ChatTest, UnknownModelIs404) {
  auto responder = post(kChat, chat_body(R"("model":"gpt")"));
  EXPECT_EQ(error_of(*responder), "404 [model] model: expected a model that is served here (mini, org/mini), found \"gpt\"");
  EXPECT_EQ((*parse_json(responder->answer->body, "x"))["error"]["code"], "model_not_found");
}

TEST_F(ChatTest, WithoutAChatFormatTheErrorSaysSo) {
  with_chat = false;
  auto responder = post(kChat, chat_body(""));
  EXPECT_EQ(responder->answer->status, 400);
  EXPECT_NE(error_of(*responder).find("no chat template"), std::string::npos);
}

TEST_F(ChatTest, EngineErrorsBecomeStatusCodes) {
  engine.refuse_after = 0;
  auto full = post(kChat, chat_body(R"("stream":true)"));
  EXPECT_EQ(full->answer->status, 429);
  EXPECT_EQ(full->answer->headers, (std::vector<std::pair<std::string, std::string>>{{"Retry-After", "1"}}));
  EXPECT_FALSE(full->streaming);
  engine.state.draining = true;
  EXPECT_EQ(post(kChat, chat_body(""))->answer->status, 503);
  engine.refusal = input_error("the prompt has 9 tokens, the context 4");
  EXPECT_EQ(error_of(*post(kChat, chat_body(""))), "400 [] the prompt has 9 tokens, the context 4");
  std::string words;
  for (int i = 0; i < 5000; i++) words += "a b ";
  auto longer = post(kChat, R"({"messages":[{"role":"user","content":")" + words + R"("}]})");
  EXPECT_EQ((*parse_json(longer->answer->body, "x"))["error"]["code"], "context_length_exceeded");
}

TEST_F(ChatTest, AFailureInARunningStreamIsAnErrorEventAndDone) {
  auto responder = post(kChat, chat_body(R"("stream":true,"timeout":1000)"));
  engine.say(0, "</think>part");
  engine.stop(0, FinishReason::kCancelled);
  Error error{ErrorKind::kCancelled, "cancelled by an operator"};
  engine.end(0, &error);
  auto events = events_of(responder->sent);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[2], R"({"error":{"message":"cancelled by an operator","type":"server_error","param":null,"code":"abort"}})");
  EXPECT_EQ(events[3], "[DONE]");
  EXPECT_TRUE(responder->finished);

  auto whole = post(kChat, chat_body(R"("timeout":0.001)"));
  error.message = "the request's time is over";
  engine.stop(1, FinishReason::kDeadline);
  engine.end(1, &error);
  EXPECT_EQ(whole->answer->status, 504);
  EXPECT_EQ(whole->access.finish, "timeout");

  auto broken = post(kChat, chat_body(""));
  Error device{ErrorKind::kDevice, "cuda: out of order"};
  engine.end(2, &device);
  EXPECT_EQ(error_of(*broken), "500 [] cuda: out of order");
}

TEST_F(ChatTest, AClientThatLeavesIsCancelledAndHoldsNothing) {
  auto responder = post(kChat, chat_body(R"("stream":true)"));
  engine.say(0, "</think>a");
  size_t sent = responder->sent.size();
  responder->pressure(true);
  responder->pressure(false);
  EXPECT_EQ(engine.pauses, (std::vector<std::pair<uint64_t, bool>>{{1, true}, {1, false}}));
  responder->close();
  EXPECT_EQ(engine.cancelled, std::vector<uint64_t>{1});
  engine.say(0, "b");
  EXPECT_EQ(responder->sent.size(), sent);
  EXPECT_GT(responder.use_count(), 1);
  Error error{ErrorKind::kCancelled, "cancelled by the client"};
  engine.end(0, &error);
  EXPECT_EQ(responder->sent.size(), sent);
  EXPECT_EQ(responder.use_count(), 1) << "the responder is held by its own callbacks";
}

TEST_F(ChatTest, StructuredAnswersAreHeldToTheirGrammarAfterTheReasoning) {
  post(kChat, chat_body(R"("response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":{"type":"object"}}})"));
  post(kChat, chat_body(R"("structured_outputs":{"choice":["a","b"]})"));
  post(kChat, chat_body(R"("guided_json":"{\"type\":\"object\"}")"));
  post(kChat, chat_body(R"("response_format":{"type":"text"})"));
  post(kChat, chat_body(std::string(R"("tool_choice":"required",)") + kTools));
  post(kChat, chat_body(kTools));
  ASSERT_EQ(engine.submitted.size(), 6u);
  for (size_t i = 0; i < 6; i++) EXPECT_EQ(engine.submitted[i].request.grammar != nullptr, i != 3 && i != 5) << i;
  auto bad = post(kChat, chat_body(R"("response_format":{"type":"json_schema","json_schema":{"schema":{"type":"nonsense"}}})"));
  EXPECT_EQ(bad->answer->status, 400);
  EXPECT_EQ(error_of(*bad).substr(0, 45), "400 [response_format.json_schema.schema] resp") << error_of(*bad);
}

TEST_F(ChatTest, ToolChoiceNoneLeavesTheToolsOut) {
  post(kChat, chat_body(std::string(R"("tool_choice":"none",)") + kTools));
  EXPECT_EQ(prompt_text().find("add"), std::string::npos);
}

TEST_F(ChatTest, ContinuesTheFinalMessage) {
  post(kChat, R"({"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Well"}],"continue_final_message":true})");
  EXPECT_TRUE(prompt_text().ends_with("Well")) << prompt_text();
}

}  // namespace
}  // namespace dg::api
