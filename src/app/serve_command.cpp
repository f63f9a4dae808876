// `dougong serve`: opens the model, starts the engine and the HTTP servers, and waits for a signal.
#include <fmt/core.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>

#include "app/commands.h"
#include "app/model_options.h"
#include "app/terminal.h"
#include "app/version.h"
#include "base/json.h"
#include "base/log.h"
#include "engine/engine.h"
#include "server/http_server.h"
#include "server/metrics.h"
#include "server/service.h"

namespace dg {
namespace {

std::chrono::milliseconds milliseconds(double seconds) { return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)); }

// The signals of a server are taken by one sigwait, so that no handler runs inside a library; every thread inherits the mask.
class SignalWaiter {
 public:
  SignalWaiter() {
    ::sigemptyset(&set_);
    for (int s : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set_, s);
    ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
  }
  // The next signal, or 0 after `limit`.
  int wait_for(std::chrono::milliseconds limit) {
    timespec time{.tv_sec = limit.count() / 1000, .tv_nsec = limit.count() % 1000 * 1'000'000};
    int signal = ::sigtimedwait(&set_, nullptr, &time);
    return signal > 0 ? signal : 0;
  }

 private:
  sigset_t set_;
};

void raise_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

Result<std::shared_ptr<const ApiKeys>> api_keys(const Options& options) {
  std::vector<std::string> plain = options.list("api-key");
  if (const char* key = std::getenv("VLLM_API_KEY"); plain.empty() && key && *key) plain.push_back(key);
  if (options.given("api-key-file")) {
    if (!plain.empty()) return input_error("--api-key-file and --api-key contradict each other: choose one");
    return ApiKeys::load(options.text("api-key-file"));
  }
  for (const std::string& key : plain)
    if (key.empty()) return input_error("--api-key: expected a key, found an empty text");
  return plain.empty() ? std::shared_ptr<const ApiKeys>() : ApiKeys::from_plain(plain);
}

HttpServerOptions http_options(const Options& options) {
  HttpServerOptions http;
  http.name = "api";
  http.listen = {.host = options.text("host"), .port = static_cast<int>(options.integer("port")), .unix_path = options.text("uds")};
  http.tls_certificate = options.text("ssl-certfile");
  http.tls_key = options.text("ssl-keyfile");
  http.io_threads = static_cast<int>(options.integer("http-threads"));
  http.worker_threads = static_cast<int>(options.integer("http-workers"));
  http.max_connections = options.integer("max-connections");
  http.max_body_bytes = static_cast<size_t>(options.integer("max-body-bytes"));
  http.slow_client_timeout = milliseconds(options.number("slow-client-timeout"));
  http.access_log = options.text("access-log");
  http.allowed_origins = options.list("allowed-origins");
  return http;
}

// A checkpoint without the module is refused by Engine::create.
SpeculationMethod speculation(const Options& options, const Model& model) {
  const std::string& name = options.text("spec-method");
  if (name == "none") return SpeculationMethod::kNone;
  if (name == "ngram") return SpeculationMethod::kNgram;
  return name == "mtp" || model.mtp_modules() > 0 ? SpeculationMethod::kMtp : SpeculationMethod::kNone;
}

// Any one request may use all of the KV cache; unlike `generate` and `eval`, nothing keeps a share for each of --max-num-seqs:
// the scheduler lets requests wait or preempts them.
int64_t longest_context(const Options& options, const OpenedModel& model) {
  int64_t asked = options.integer("max-model-len");
  return std::min({model.config.max_position, model.executor->options().kv_tokens, asked > 0 ? asked : INT64_MAX});
}

