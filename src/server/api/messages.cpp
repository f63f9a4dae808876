// POST /v1/messages and /v1/messages/count_tokens: Anthropic's API. Thinking is off unless the request asks for it.
#include <fmt/core.h>

#include "base/json.h"
#include "server/api/json_writer.h"
#include "server/api/messages_request.h"

namespace dg::api {
namespace {

class MessagesWriter : public AnswerWriter {
 public:
  MessagesWriter(std::string id, std::string model) : id_(std::move(id)), model_(std::move(model)) {}

  void begin(const AnswerTotals& totals, std::string& out) override {
    append_sse(out, "message_start",
               fmt::format(R"({{"type":"message_start","message":{{"id":{},"type":"message","role":"assistant","model":{},"content":[],)"
                           R"("stop_reason":null,"stop_sequence":null,"usage":{}}}}})",
                           json_string(id_), json_string(model_), usage(totals)));
    append_sse(out, "ping", R"({"type":"ping"})");
  }

  void event(const Answer&, const OutputEvent& event, const AnswerTotals&, std::string& out) override {
    switch (event.kind) {
      case OutputEvent::kReasoning:
        open(kThinking, R"({"type":"thinking","thinking":"","signature":""})", out);
        delta("thinking_delta", "thinking", event.text, out);
        break;
      case OutputEvent::kContent:
        open(kText, R"({"type":"text","text":""})", out);
        delta("text_delta", "text", event.text, out);
        break;
      case OutputEvent::kToolName:
        close(out);
        open(kTool,
             fmt::format(R"({{"type":"tool_use","id":"{}","name":{},"input":{{}}}})", "toolu_" + random_hex(24), json_string(event.text)),
             out);
        break;
      case OutputEvent::kToolArguments:
        if (block_ == kTool) delta("input_json_delta", "partial_json", event.text, out);
        break;
      case OutputEvent::kToolEnd: close(out); break;
    }
  }

  void end_answer(const Answer&, const AnswerTotals&, std::string& out) override { close(out); }

  void end(std::span<const Answer> answers, const AnswerTotals& totals, std::string& out) override {
    append_sse(out, "message_delta",
               fmt::format(R"({{"type":"message_delta","delta":{{{}}},"usage":{}}})", stop_fields(answers.front()), usage(totals)));
    append_sse(out, "message_stop", R"({"type":"message_stop"})");
  }

  void fail(const ApiError& error, const AnswerTotals&, std::string& out) override {
    append_sse(out, "error", anthropic_error_json(error));
  }

  std::string body(std::span<const Answer> answers, const AnswerTotals& totals) override {
    const Answer& answer = answers.front();
    std::string content;
    auto add = [&](const std::string& block) { content += (content.empty() ? "" : ",") + block; };
    if (!answer.reasoning.empty()) add(fmt::format(R"({{"type":"thinking","thinking":{},"signature":""}})", json_string(answer.reasoning)));
    if (!answer.content.empty() || (answer.calls.empty() && answer.reasoning.empty()))
      add(fmt::format(R"({{"type":"text","text":{}}})", json_string(answer.content)));
    for (const ToolCallAnswer& call : answer.calls)  // one that broke off has no valid input to show
      add(fmt::format(R"({{"type":"tool_use","id":"{}","name":{},"input":{}}})", "toolu_" + random_hex(24), json_string(call.name),
                      call.complete ? call.arguments : "{}"));
    return fmt::format(R"({{"id":{},"type":"message","role":"assistant","model":{},"content":[{}],{},"usage":{}}})", json_string(id_),
                       json_string(model_), content, stop_fields(answer), usage(totals));
  }

 private:
  enum Block { kClosed, kThinking, kText, kTool };

  // input_tokens are those that were computed; the cached ones are counted beside them.
  static std::string usage(const AnswerTotals& totals) {
    return fmt::format(R"({{"input_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":{},"output_tokens":{}}})",
                       totals.prompt_tokens - totals.cached_tokens, totals.cached_tokens, totals.completion_tokens);
  }

