#include "server/metrics.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <thread>

#include "server/http_test_client.h"

namespace dg {
namespace {

using namespace std::chrono_literals;

// The value of one series, found by the text before it; -1 when there is none.
double value_of(const std::string& text, const std::string& series) {
  const size_t at = ("\n" + text).find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::stod(text.substr(at + series.size() + 1));
}

const std::string kLabels = "model_name=\"m\",engine=\"0\"";

std::string plain(const std::string& name) { return "vllm:" + name + "{" + kLabels + "}"; }

Metrics make_metrics() {
  return Metrics({.model_name = "m", .max_model_len = 1000, .cache_config = {{"block_size", "16"}, {"num_gpu_blocks", "100"}}});
}

TEST(Metrics, ReportsCountersAndGauges) {
  Metrics metrics = make_metrics();
  metrics.set_startup_s(2.5);
  metrics.set_weight_load_s(1.5);
  EngineStats engine;
  engine.running = 3;
  engine.waiting = 4;
  engine.kv_blocks = 100;
  engine.kv_free = 40;
  engine.kv_cached = 10;
  engine.prompt_tokens = 1000;
  engine.cached_tokens = 200;
  engine.generated_tokens = 5'000'000'123;
  engine.preemptions = 7;
  engine.prefix_queries = 900;
  engine.prefix_hits = 300;
  engine.drafts = 10;
  engine.draft_tokens = 20;
  engine.accepted_tokens = 15;
  engine.accepted_per_position = {9, 6};
  HttpStats http;
  http.requests_active = 5;
  http.responses_4xx = 2;
  const std::string text = metrics.render(engine, http);
  EXPECT_EQ(value_of(text, plain("num_requests_running")), 3);
  EXPECT_EQ(value_of(text, plain("num_requests_waiting")), 4);
  EXPECT_DOUBLE_EQ(value_of(text, plain("kv_cache_usage_perc")), 0.5);
  EXPECT_EQ(value_of(text, plain("prompt_tokens_total")), 1000);
  EXPECT_EQ(value_of(text, plain("prompt_tokens_cached_total")), 200);
  EXPECT_EQ(value_of(text, plain("generation_tokens_total")), 5'000'000'123);
  EXPECT_EQ(value_of(text, plain("num_preemptions_total")), 7);
  EXPECT_EQ(value_of(text, plain("prefix_cache_queries_total")), 900);
  EXPECT_EQ(value_of(text, plain("prefix_cache_hits_total")), 300);
  EXPECT_EQ(value_of(text, plain("spec_decode_num_drafts_total")), 10);
  EXPECT_EQ(value_of(text, plain("spec_decode_num_draft_tokens_total")), 20);
  EXPECT_EQ(value_of(text, plain("spec_decode_num_accepted_tokens_total")), 15);
  EXPECT_EQ(value_of(text, "vllm:spec_decode_num_accepted_tokens_per_pos_total{" + kLabels + ",position=\"1\"}"), 6);
  EXPECT_EQ(value_of(text, "vllm:cache_config_info{" + kLabels + ",block_size=\"16\",num_gpu_blocks=\"100\"}"), 1);
  EXPECT_EQ(value_of(text, plain("startup_time_seconds")), 2.5);
  EXPECT_EQ(value_of(text, plain("weight_load_duration_seconds")), 1.5);
  EXPECT_EQ(value_of(text, plain("http_requests_active")), 5);
  EXPECT_EQ(value_of(text, "vllm:http_error_responses_total{" + kLabels + ",class=\"4xx\"}"), 2);
  EXPECT_GT(value_of(text, "process_resident_memory_bytes"), 1e6);
  EXPECT_GT(value_of(text, "process_open_fds"), 2);
  EXPECT_NEAR(value_of(text, "process_start_time_seconds"), static_cast<double>(std::time(nullptr)), 600);
  EXPECT_EQ(metrics.render({}, http).find("nan"), std::string::npos);
}

TEST(Metrics, ObservesRequests) {
  Metrics metrics = make_metrics();
  const EngineClock::time_point t0 = EngineClock::now();
  RequestUsage usage{.prompt_tokens = 100, .generated_tokens = 11, .times = {t0, t0 + 100ms, t0 + 600ms, t0 + 1600ms}};
  EngineRequest request;
  request.n = 2;
  request.max_tokens = 50;
  metrics.on_request_end(request, usage, FinishReason::kStop);
  usage.times = {t0, {}, {}, t0 + 10ms};  // cancelled while it waited
  usage.generated_tokens = 0;
  metrics.on_request_end(request, usage, FinishReason::kCancelled);
  metrics.on_request_end(request, usage, FinishReason::kDeadline);
  metrics.on_request_end(request, usage, FinishReason::kContext);
  metrics.on_request_end(request, usage, FinishReason::kError);
  metrics.on_token(true, 0.6);
  for (int i = 0; i < 10; ++i) metrics.on_token(false, 0.1);
  metrics.on_step(100, 3, 0.5, 0.0003);
  const std::string text = metrics.render({}, HttpStats{});
  auto ended = [&](const char* reason) {
    return value_of(text, "vllm:request_success_total{" + kLabels + ",finished_reason=\"" + reason + "\"}");
  };
  EXPECT_EQ(ended("stop"), 1);
  EXPECT_EQ(ended("length"), 1);
  EXPECT_EQ(ended("abort"), 2);
  EXPECT_EQ(ended("error"), 1);
  EXPECT_EQ(value_of(text, plain("num_aborted_requests_total")), 2);
  auto bucket = [&](const std::string& name, const std::string& le) {
    return value_of(text, "vllm:" + name + "_bucket{" + kLabels + ",le=\"" + le + "\"}");
  };
  EXPECT_EQ(value_of(text, plain("time_to_first_token_seconds_count")), 1);
  EXPECT_EQ(bucket("time_to_first_token_seconds", "0.5"), 0);
  EXPECT_EQ(bucket("time_to_first_token_seconds", "0.75"), 1);
  EXPECT_EQ(bucket("time_to_first_token_seconds", "+Inf"), 1);
  EXPECT_EQ(bucket("inter_token_latency_seconds", "0.075"), 0);
  EXPECT_EQ(bucket("inter_token_latency_seconds", "0.1"), 10);  // upper bounds are inclusive
  EXPECT_NEAR(value_of(text, plain("inter_token_latency_seconds_sum")), 1.0, 1e-9);
  EXPECT_NEAR(value_of(text, plain("request_queue_time_seconds_sum")), 0.1, 1e-6);
  EXPECT_EQ(value_of(text, plain("request_queue_time_seconds_count")), 1);
  EXPECT_NEAR(value_of(text, plain("request_prefill_time_seconds_sum")), 0.5, 1e-6);
  EXPECT_NEAR(value_of(text, plain("request_decode_time_seconds_sum")), 1.0, 1e-6);
  EXPECT_NEAR(value_of(text, plain("request_inference_time_seconds_sum")), 1.5, 1e-6);
  EXPECT_NEAR(value_of(text, plain("request_time_per_output_token_seconds_sum")), 0.1, 1e-6);
  EXPECT_EQ(value_of(text, plain("e2e_request_latency_seconds_count")), 5);
  EXPECT_EQ(value_of(text, plain("request_prompt_tokens_sum")), 500);
  EXPECT_EQ(value_of(text, plain("request_generation_tokens_sum")), 11);
  EXPECT_EQ(value_of(text, plain("request_params_max_tokens_sum")), 250);
  EXPECT_EQ(value_of(text, plain("request_params_n_sum")), 10);
  EXPECT_EQ(value_of(text, plain("iteration_tokens_total_sum")), 103);
  EXPECT_NEAR(value_of(text, plain("step_time_seconds_sum")), 0.5, 1e-9);
  EXPECT_NEAR(value_of(text, plain("step_gap_seconds_sum")), 0.0003, 1e-9);
  EXPECT_EQ(bucket("step_gap_seconds", "0.0002"), 0);
  EXPECT_EQ(bucket("step_gap_seconds", "0.0005"), 1);
  EXPECT_EQ(bucket("iteration_tokens_total", "64"), 0);
  EXPECT_EQ(bucket("iteration_tokens_total", "128"), 1);
  EXPECT_GE(bucket("request_prompt_tokens", "1000"), 0);
  EXPECT_EQ(bucket("request_prompt_tokens", "2000"), -1);  // buckets end at --max-model-len
}

TEST(Metrics, EscapesLabelsAndTakesOddValues) {
  Metrics metrics({.model_name = "a\"b\\c\nd"});
  metrics.on_token(false, -1);
  metrics.on_token(false, std::nan(""));
  const std::string text = metrics.render({}, HttpStats{});
  EXPECT_NE(text.find("model_name=\"a\\\"b\\\\c\\nd\""), std::string::npos);
  EXPECT_EQ(value_of(text, "vllm:inter_token_latency_seconds_sum{model_name=\"a\\\"b\\\\c\\nd\",engine=\"0\"}"), 0);
}

// Not a benchmark, but it fails when a lock or a map comes in between; sanitizers are slower.
TEST(Metrics, TokenCallsAreCheapWhileOthersScrape) {
  Metrics metrics = make_metrics();
  std::atomic<bool> stop{false};
  std::thread scraper([&] {
    while (!stop) metrics.render({}, HttpStats{});
  });
  constexpr int kCalls = 1'000'000;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kCalls; ++i) metrics.on_token(false, 0.001 * (i % 100));
  const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / kCalls;
  stop = true;
  scraper.join();
  std::printf("on_token: %.1f ns\n", ns);
  EXPECT_LT(ns, 5000);
  EXPECT_EQ(value_of(metrics.render({}, HttpStats{}), plain("inter_token_latency_seconds_count")), kCalls);
}

TEST(Metrics, PassesPromtool) {
  ASSERT_EQ(std::system("command -v promtool >/dev/null"), 0) << "no promtool: tools/setup installs it with prometheus";
  Metrics metrics = make_metrics();
  EngineStats engine;
  engine.accepted_per_position = {1};
  testing_http::TestFolder folder;
  std::ofstream(folder.file("metrics")) << metrics.render(engine, HttpStats{});
  std::FILE* pipe = ::popen(("promtool check metrics < " + folder.file("metrics") + " 2>&1").c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  // vLLM's names themselves offend two rules of style; everything else must be clean.
  std::string others;
  char line[1024];
  while (std::fgets(line, sizeof line, pipe) != nullptr) {
    const std::string text = line;
    if (text.find("metric names should not contain ':'") != text.npos) continue;
    if (text.starts_with("vllm:iteration_tokens_total ")) continue;
    others += text;
  }
  const int status = ::pclose(pipe);
  EXPECT_EQ(others, "");
  EXPECT_TRUE(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3) << WEXITSTATUS(status);  // 3: style only
}

}  // namespace
}  // namespace dg