Result<ServiceOptions> read_service_options(const Options& options, const OpenedModel& model) {
  ServiceOptions service;
  service.model_path = model.path;
  service.version = kVersion;
  service.served_names = options.list("served-model-name");
  if (service.served_names.empty()) {
    size_t slash = model.path.find_last_of('/');
    service.served_names.push_back(slash == std::string::npos ? model.path : model.path.substr(slash + 1));
  }
  service.generation = model.generation;
  service.stop_ids = model.eos;
  DG_ASSIGN(service.tool_format,
            find_tool_format(options.text("tool-call-parser"), model.prompt ? model.prompt->name() : "", model.tokenizer->chat_template()));
  const std::string& reasoning = options.text("reasoning-parser");
  if (reasoning != "auto" && reasoning != "deepseek_r1" && reasoning != "deepseek-r1" && reasoning != "deepseek_v3" &&
      reasoning != "deepseek-v3" && reasoning != "qwen3" && reasoning != "deepseek" && reasoning != "none")
    return input_error(
        fmt::format("--reasoning-parser: expected auto, deepseek_r1, deepseek_v3, qwen3 or none, found {}", in_quotes(reasoning)));
  service.parse_reasoning = reasoning != "none";
  service.max_model_len = longest_context(options, model);
  service.request_timeout = milliseconds(options.number("request-timeout"));
  service.max_n = static_cast<int>(std::min<int64_t>(64, options.integer("max-num-seqs")));
  return service;
}

// The device is lost: all requests have their error; give the clients time to read it. Destructors could wait for the device for ever.
[[noreturn]] void end_process(const Error& failure, Engine& engine, HttpServer& api) {
  api.drain();
  engine.wait_idle(std::chrono::seconds(5));
  api.wait_idle(std::chrono::seconds(2));
  print_error(fmt::format("dougong serve: {}\n", failure.message));
  std::_Exit(exit_code(failure.kind));
}

}  // namespace

