// POST /tokenize and /detokenize, as vLLM has them.
#include <fmt/core.h>

#include "base/json.h"
#include "server/api/chat_request.h"
#include "server/api/json_writer.h"

namespace dg::api {
namespace {

Result<std::string> tokenize(const ApiContext& context, const Json& body) {
  Fields fields(body);
  const Json* messages = fields.find("messages");
  auto prompt = fields.text("prompt");
  if (fields.ok() && !messages == !prompt)
    fields.fail(input_error("prompt: expected either prompt or messages, found " + std::string(prompt ? "both" : "neither")));
  ChatInput input{.messages = messages, .tools = fields.find("tools")};
  read_chat_options(fields, context, &input.options);
  input.options.continue_final_message = fields.flag("continue_final_message").value_or(false);
  input.options.add_generation_prompt = fields.flag("add_generation_prompt").value_or(!input.options.continue_final_message);
  bool add_special = fields.flag("add_special_tokens").value_or(messages == nullptr);  // a chat's text has them already
  bool strings = fields.flag("return_token_strs").value_or(false);
  if (!fields.ok()) return fields.error();

  std::vector<int32_t> ids;
  if (prompt) {
    ids = context.tokenizer.encode(*prompt, {.add_special = add_special});
  } else {
    DG_ASSIGN(ids, encode_chat_prompt(context, input, add_special));
  }
  std::string out = fmt::format(R"({{"count":{},"max_model_len":{},"tokens":)", ids.size(), context.max_model_len());
  append_json_ids(out, ids);
  out += ",\"token_strs\":";
  if (!strings) return out + "null}";
  for (size_t i = 0; i < ids.size(); i++) {
    out += i == 0 ? "[" : ",";
    append_json_string(out, shown_token(context.tokenizer.token_bytes(ids[i])));
  }
  return out + (ids.empty() ? "[]}" : "]}");
}

Result<std::string> detokenize(const ApiContext& context, const Json& body) {
  Fields fields(body);
  auto ids = fields.ids("tokens", context.config.vocab);
  bool skip_special = fields.flag("skip_special_tokens").value_or(false);
  if (!fields.has("tokens")) fields.wrong("tokens", "a list of token ids");
  if (!fields.ok()) return fields.error();
  return "{\"prompt\":" + json_string(context.tokenizer.decode(*ids, skip_special)) + "}";
}

HttpHandler text_handler(ApiContextPtr context, Result<std::string> (*run)(const ApiContext&, const Json&)) {
  return [context = std::move(context), run](std::shared_ptr<HttpResponder> responder, HttpRequest http) {
    auto body = parse_body(http);
    if (!body.ok()) return reject(*responder, api_error(body.error()), openai_error);
    std::string model;
    if (auto error = read_model_name(*context, *body, &model)) return reject(*responder, *error, openai_error);
    auto answer = run(*context, *body);
    if (!answer.ok()) return reject(*responder, api_error(answer.error()), openai_error);
    responder->respond({.body = std::move(answer).value()});
  };
}

}  // namespace

void add_tokenize_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"POST", "/tokenize", Role::kUser, text_handler(context, tokenize)});
  routes.push_back({"POST", "/detokenize", Role::kUser, text_handler(context, detokenize)});
}

}  // namespace dg::api
