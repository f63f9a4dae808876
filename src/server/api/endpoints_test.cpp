// The endpoints that generate no text: models, embeddings, tokenize, health, the operators' own.
#include <cmath>
#include <thread>

#include "base/json.h"
#include "server/api/api_test_tools.h"

namespace dg::api {
namespace {

class EndpointsTest : public ApiTest {
 protected:
  int status_of(const std::string& path) { return call("GET", path)->answer->status; }
  bool answers_ = true;
};

TEST_F(EndpointsTest, Models) {
  Json list = *parse_json(call("GET", "/v1/models")->answer->body, "models");
  ASSERT_EQ(list["data"].size(), 2u);
  EXPECT_EQ(list["data"][1]["id"], "org/mini");
  EXPECT_EQ(list["data"][0]["root"], "/models/mini");
  EXPECT_EQ(list["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(*parse_json(call("GET", "/v1/models/org/mini")->answer->body, "model"), list["data"][1]);
}

TEST_F(EndpointsTest, EmbeddingsAreNormalisedAndInOrder) {
  auto responder = post("/v1/embeddings", R"({"input":["a","b"],"pooling":"mean"})");
  ASSERT_EQ(engine.submitted.size(), 2u);
  EXPECT_EQ(engine.submitted[0].request.pooling, Pooling::kMean);
  std::vector<float> first = {3, 0, 4, 0}, second = {0, 0, 0, 2};
  engine.submitted[1].listener->on_embedding(second);
  engine.end(1);
  engine.submitted[0].listener->on_embedding(first);
  engine.end(0);
  Json json = *parse_json(responder->answer->body, "embeddings");
  EXPECT_NEAR(json["data"][0]["embedding"][0].get<double>(), 0.6, 1e-7);
  EXPECT_NEAR(json["data"][0]["embedding"][2].get<double>(), 0.8, 1e-7);
  EXPECT_EQ(json["data"][1]["embedding"], Json::array({0.0, 0.0, 0.0, 1.0}));
  EXPECT_EQ(json["data"][1]["index"], 1);
  EXPECT_EQ(json["usage"]["prompt_tokens"], 4);

  auto raw = post("/v1/embeddings", R"({"input":[5,6],"encoding_format":"base64","normalize":false,"dimensions":4})");
  EXPECT_EQ(engine.submitted[2].request.pooling, Pooling::kLast);
  EXPECT_EQ(engine.submitted[2].request.prompt, (std::vector<int32_t>{5, 6}));
  std::vector<float> one = {1};
  engine.submitted[2].listener->on_embedding(one);
  engine.end(2);
  EXPECT_EQ((*parse_json(raw->answer->body, "embeddings"))["data"][0]["embedding"], "AACAPw==");
  EXPECT_EQ(error_of(*post("/v1/embeddings", R"({"input":"x","dimensions":2})")),
            "400 [dimensions] dimensions: expected 4, the model's size (it cannot be shortened), found 2");
  EXPECT_EQ(error_of(*post("/v1/embeddings", R"({"input":[""],"add_special_tokens":false})")),
            "400 [input[0]] input[0]: expected at least one token, found an empty text");
}

TEST_F(EndpointsTest, TokenizeAndBack) {
  Json json = *parse_json(post("/tokenize", R"({"prompt":"Hello 中","return_token_strs":true})")->answer->body, "tokens");
  EXPECT_EQ(json["tokens"].get<std::vector<int32_t>>(), tokenizer->encode("Hello 中"));
  EXPECT_EQ(json["count"], json["tokens"].size());
  EXPECT_EQ(json["token_strs"].size(), json["tokens"].size());
  EXPECT_EQ(json["max_model_len"], 4096);
  Json chat = *parse_json(post("/tokenize", R"({"messages":[{"role":"user","content":"Hi"}]})")->answer->body, "tokens");
  EXPECT_EQ(tokenizer->decode(chat["tokens"].get<std::vector<int32_t>>()), "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>");
  EXPECT_EQ(post("/detokenize", "{\"tokens\":" + json["tokens"].dump() + ",\"skip_special_tokens\":true}")->answer->body,
            "{\"prompt\":\"Hello 中\"}");
  EXPECT_EQ(error_of(*post("/tokenize", "{}")), "400 [prompt] prompt: expected either prompt or messages, found neither");
  EXPECT_EQ(error_of(*post("/detokenize", "{}")), "400 [tokens] tokens: expected a list of token ids, found nothing");
}

TEST_F(EndpointsTest, ReadyOnlyAfterARealTokenAndNotWhileDraining) {
  EXPECT_EQ(status_of("/health"), 200);
  EXPECT_EQ(status_of("/ready"), 503);
  engine.state.generated_tokens = 1;
  EXPECT_EQ(status_of("/ready"), 200);
  engine.state.draining = true;
  EXPECT_EQ(status_of("/ready"), 503);
  EXPECT_EQ(status_of("/health"), 200);
  engine.state.running = 2;
  engine.state.waiting = 3;
  EXPECT_EQ(call("GET", "/load")->answer->body, "{\"server_load\":5}");
  EXPECT_EQ(call("GET", "/version")->answer->body, "{\"version\":\"1.2.3\"}");
}

TEST_F(EndpointsTest, HealthFailsWhenABatchMakesNoStep) {
  options.stall_limit = std::chrono::seconds(0);
  engine.status = {{.id = "x", .stage = "decode"}};
  EXPECT_EQ(status_of("/health"), 200) << "the first look only starts the clock";
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_EQ(status_of("/health"), 503);
  engine.state.steps++;
  EXPECT_EQ(status_of("/health"), 200);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  engine.status[0].stage = "paused";  // a slow client is no fault of the engine
  EXPECT_EQ(status_of("/health"), 200);
}

TEST_F(EndpointsTest, WhatOperatorsDo) {
  EXPECT_EQ(call("GET", "/metrics", "", true)->answer->body, "metric 1\n");
  engine.status = {{.handle = 1,
                    .id = "a\"b",
                    .tenant = "t",
                    .stage = "decode",
                    .age_s = 1.5,
                    .prompt_tokens = 3,
                    .generated_tokens = 4,
                    .blocks = 5,
                    .priority = -1}};
  EXPECT_EQ(call("GET", "/debug/requests", "", true)->answer->body,
            R"({"requests":[{"id":"a\"b","tenant":"t","stage":"decode","age_s":1.500,"prompt_tokens":3,"generated_tokens":4,)"
            R"("blocks":5,"priority":-1}]})");
  EXPECT_EQ(call("POST", "/admin/abort", R"({"request_id":"chatcmpl-known"})", true)->answer->body, R"({"aborted":1})");
  EXPECT_EQ(engine.cancelled_ids, (std::vector<std::string>{"chatcmpl-known", "known"}));
  EXPECT_EQ(call("POST", "/admin/abort", R"({"request_id":"cmpl-"})", true)->answer->body, R"({"aborted":0})");
  EXPECT_EQ(call("POST", "/admin/abort", R"({"all":true})", true)->answer->body, R"({"aborted":1})");
  EXPECT_EQ(engine.cancelled_ids.back(), "");
  size_t before = engine.cancelled_ids.size();
  EXPECT_EQ(call("POST", "/admin/abort", R"({})", true)->answer->status, 400);
  EXPECT_EQ(call("POST", "/admin/abort", R"({"request_id":""})", true)->answer->status, 400);
  EXPECT_EQ(engine.cancelled_ids.size(), before);
  EXPECT_EQ(call("POST", "/admin/reset_prefix_cache", "", true)->answer->status, 200);
  EXPECT_EQ(engine.resets, 1);
  EXPECT_EQ(call("POST", "/admin/drain", "", true)->answer->status, 200);
  EXPECT_TRUE(engine.state.draining);
  for (const Route& route : service().admin_routes({}))
    if (route.path.starts_with("/admin") || route.path.starts_with("/debug")) {
      EXPECT_EQ(route.role, Role::kAdmin) << route.path;
    }
  for (const Route& route : service().api_routes()) {
    EXPECT_FALSE(route.path.starts_with("/admin")) << route.path;
    if (route.path.starts_with("/v1")) {
      EXPECT_EQ(route.role, Role::kUser) << route.path;
    }
  }
}

TEST_F(EndpointsTest, WarmUpGeneratesOneToken) {
  engine.on_submit = [this](size_t at) {
    EXPECT_EQ(engine.submitted[at].request.max_tokens, 1);
    if (answers_) engine.say(at, "x");
    engine.stop(at, FinishReason::kLength);
    engine.end(at);
  };
  EXPECT_TRUE(service().warm_up(std::chrono::seconds(1)).ok());
  answers_ = false;
  EXPECT_FALSE(service().warm_up(std::chrono::seconds(1)).ok());
  engine.on_submit = nullptr;
  auto late = service().warm_up(std::chrono::milliseconds(1));
  ASSERT_FALSE(late.ok());
  EXPECT_NE(late.error().message.find("no token within 1 ms"), std::string::npos);
  EXPECT_EQ(engine.cancelled, std::vector<uint64_t>{3});
}

// The engine may be quicker than the handler: everything can have happened before submit() returns.
TEST_F(EndpointsTest, OutputBeforeTheHandlerIsDoneIsNotLost) {
  engine.on_submit = [this](size_t at) {
    engine.say(at, "</think>quick");
    engine.stop(at);
    engine.end(at);
  };
  for (const char* path : {"/v1/chat/completions", "/v1/messages", "/v1/responses"}) {
    for (bool stream : {false, true}) {
      auto responder = post(path, std::string(R"({"max_tokens":5,"messages":[{"role":"user","content":"x"}],"input":"x","stream":)") +
                                      (stream ? "true}" : "false}"));
      EXPECT_EQ(responder->finished, stream) << path;
      std::string text = stream ? responder->sent : responder->answer->body;
      EXPECT_NE(text.find("quick"), std::string::npos) << path << " " << text;
      if (stream && path != std::string("/v1/chat/completions")) {
        EXPECT_NE(text.substr(0, 40).find(path == std::string("/v1/messages") ? "message_start" : "response.created"), std::string::npos);
      }
      EXPECT_EQ(responder.use_count(), 1) << path;
    }
  }
  engine.on_submit = [this](size_t at) {
    Error error{ErrorKind::kDevice, "broken"};
    engine.end(at, &error);
  };
  auto responder = post("/v1/chat/completions", R"({"messages":[{"role":"user","content":"x"}],"stream":true})");
  ASSERT_TRUE(responder->answer) << "nothing was streamed yet: a plain error";
  EXPECT_EQ(responder->answer->status, 500);
}

}  // namespace
}  // namespace dg::api