Result<int> run_serve(const Options& options) {
  auto started = std::chrono::steady_clock::now();
  SignalWaiter signals;
  raise_file_limit();
  DG_ASSIGN(std::string name, model_argument(options));
  DG_ASSIGN(std::shared_ptr<const ApiKeys> keys, api_keys(options));
  OpenOptions open = open_options(options);
  if (options.flag("deterministic") && open.backend == "cuda")
    return input_error("--deterministic: results of the cuda backend may depend on what runs beside them; use --backend cpu");
  open.max_sequences = options.integer("max-num-seqs");
  open.draft_tokens = options.text("spec-method") == "none" ? 0 : options.integer("spec-tokens");
  open.mtp_drafts = options.text("spec-method") != "none" && options.text("spec-method") != "ngram";
  const int64_t rows = options.integer("max-num-seqs") * (1 + open.draft_tokens);
  open.max_step_tokens = std::max(open.max_step_tokens, rows);
  open.max_logit_rows = open.max_decode_rows = rows;
  open.kv_memory_share = 0.6;
  open.gpu_memory_utilization = options.number("gpu-memory-utilization");
  open.kv_bytes = options.integer("kv-cache-memory-bytes");
  open.block_tokens = static_cast<int>(options.integer("block-size"));
  DG_ASSIGN(std::unique_ptr<OpenedModel> model, open_model(name, open));
  DG_ASSIGN(ServiceOptions service_options, read_service_options(options, *model));

  EngineOptions engine_options;
  engine_options.max_model_len = longest_context(options, *model);
  engine_options.max_step_tokens = model->executor->options().max_step_tokens;
  engine_options.max_running = options.integer("max-num-seqs");
  engine_options.max_waiting = options.integer("max-queue");
  engine_options.max_prefill_chunk = options.integer("chunk");
  engine_options.prefix_cache = options.flag("enable-prefix-caching");
  engine_options.speculation = speculation(options, *model->model);
  engine_options.draft_tokens = static_cast<int>(options.integer("spec-tokens"));
  engine_options.adaptive_speculation = options.flag("spec-adaptive");
  engine_options.deterministic = options.flag("deterministic");

  // In the order of their lives: what comes later is destroyed first.
  KvPool& kv = model->executor->kv();
  Metrics metrics({.model_name = service_options.served_names.front(),
                   .max_model_len = engine_options.max_model_len,
                   .cache_config = {{"block_size", std::to_string(kv.block_tokens())},
                                    {"num_gpu_blocks", std::to_string(kv.blocks())},
                                    {"enable_prefix_caching", engine_options.prefix_cache ? "True" : "False"}}});
  metrics.set_weight_load_s(model->load_seconds);
  GrammarCompiler grammars(*model->tokenizer, model->config.vocab, model->eos);
  DG_ASSIGN(std::unique_ptr<Engine> engine, Engine::create(*model->executor, *model->tokenizer, engine_options, &metrics));
  Service service(*engine, *model->tokenizer, model->prompt.get(), grammars, model->config, service_options);
  std::unique_ptr<HttpServer> api, admin;
  HttpServerOptions http = http_options(options);
  DG_ASSIGN(api, HttpServer::start(http, service.api_routes(), keys));
  if (options.flag("admin")) {
    http.name = "admin";
    http.listen = {.host = options.text("admin-host"), .port = static_cast<int>(options.integer("admin-port")), .unix_path = ""};
    http.io_threads = http.worker_threads = 1;
    http.access_log.clear();
    HttpServer* served = api.get();
    DG_ASSIGN(admin, HttpServer::start(http, service.admin_routes([&metrics, served, e = engine.get()] {
                return metrics.render(e->stats(), served->stats());
              }),
                                       keys));
  }
  if (options.flag("warm-up")) DG_TRY(service.warm_up(std::chrono::minutes(10)));
  metrics.set_startup_s(std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());

  EngineStats stats = engine->stats();
  if (options.flag("json")) {
    Json line = {{"model", service_options.served_names.front()},    {"api", api->address()},
                 {"admin", admin ? Json(admin->address()) : Json()}, {"kv_blocks", stats.kv_blocks},
                 {"max_model_len", engine_options.max_model_len},    {"load_s", model->load_seconds}};
    print_output(json_line(line));
  } else {
    print_output(fmt::format("{} is ready at {}{}\n", service_options.served_names.front(), api->address(),
                             admin ? fmt::format(", metrics at {}/metrics", admin->address()) : ""));
    if (!options.flag("quiet"))
      print_error(fmt::format("{}; context {} tokens, KV cache {} tokens, {} answers at a time, speculation {}; loaded in {:.2f} s\n",
                              model->backend->description(), engine_options.max_model_len, stats.kv_blocks * open.block_tokens,
                              engine_options.max_running,
                              engine_options.speculation == SpeculationMethod::kMtp     ? "mtp"
                              : engine_options.speculation == SpeculationMethod::kNgram ? "ngram"
                                                                                        : "off",
                              model->load_seconds));
    if (!keys && http_options(options).listen.host != "127.0.0.1" && options.text("uds").empty())
      log_warning(fmt::format("everybody who reaches {} may use the model: set --api-key-file", api->address()));
  }

  int signal;
  while ((signal = signals.wait_for(std::chrono::milliseconds(200))) == 0 || signal == SIGHUP) {
    if (signal == SIGHUP) api->reopen_access_log();
    if (const std::optional<Error> failure = engine->failure()) end_process(*failure, *engine, *api);
  }
  engine->drain();
  api->drain();
  if (!options.flag("quiet")) print_error(fmt::format("stopping: {} answers in progress\n", engine->stats().running));
  auto limit = milliseconds(options.number("shutdown-timeout"));
  auto deadline = std::chrono::steady_clock::now() + limit;
  while (std::chrono::steady_clock::now() < deadline && !(engine->idle() && api->wait_idle(std::chrono::milliseconds(0)))) {
    signal = signals.wait_for(std::chrono::milliseconds(20));
    if (signal == SIGTERM || signal == SIGINT) std::_Exit(exit_code(ErrorKind::kCancelled));
  }
  engine->cancel_id("");  // what is left gets its error event ...
  engine->wait_idle(std::chrono::seconds(5));
  api->wait_idle(std::chrono::seconds(1));  // ... and the time to read it
  if (admin) admin->stop();
  api->stop();
  return 0;
}

Result<int> run_keys(const Options& options) {
  Role role = options.text("role") == "admin" ? Role::kAdmin : Role::kUser;
  DG_ASSIGN(ApiKeys::NewKey key, ApiKeys::generate(options.arguments().front(), role, options.text("tenant")));
  if (options.flag("json")) print_output(json_line({{"key", key.key}, {"line", key.line}}));
  else print_output(fmt::format("key (shown only now):   {}\nline for the key file:  {}\n", key.key, key.line));
  return 0;
}

}  // namespace dg
