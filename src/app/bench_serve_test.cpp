// The parts of `bench serve` that need no network; tests/cli/bench_serve_test.mjs drives the whole.
#if __has_include(<openssl/opensslconf.h>)  // as in src/CMakeLists.txt: cross builds leave `bench` out
#include "app/bench_serve.h"

#include <gtest/gtest.h>

#include <cmath>

#include "app/bench_serve_stream.h"
#include "base/json.h"

namespace dg {
namespace {

TEST(BenchServe, Url) {
  auto server = [](std::string_view url) {
    auto parsed = parse_bench_url(url);
    EXPECT_TRUE(parsed.ok()) << url;
    return parsed.ok() ? *parsed : BenchServer{};
  };
  EXPECT_EQ(server("http://h").port, "80");
  EXPECT_EQ(server("https://h/").port, "443");
  EXPECT_TRUE(server("https://h").tls);
  EXPECT_EQ(server("http://127.0.0.1:8000/v1/").base_path, "");
  EXPECT_EQ(server("http://h:1/openai/v1").base_path, "/openai");
  EXPECT_EQ(server("http://[::1]:9").host, "::1");
  EXPECT_EQ(server("http://[::1]:9").port, "9");
  EXPECT_EQ(server("unix:/tmp/套 a.sock").unix_path, "/tmp/套 a.sock");
  EXPECT_EQ(server("unix:///tmp/a").unix_path, "/tmp/a");
  for (const char* bad : {"", "h:80", "http://", "http://:80", "http://h:0", "http://h:65536", "http://h:8x", "http://h:", "http://[::1",
                          "unix:a", "http://u@h", "http://h /", "http://h\r\nX: y", "unix:"})
    EXPECT_FALSE(parse_bench_url(bad).ok()) << bad;
}

TEST(BenchServe, Figures) {
  const BenchFigure figure = bench_figure({4, 1, 3, 2});
  EXPECT_DOUBLE_EQ(figure.mean, 2.5);
  EXPECT_DOUBLE_EQ(figure.median, 2.5);
  EXPECT_DOUBLE_EQ(figure.std, std::sqrt(1.25));
  EXPECT_DOUBLE_EQ(figure.p99, 3.97);
  EXPECT_DOUBLE_EQ(bench_figure({7}).p99, 7);
  EXPECT_DOUBLE_EQ(bench_figure({}).mean, 0);
}

TEST(BenchServe, StreamInAnyPieces) {
  const std::string text =
      ": hello\r\n\r\ndata: {\"choices\":[{\"text\":\"a\"}]}\r\n\r\ndata:{\"choices\":\ndata: [{\"text\":\"b\"}]}\n\n"
      "event: x\ndata: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n"
      "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":9}}\n\ndata: [DONE]\n\nafter the end";
  for (size_t step = 1; step < text.size() + 1; step++) {
    BenchStream stream(false);
    for (size_t at = 0; at < text.size(); at += step)
      ASSERT_TRUE(stream.push(text.substr(at, step), 1 + static_cast<double>(at))) << stream.error();
    ASSERT_TRUE(stream.finish());
    ASSERT_TRUE(stream.done());
    BenchOutcome outcome;
    stream.fill(outcome);
    ASSERT_EQ(outcome.prompt_tokens, 5);
    ASSERT_EQ(outcome.output_tokens, 9);
    ASSERT_EQ(outcome.itl_s.size(), 1u);
    ASSERT_DOUBLE_EQ(outcome.ttft_s + outcome.itl_s[0], outcome.latency_s);
  }
}

TEST(BenchServe, ReportCountsEveryRequestOnce) {
  BenchRun run;
  run.duration_s = 2;
  run.outcomes = {
      {.kind = BenchOutcome::kCompleted, .prompt_tokens = 10, .output_tokens = 5, .ttft_s = 0.5, .latency_s = 1.5, .itl_s = {0.25, 0.75}},
      {.kind = BenchOutcome::kFailed, .error_kind = "http_500", .error = "first"},
      {.kind = BenchOutcome::kFailed, .error_kind = "http_500", .error = "second"},
      {.kind = BenchOutcome::kDisconnected},
      {.kind = BenchOutcome::kCancelled},
      {}};
  const Json json = bench_report_json(make_bench_report(run));
  EXPECT_EQ(json["completed"], 1);
  EXPECT_EQ(json["failed"], 2);
  EXPECT_EQ(json["disconnected"], 1);
  EXPECT_EQ(json["cancelled"], 2);
  EXPECT_EQ(json["errors"]["http_500"], 2);
  EXPECT_EQ(json["error_examples"]["http_500"], "first");
  EXPECT_DOUBLE_EQ(json["total_token_throughput"].get<double>(), 7.5);
  EXPECT_DOUBLE_EQ(json["mean_ttft_ms"].get<double>(), 500);
  EXPECT_DOUBLE_EQ(json["mean_tpot_ms"].get<double>(), 250);
  EXPECT_DOUBLE_EQ(json["median_itl_ms"].get<double>(), 500);
  EXPECT_DOUBLE_EQ(json["p99_e2el_ms"].get<double>(), 1500);
}

}  // namespace
}  // namespace dg
#endif
