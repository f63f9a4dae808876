// GET /health (the step loop lives), /ready (the model has really generated and takes requests), /ping, /version, /load.
//
// The loop is judged by its steps: while a batch runs, their number must move within `stall_limit`. No polling thread is
// needed, the probes themselves are the clock.
#include <fmt/core.h>

#include <algorithm>

#include "server/api/answer_stream.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

bool has_running_work(const Engine& engine) {
  if (engine.idle()) return false;
  auto requests = engine.requests();
  // Paused ones, and those that wait for their blocks, may make no step for long.
  return std::any_of(requests.begin(), requests.end(), [](const RequestStatus& r) { return r.stage == "prefill" || r.stage == "decode"; });
}

// Seconds without a step while there was work; 0 when all is well.
double stalled_s(const ApiContext& context) {
  auto now = EngineClock::now();
  uint64_t steps = context.engine.stats().steps;
  bool working = has_running_work(context.engine);
  ApiContext::Pulse& pulse = context.pulse;
  std::lock_guard lock(pulse.mutex);
  if (!working || !pulse.working || steps != pulse.steps) pulse.since = now;
  pulse.working = working;
  pulse.steps = steps;
  double seconds = std::chrono::duration<double>(now - pulse.since).count();
  return seconds > static_cast<double>(context.options.stall_limit.count()) ? seconds : 0;
}

void answer_state(HttpResponder& responder, const std::string& problem) {
  if (problem.empty()) return responder.respond({.body = "{\"status\":\"ok\"}"});
  reject(responder, {.status = 503, .message = problem, .type = "server_error", .code = "not_ready"}, openai_error);
}

std::string health_problem(const ApiContext& context) {
  double seconds = stalled_s(context);
  return seconds > 0 ? fmt::format("the engine has made no step for {:.0f} s; restart the server", seconds) : "";
}

std::string readiness_problem(const ApiContext& context) {
  EngineStats stats = context.engine.stats();
  if (stats.draining) return "the server drains and takes no new requests";
  if (stats.generated_tokens == 0) return "the model has not generated a token yet";
  return health_problem(context);
}

}  // namespace

void add_health_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  auto add = [&](const char* path, std::function<void(HttpResponder&)> answer) {
    routes.push_back({"GET", path, Role::kOpen,
                      [answer = std::move(answer)](std::shared_ptr<HttpResponder> responder, HttpRequest) { answer(*responder); }});
  };
  for (const char* path : {"/health", "/livez", "/ping"})
    add(path, [context](HttpResponder& r) { answer_state(r, health_problem(*context)); });
  for (const char* path : {"/ready", "/readyz"}) add(path, [context](HttpResponder& r) { answer_state(r, readiness_problem(*context)); });
  add("/version", [context](HttpResponder& r) { r.respond({.body = "{\"version\":" + json_string(context->options.version) + "}"}); });
  add("/load", [context](HttpResponder& r) {
    EngineStats stats = context->engine.stats();
    r.respond({.body = fmt::format(R"({{"server_load":{}}})", stats.running + stats.waiting)});
  });
}

}  // namespace dg::api
