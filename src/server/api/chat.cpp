// POST /v1/chat/completions: OpenAI's fields and vLLM's additions.
#include <ctime>

#include "base/json.h"
#include "server/api/chat_request.h"
#include "server/api/chat_writer.h"

namespace dg::api {
namespace {

Result<PreparedAnswer> prepare_chat_completion(const ApiContextPtr& context, const HttpRequest& http, const Json& body,
                                               const std::string& model) {
  DG_TRY(check_chat(*context));
  Fields fields(body);
  AnswerPlan plan;
  EngineRequest& request = plan.requests.emplace_back();
  read_generation(fields, *context, http, &request);
  plan.stream = fields.flag("stream").value_or(false);
  plan.include_reasoning = fields.flag("include_reasoning").value_or(true);

  ChatShape shape{
      .id = "chatcmpl-" + request.id, .model = model, .created_s = static_cast<int64_t>(std::time(nullptr)), .answers = request.n};
  shape.stream = read_stream_options(fields);
  shape.token_ids = plan.keep_ids = fields.flag("return_token_ids").value_or(false);
  shape.logprobs = fields.flag("logprobs").value_or(false);
  auto top = fields.integer("top_logprobs", 0, context->options.max_logprobs);
  if (top.value_or(0) > 0 && !shape.logprobs) fields.fail(input_error("top_logprobs: it needs \"logprobs\": true beside it"));
  if (shape.logprobs) request.logprobs = static_cast<int>(top.value_or(0));
  if (plan.stream && request.prompt_logprobs >= 0) fields.fail(input_error("prompt_logprobs: they are not streamed; leave stream out"));
  auto max_tokens = fields.integer("max_tokens", 1, INT32_MAX);
  auto max_completion = fields.integer("max_completion_tokens", 1, INT32_MAX);
  request.max_tokens = max_completion.value_or(max_tokens.value_or(0));

  ChatInput input;
  input.messages = fields.find("messages");
  if (!input.messages) fields.wrong("messages", "a list of messages");
  input.tools = fields.find("tools");
  input.tool_choice = read_tool_choice(fields, false);
  input.parallel_tool_calls = fields.flag("parallel_tool_calls").value_or(true);
  read_chat_options(fields, *context, &input.options);
  input.options.continue_final_message = fields.flag("continue_final_message").value_or(false);
  auto add_prompt = fields.flag("add_generation_prompt");
  if (input.options.continue_final_message && add_prompt.value_or(false))
    fields.fail(input_error("add_generation_prompt: it contradicts continue_final_message; set one of them"));
  input.options.add_generation_prompt = add_prompt.value_or(!input.options.continue_final_message);
  input.structure = read_structure(fields);
  if (!fields.ok()) return fields.error();

  DG_TRY(prepare_chat(*context, input, &plan, &request));
  if (shape.token_ids) shape.prompt_ids = request.prompt;
  return PreparedAnswer{std::move(plan), std::make_unique<ChatWriter>(context, std::move(shape))};
}

}  // namespace

void add_chat_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"POST", "/v1/chat/completions", Role::kUser, answer_handler(context, openai_error, prepare_chat_completion)});
}

}  // namespace dg::api
