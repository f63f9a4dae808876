// `dougong bench serve`: options, the questions to the server before the load, the load's schedule, and the report.
#include "app/bench_serve.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <random>

#include "app/commands.h"
#include "app/terminal.h"
#include "base/file.h"
#include "base/json.h"
#include "base/progress.h"

namespace dg {
namespace {

constexpr const char* kCompletions = "/v1/completions";
constexpr const char* kChat = "/v1/chat/completions";

Error cannot_use(const BenchServer& server, std::string_view path, const BenchReply& reply) {
  return input_error(fmt::format("{}{}: the server answered {}: {}", server.url, path, reply.status, bench_reply_reason(reply.body)));
}

// Infinite for "inf".
Result<double> request_rate(const std::string& text) {
  if (text == "inf") return std::numeric_limits<double>::infinity();
  double rate = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), rate);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || !std::isfinite(rate) || rate <= 0)
    return input_error(fmt::format("--request-rate: expected a number of requests per second above 0, or inf, found {}", in_quotes(text)));
  return rate;
}

Result<std::string> first_model(const BenchServer& server) {
  DG_ASSIGN(BenchReply reply, bench_fetch(server, "GET", "/v1/models", ""));
  if (reply.status != 200) return cannot_use(server, "/v1/models", reply);
  const SortedJson json = SortedJson::parse(reply.body, nullptr, false);
  if (json.is_object() && json.contains("data") && json["data"].is_array() && !json["data"].empty()) {
    const SortedJson& model = json["data"].front();
    if (model.is_object() && model.contains("id") && model["id"].is_string()) return model["id"].get<std::string>();
  }
  return input_error(fmt::format("{}/v1/models: expected {{\"data\": [{{\"id\": ...}}]}}, found {}; pass --model", server.url,
                                 in_quotes(std::string_view(reply.body).substr(0, 120))));
}

// Ids of a text of words, from POST /tokenize where the server has it; empty where it has not.
Result<std::vector<int32_t>> known_token_ids(const BenchServer& server, const std::string& model) {
  const Json question = {{"model", model}, {"prompt", bench_words()}, {"add_special_tokens", false}};
  DG_ASSIGN(BenchReply reply, bench_fetch(server, "POST", "/tokenize", question.dump()));
  std::vector<int32_t> ids;
  const SortedJson json = SortedJson::parse(reply.body, nullptr, false);
  if (reply.status != 200 || !json.is_object() || !json.contains("tokens") || !json["tokens"].is_array()) return ids;
  for (const SortedJson& id : json["tokens"])
    if (id.is_number_integer()) ids.push_back(id.get<int32_t>());
  return ids;
}

struct LoadShape {
  double rate = 0;  // requests/s
  double disconnect_fraction = 0, slow_fraction = 0;
  double temperature = 0;
  bool ignore_eos = false;
  uint64_t seed = 0;
};

std::vector<BenchRequest> make_requests(const std::vector<BenchPrompt>& prompts, const std::string& model, const LoadShape& shape) {
  std::mt19937_64 random(shape.seed ^ 0x9e3779b97f4a7c15u);  // the prompts have their own sequence
  std::uniform_real_distribution<double> uniform(0, 1);
  std::exponential_distribution<double> gap(std::isfinite(shape.rate) ? shape.rate : 1);
  std::vector<BenchRequest> out;
  out.reserve(prompts.size());
  double start_s = 0;
  for (const BenchPrompt& prompt : prompts) {
    Json body = {{"model", model},
                 {"max_tokens", prompt.output_tokens},
                 {"temperature", shape.temperature},
                 {"stream", true},
                 {"stream_options", {{"include_usage", true}}}};
    if (shape.ignore_eos) body["ignore_eos"] = true;
    BenchRequest request;
    request.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
    request.body.back() = ',';
    request.body += fmt::format("\"{}\":{}}}", prompt.key, prompt.value);
    request.prompt_tokens = prompt.prompt_tokens;
    request.start_s = start_s;
    if (std::isfinite(shape.rate)) start_s += gap(random);
    if (uniform(random) < shape.disconnect_fraction)
      request.disconnect_after = static_cast<int64_t>(uniform(random) * static_cast<double>(prompt.output_tokens));
    request.slow = uniform(random) < shape.slow_fraction;
    out.push_back(std::move(request));
  }
  return out;
}

}  // namespace

