// POST /v1/responses: OpenAI's Responses API without a memory of its own. What needs stored responses (previous_response_id,
// store, background) is refused, so that no client believes its conversation is kept.
#include <fmt/core.h>

#include <ctime>

#include "base/json.h"
#include "server/api/json_writer.h"
#include "server/api/responses_request.h"
#include "server/api/responses_writer.h"

namespace dg::api {
namespace {

void refuse_memory(Fields& fields) {
  constexpr const char* kAdvice = "this server keeps no responses; send the whole conversation as input";
  if (fields.has("previous_response_id")) fields.fail(input_error(fmt::format("previous_response_id: {}", kAdvice)));
  if (fields.has("conversation")) fields.fail(input_error(fmt::format("conversation: {}", kAdvice)));
  if (fields.flag("store").value_or(false)) fields.fail(input_error(fmt::format("store: {} and leave store out or false", kAdvice)));
  if (fields.flag("background").value_or(false))
    fields.fail(input_error("background: this server answers while the client waits; leave background out"));
}

// A member of the request as it came, or `otherwise`.
std::string echoed(const Json& body, const char* name, const char* otherwise) {
  auto it = body.find(name);
  return it == body.end() || it->is_null() ? otherwise : it->dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string echoed_settings(const Json& body, const std::string& model, const EngineRequest& request) {
  std::string out = fmt::format(R"("model":{},"temperature":)", json_string(model));
  append_json_number(out, request.sampling.temperature);
  out += ",\"top_p\":";
  append_json_number(out, request.sampling.top_p);
  out += fmt::format(
      R"(,"instructions":{},"max_output_tokens":{},"parallel_tool_calls":{},"tool_choice":{},"tools":{},"text":{},"reasoning":{},)"
      R"("metadata":{},"user":{})",
      echoed(body, "instructions", "null"), echoed(body, "max_output_tokens", "null"), echoed(body, "parallel_tool_calls", "true"),
      echoed(body, "tool_choice", "\"auto\""), echoed(body, "tools", "[]"), echoed(body, "text", R"({"format":{"type":"text"}})"),
      echoed(body, "reasoning", R"({"effort":null,"summary":null})"), echoed(body, "metadata", "{}"), echoed(body, "user", "null"));
  return out;
}

Result<PreparedAnswer> prepare_response(const ApiContextPtr& context, const HttpRequest& http, const Json& body, const std::string& model) {
  DG_TRY(check_chat(*context));
  Fields fields(body);
  refuse_memory(fields);
  AnswerPlan plan;
  EngineRequest& request = plan.requests.emplace_back();
  read_basic_generation(fields, *context, http, &request);
  request.max_tokens = fields.integer("max_output_tokens", 1, INT32_MAX).value_or(0);
  plan.stream = fields.flag("stream").value_or(false);
  Json messages, tools;
  ChatInput input;
  if (!fields.ok()) return fields.error();
  DG_TRY(read_responses_chat(fields, *context, &messages, &tools, &input));
  DG_TRY(prepare_chat(*context, input, &plan, &request));
  ResponseShape shape{
      .id = "resp_" + request.id, .created_s = static_cast<int64_t>(std::time(nullptr)), .settings = echoed_settings(body, model, request)};
  return PreparedAnswer{std::move(plan), std::make_unique<ResponsesWriter>(std::move(shape))};
}

}  // namespace

void add_responses_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"POST", "/v1/responses", Role::kUser, answer_handler(context, openai_error, prepare_response)});
}

}  // namespace dg::api
