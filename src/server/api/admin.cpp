// What operators see and do: /metrics, /debug/requests, /admin/abort, /admin/drain, /admin/reset_prefix_cache.
#include <fmt/core.h>

#include "base/json.h"
#include "base/log.h"
#include "server/api/answer_stream.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

std::string requests_json(const Engine& engine) {
  std::string out = "{\"requests\":[";
  bool first = true;
  for (const RequestStatus& r : engine.requests()) {
    if (!first) out += ',';
    first = false;
    out += fmt::format(
        R"({{"id":{},"tenant":{},"stage":{},"age_s":{:.3f},"prompt_tokens":{},"generated_tokens":{},"blocks":{},"priority":{}}})",
        json_string(r.id), json_string(r.tenant), json_string(r.stage), r.age_s, r.prompt_tokens, r.generated_tokens, r.blocks, r.priority);
  }
  return out + "]}";
}

// Clients know a request by the id of its answer, "chatcmpl-ID"; the engine knows it as ID.
std::string_view engine_id(std::string_view id) {
  for (std::string_view prefix : {"chatcmpl-", "cmpl-", "msg_", "resp_"})
    if (id.starts_with(prefix)) return id.substr(prefix.size());
  return id;
}

Result<int64_t> abort_requests(Engine& engine, const Json& body) {
  Fields fields(body);
  auto id = fields.text("request_id");
  bool all = fields.flag("all").value_or(false);
  if (fields.ok() && all == id.has_value()) fields.fail(input_error("request_id: expected either a request_id or \"all\": true"));
  if (id && id->empty()) fields.wrong("request_id", "the id of a request");  // "" means all to the engine
  if (!fields.ok()) return fields.error();
  if (all) return engine.cancel_id("");
  int64_t count = engine.cancel_id(*id);
  std::string_view inner = engine_id(*id);
  if (count == 0 && inner != *id && !inner.empty()) count = engine.cancel_id(std::string(inner));
  return count;
}

}  // namespace

void add_admin_routes(const ApiContextPtr& context, std::function<std::string()> render_metrics, std::vector<Route>& routes) {
  using Responder = std::shared_ptr<HttpResponder>;
  // Open: scrapers carry no key, and the listener of operators is not for users.
  routes.push_back({"GET", "/metrics", Role::kOpen, [render = std::move(render_metrics)](Responder responder, HttpRequest) {
                      responder->respond({.body = render(), .content_type = "text/plain; version=0.0.4; charset=utf-8"});
                    }});
  routes.push_back({"GET", "/debug/requests", Role::kAdmin,
                    [context](Responder responder, HttpRequest) { responder->respond({.body = requests_json(context->engine)}); }});
  routes.push_back({"POST", "/admin/abort", Role::kAdmin, [context](Responder responder, HttpRequest http) {
                      auto body = parse_body(http);
                      if (!body.ok()) return reject(*responder, api_error(body.error()), openai_error);
                      auto count = abort_requests(context->engine, *body);
                      if (!count.ok()) return reject(*responder, api_error(count.error()), openai_error);
                      log_info(fmt::format("an operator aborted {} requests", *count));
                      responder->respond({.body = fmt::format(R"({{"aborted":{}}})", *count)});
                    }});
  routes.push_back({"POST", "/admin/drain", Role::kAdmin, [context](Responder responder, HttpRequest) {
                      context->engine.drain();
                      EngineStats stats = context->engine.stats();
                      log_info("an operator drains the server: no new requests are taken");
                      responder->respond(
                          {.body = fmt::format(R"({{"draining":true,"running":{},"waiting":{}}})", stats.running, stats.waiting)});
                    }});
  routes.push_back({"POST", "/admin/reset_prefix_cache", Role::kAdmin, [context](Responder responder, HttpRequest) {
                      context->engine.reset_prefix_cache();
                      responder->respond({.body = R"({"reset":true})"});
                    }});
}

}  // namespace dg::api
