// The parts of `dougong bench serve`, a load generator for any server with OpenAI's API: prompts (bench_serve_dataset.cpp),
// the HTTP client (bench_serve_http.cpp, the only file that knows the network), the reader of event streams
// (bench_serve_stream.h) and the figures (bench_serve_report.cpp). bench_serve.cpp puts them together.
//
// Times are seconds on a steady clock. Definitions of the figures follow `vllm bench serve`.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"

namespace dg {

// Where the server is.
struct BenchServer {
  std::string url;  // as given, for messages
  bool tls = false;
  bool verify_tls = true;
  std::string host, port;  // empty with a Unix socket
  std::string unix_path;
  std::string base_path;   // put before every path: "/openai" of http://host/openai
  std::string api_key;     // "": none
  double timeout_s = 600;  // of one request, from connecting to its last byte
};
// http://host[:port][/path], https://..., unix:/path/to/socket
Result<BenchServer> parse_bench_url(std::string_view url);

struct BenchReply {
  int status = 0;
  std::string body;
};
// One request; a status other than 200 is no error.
Result<BenchReply> bench_fetch(const BenchServer& server, std::string_view method, std::string_view path, const std::string& body);
// The reason in an answer that is no success: error.message of its JSON, else the beginning of its text. One line.
std::string bench_reply_reason(const std::string& body);

// One request of the load.
struct BenchRequest {
  std::string body;               // JSON
  double start_s = 0;             // not before this time
  int64_t prompt_tokens = 0;      // what the server does not report is counted with this; 0: unknown
  int64_t disconnect_after = -1;  // the client leaves after so many events with text; -1: it stays
  bool slow = false;              // the client reads a few bytes every 100 ms
};

struct BenchOutcome {
  enum Kind { kNotRun, kCompleted, kFailed, kDisconnected, kCancelled };
  Kind kind = kNotRun;
  std::string error_kind, error;  // kFailed: "connect", "http_500", "timeout", "closed", "malformed", "error_event", and a line
  int64_t prompt_tokens = 0, output_tokens = 0;
  double ttft_s = 0;          // to the first text
  double latency_s = 0;       // to the last text
  std::vector<double> itl_s;  // between events with text
};

struct BenchLoad {
  std::string path;  // of the endpoint
  bool chat = false;
  size_t concurrency = 0;                   // 0: no limit
  const std::atomic<bool>* stop = nullptr;  // set: what runs is cancelled, the rest does not begin
  std::function<void()> on_end;             // after every request
};

struct BenchRun {
  double duration_s = 0;
  std::vector<BenchOutcome> outcomes;  // as the requests
};
// Raises the limit of open files; an error only when nothing could be tried at all (no address, too few files).
Result<BenchRun> run_bench_load(const BenchServer& server, const std::vector<BenchRequest>& requests, const BenchLoad& load);

// What is asked.
struct BenchPrompts {
  std::string dataset = "random";  // or a file
  bool chat = false;
  int64_t count = 0;  // 0: 100 random ones, or each of the file once
  int64_t input_len = 256, output_len = 64, prefix_len = 0;
  uint64_t seed = 0;
  // Ids that random prompts are made of; empty: they are made of words.
  std::vector<int32_t> token_ids;
};
struct BenchPrompt {
  std::string key;    // "prompt" or "messages"
  std::string value;  // JSON
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
};
Result<std::vector<BenchPrompt>> make_bench_prompts(const BenchPrompts& options);
// A text of many different words, from whose tokens random prompts are drawn.
std::string bench_words();

// mean, median, standard deviation and 99th percentile; 0 without values.
struct BenchFigure {
  double mean = 0, median = 0, std = 0, p99 = 0;
};
BenchFigure bench_figure(std::vector<double> values);

struct BenchReport {
  double duration_s = 0;
  int64_t requests = 0, completed = 0, failed = 0, disconnected = 0, cancelled = 0;
  int64_t input_tokens = 0, output_tokens = 0;
  BenchFigure ttft_s, tpot_s, itl_s, e2el_s;
  std::map<std::string, int64_t> errors;              // by kind
  std::map<std::string, std::string> error_examples;  // the first of each kind
};
BenchReport make_bench_report(const BenchRun& run);
Json bench_report_json(const BenchReport& report);          // keys of `vllm bench serve --save-result`
std::string bench_report_table(const BenchReport& report);  // for people

}  // namespace dg