Result<int> run_bench_serve(const Options& options) {
  DG_ASSIGN(BenchServer server, parse_bench_url(options.text("url")));
  const char* key = std::getenv("VLLM_API_KEY");
  server.api_key = !options.list("api-key").empty() ? options.list("api-key").front() : key ? key : "";
  server.timeout_s = options.number("timeout");
  server.verify_tls = !options.flag("insecure");
  BenchLoad load;
  load.path = options.text("endpoint");
  load.chat = load.path == kChat;
  load.concurrency = static_cast<size_t>(options.integer("concurrency"));
  LoadShape shape;
  DG_ASSIGN(shape.rate, request_rate(options.text("request-rate")));
  shape.disconnect_fraction = options.number("disconnect-fraction");
  shape.slow_fraction = options.number("slow-fraction");
  shape.temperature = options.given("temperature") ? options.number("temperature") : 0;
  shape.seed = options.given("seed") ? static_cast<uint64_t>(options.integer("seed")) : 0;
  BenchPrompts wanted;
  wanted.dataset = options.text("dataset");
  wanted.chat = load.chat;
  wanted.count = options.integer("num-prompts");
  wanted.input_len = options.integer("random-input-len");
  wanted.output_len = options.integer("random-output-len");
  wanted.prefix_len = options.integer("random-prefix-len");
  wanted.seed = shape.seed;
  const bool is_random = wanted.dataset == "random";
  shape.ignore_eos = options.given("ignore-eos") ? options.flag("ignore-eos") : is_random;

  std::string model = options.text("model");
  if (model.empty()) {
    DG_ASSIGN(model, first_model(server));
  }
  if (is_random && !load.chat) {
    DG_ASSIGN(wanted.token_ids, known_token_ids(server, model));
  }
  DG_ASSIGN(std::vector<BenchPrompt> prompts, make_bench_prompts(wanted));
  const std::vector<BenchRequest> requests = make_requests(prompts, model, shape);

  InterruptScope interrupt(2);
  Progress progress("bench serve", requests.size(), {.silent = options.flag("json") || !error_is_terminal(), .unit = "requests"});
  load.stop = &interrupt.requested();
  load.on_end = [&progress] { progress.add(1); };
  DG_ASSIGN(BenchRun run, run_bench_load(server, requests, load));
  const bool interrupted = interrupt.requested();
  if (!interrupted) progress.finish();

  const BenchReport report = make_bench_report(run);
  Json json = {{"backend", "openai"},
               {"url", server.url},
               {"endpoint", load.path},
               {"model_id", model},
               {"dataset", wanted.dataset},
               {"num_prompts", report.requests},
               {"max_concurrency", load.concurrency > 0 ? Json(load.concurrency) : Json(nullptr)},
               {"seed", shape.seed},
               {"interrupted", interrupted}};
  if (std::isfinite(shape.rate)) json["request_rate"] = shape.rate;
  else json["request_rate"] = "inf";
  json.update(bench_report_json(report));
  const std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options.text("result-file").empty()) DG_TRY(write_file(options.text("result-file"), text));
  print_output(options.flag("json") ? text : bench_report_table(report));
  if (interrupted) return exit_code(ErrorKind::kCancelled);
  return report.failed > 0 && report.completed == 0 ? 1 : 0;
}

Result<BenchServer> parse_bench_url(std::string_view url) {
  BenchServer server;
  server.url = std::string(url);
  while (server.url.ends_with('/')) server.url.pop_back();
  std::string_view rest = server.url;
  auto wrong = [&] {
    return input_error(fmt::format("--url: expected http://host[:port], https://host[:port] or unix:/path, found {}", in_quotes(url)));
  };
  if (rest.starts_with("unix:")) {
    rest.remove_prefix(5);
    if (rest.starts_with("//")) rest.remove_prefix(2);
    if (!rest.starts_with('/')) return wrong();
    server.unix_path = std::string(rest);
    server.host = "localhost";
    return server;
  }
  for (char c : url)
    if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f) return wrong();
  if (rest.starts_with("https://")) server.tls = true;
  else if (!rest.starts_with("http://")) return wrong();
  rest.remove_prefix(server.tls ? 8 : 7);
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) server.base_path = std::string(rest.substr(slash));
  if (server.base_path.ends_with("/v1")) server.base_path.resize(server.base_path.size() - 3);  // as OpenAI's clients write it
  rest = rest.substr(0, slash);
  std::string_view port;
  if (rest.starts_with('[')) {  // IPv6
    const size_t close = rest.find(']');
    if (close == std::string_view::npos) return wrong();
    server.host = std::string(rest.substr(1, close - 1));
    port = rest.substr(close + 1);
  } else {
    const size_t colon = rest.find(':');
    server.host = std::string(rest.substr(0, colon));
    port = colon == std::string_view::npos ? std::string_view() : rest.substr(colon);
  }
  server.port = server.tls ? "443" : "80";
  if (!port.empty()) {
    int number = 0;
    const auto parsed = std::from_chars(port.data() + 1, port.data() + port.size(), number);
    if (port[0] != ':' || parsed.ec != std::errc() || parsed.ptr != port.data() + port.size() || number < 1 || number > 65535)
      return wrong();
    server.port = std::to_string(number);
  }
  if (server.host.empty() || server.host.find_first_of("@?#\"") != std::string::npos) return wrong();
  return server;
}

}  // namespace dg