  static std::string stop_fields(const Answer& answer) {
    std::string_view reason = openai_finish_reason(answer);
    const char* name = reason == "length"         ? "max_tokens"
                       : reason == "tool_calls"   ? "tool_use"
                       : answer.stop_text.empty() ? "end_turn"
                                                  : "stop_sequence";
    return fmt::format(R"("stop_reason":"{}","stop_sequence":{})", name, answer.stop_text.empty() ? "null" : json_string(answer.stop_text));
  }

  void open(Block block, std::string_view content, std::string& out) {
    if (block_ == block) return;
    close(out);
    block_ = block;
    append_sse(out, "content_block_start",
               fmt::format(R"({{"type":"content_block_start","index":{},"content_block":{}}})", index_, content));
  }

  void close(std::string& out) {
    if (block_ == kClosed) return;
    block_ = kClosed;
    append_sse(out, "content_block_stop", fmt::format(R"({{"type":"content_block_stop","index":{}}})", index_));
    index_++;
  }

  void delta(std::string_view type, std::string_view field, std::string_view text, std::string& out) const {
    out += fmt::format(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{},\"delta\":{{\"type\":\"{}\",\"{}\":", index_,
        type, field);
    append_json_string(out, text);
    out += "}}\n\n";
  }

  const std::string id_, model_;
  Block block_ = kClosed;
  int index_ = 0;
};

Result<PreparedAnswer> prepare_messages(const ApiContextPtr& context, const HttpRequest& http, const Json& body, const std::string& model) {
  DG_TRY(check_chat(*context));
  Fields fields(body);
  AnswerPlan plan;
  EngineRequest& request = plan.requests.emplace_back();
  read_basic_generation(fields, *context, http, &request);
  plan.stream = fields.flag("stream").value_or(false);
  auto max_tokens = fields.integer("max_tokens", 1, INT32_MAX);
  if (fields.ok() && !max_tokens) fields.wrong("max_tokens", "an integer of at least 1");
  request.max_tokens = max_tokens.value_or(0);
  read_stop_texts(fields, "stop_sequences", &request);
  if (fields.has("thinking")) fields.object("thinking").integer("budget_tokens", 1, INT32_MAX);  // checked; the model decides itself
  Json messages, tools;
  ChatInput input;
  if (!fields.ok()) return fields.error();
  DG_TRY(read_anthropic_chat(fields, *context, &messages, &tools, &input));
  DG_TRY(prepare_chat(*context, input, &plan, &request));
  std::string id = "msg_" + request.id;
  return PreparedAnswer{std::move(plan), std::make_unique<MessagesWriter>(std::move(id), model)};
}

Result<size_t> count_prompt(const ApiContext& context, const Json& body) {
  Fields fields(body);
  Json messages, tools;
  ChatInput input;
  DG_TRY(read_anthropic_chat(fields, context, &messages, &tools, &input));
  DG_ASSIGN(auto ids, encode_chat_prompt(context, input));
  return ids.size();
}

}  // namespace

void add_messages_routes(const ApiContextPtr& context, std::vector<Route>& routes) {
  routes.push_back({"POST", "/v1/messages", Role::kUser, answer_handler(context, anthropic_error, prepare_messages)});
  routes.push_back(
      {"POST", "/v1/messages/count_tokens", Role::kUser, [context](std::shared_ptr<HttpResponder> responder, HttpRequest http) {
         auto body = parse_body(http);
         if (!body.ok()) return reject(*responder, api_error(body.error()), anthropic_error);
         std::string model;
         if (auto error = read_model_name(*context, *body, &model)) return reject(*responder, *error, anthropic_error);
         auto count = count_prompt(*context, *body);
         if (!count.ok()) return reject(*responder, api_error(count.error()), anthropic_error);
         responder->respond({.body = fmt::format(R"({{"input_tokens":{}}})", *count)});
       }});
}

}  // namespace dg::api
