// For the tests of the endpoints: an engine that does what the test says, a responder that keeps what it is given, and a
// service over the tokenizer and chat format of mini-r1.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "server/service.h"

namespace dg::api {

class FakeEngine : public Engine {
 public:
  struct Submitted {
    EngineRequest request;
    std::shared_ptr<RequestListener> listener;
  };
  Result<uint64_t> submit(EngineRequest request, std::shared_ptr<RequestListener> listener) override {
    if (refuse_after >= 0 && static_cast<int>(submitted.size()) >= refuse_after) return refusal;
    submitted.push_back({std::move(request), std::move(listener)});
    size_t at = submitted.size() - 1;
    if (on_submit) on_submit(at);
    return at + 1;
  }
  void cancel(uint64_t handle) override { cancelled.push_back(handle); }
  void pause(uint64_t handle, bool paused) override { pauses.emplace_back(handle, paused); }
  int64_t cancel_id(const std::string& id) override {
    cancelled_ids.push_back(id);
    return id == known_id || id.empty() ? 1 : 0;
  }
  void drain() override { state.draining = true; }
  bool idle() const override { return status.empty(); }
  bool wait_idle(std::chrono::milliseconds) override { return idle(); }
  void reset_prefix_cache() override { resets++; }
  EngineStats stats() const override { return state; }
  std::vector<RequestStatus> requests() const override { return status; }
  std::optional<Error> failure() const override { return {}; }
  const EngineOptions& options() const override { return options_; }

  // What the output thread does. Text and one token of that id per call.
  void say(size_t at, std::string_view text, std::vector<TokenInfo> tokens = {{.id = 100, .logprob = -0.5f}}, int index = 0) {
    submitted[at].listener->on_delta({.index = index, .text = text, .tokens = tokens});
  }
  void stop(size_t at, FinishReason reason = FinishReason::kStop, int index = 0, std::string_view stop_text = {}, int32_t stop_id = -1) {
    std::vector<TokenInfo> tokens;
    if (stop_id >= 0) tokens.push_back({.id = stop_id, .logprob = -0.1f});
    submitted[at].listener->on_delta(
        {.index = index, .tokens = tokens, .finished = true, .reason = reason, .stop_text = stop_text, .stop_id = stop_id});
  }
  void end(size_t at, const Error* error = nullptr, int64_t cached = 0) {
    RequestUsage usage;
    usage.prompt_tokens = static_cast<int64_t>(submitted[at].request.prompt.size());
    usage.cached_tokens = cached;
    submitted[at].listener->on_end(usage, error);
    submitted[at].listener.reset();
  }

  std::vector<Submitted> submitted;
  std::function<void(size_t)> on_submit;  // before submit() returns
  int refuse_after = -1;
  Error refusal = resource_error("the queue is full");
  std::vector<uint64_t> cancelled;
  std::vector<std::pair<uint64_t, bool>> pauses;
  std::vector<std::string> cancelled_ids;
  std::string known_id = "known";
  EngineStats state;
  std::vector<RequestStatus> status;
  int resets = 0;

 private:
  EngineOptions options_{.max_model_len = 4096};
};

class MemoryResponder : public HttpResponder {
 public:
  void respond(HttpResponse response) override {
    EXPECT_FALSE(answer || streaming) << "answered twice";
    answer = std::move(response);
  }
  void begin_stream(int status, std::string type, std::vector<std::pair<std::string, std::string>>) override {
    EXPECT_FALSE(answer || streaming) << "answered twice";
    EXPECT_EQ(status, 200);
    EXPECT_EQ(type, "text/event-stream; charset=utf-8");
    streaming = true;
  }
  void send(std::string bytes) override {
    EXPECT_TRUE(streaming && !finished);
    sent += bytes;
  }
  void finish() override {
    EXPECT_TRUE(streaming && !finished);
    finished = true;
  }
  void on_close(std::function<void()> callback) override { close = std::move(callback); }
  void on_pressure(std::function<void(bool)> callback) override { pressure = std::move(callback); }
  void set_access_fields(AccessFields fields) override { access = std::move(fields); }

  std::optional<HttpResponse> answer;
  bool streaming = false, finished = false;
  std::string sent;
  std::function<void()> close;
  std::function<void(bool)> pressure;
  AccessFields access;
};

class ApiTest : public ::testing::Test {
 protected:
  void SetUp() override;
  // Made from `options` at the first call.
  Service& service();
  std::shared_ptr<MemoryResponder> call(const std::string& method, const std::string& path, std::string body = "", bool admin = false);
  std::shared_ptr<MemoryResponder> post(const std::string& path, std::string body) { return call("POST", path, std::move(body)); }
  // The text of the prompt that the engine got.
  std::string prompt_text(size_t at = 0) const { return tokenizer->decode(engine.submitted.at(at).request.prompt); }
  // "400 temperature: ..." of an answer, with its param in brackets: "400 [temperature] temperature: ...".
  static std::string error_of(const MemoryResponder& responder);

  FakeEngine engine;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<PromptEncoder> prompt;
  std::unique_ptr<GrammarCompiler> grammars;
  ModelConfig config;
  ServiceOptions options;
  bool with_chat = true;

 private:
  std::unique_ptr<Service> service_;
};

// The JSON of every event of a stream ("[DONE]" as it is), ids and times replaced: "id":"*", "created":0.
std::vector<std::string> events_of(const std::string& stream);
std::string masked(std::string json);

}  // namespace dg::api
