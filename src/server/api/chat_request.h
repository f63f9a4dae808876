// From a conversation in OpenAI's shape to a prompt, an output parser and a grammar. The Anthropic and Responses endpoints
// translate their messages to this shape first.
#pragma once
#include <optional>
#include <string>

#include "base/json_fwd.h"
#include "server/api/answer_stream.h"
#include "server/api/generation_fields.h"
#include "text/chat.h"

namespace dg::api {

struct ToolChoice {
  enum Kind { kNone, kAuto, kRequired };
  Kind kind = kAuto;
  std::string function;  // kRequired: this one; "" = any
};
// "none", "auto", "required" or {"type": "function", "function": {"name"}} (`flat`: the name stands beside the type).
ToolChoice read_tool_choice(Fields& fields, bool flat);

struct ChatInput {
  const Json* messages = nullptr;
  const Json* tools = nullptr;  // a list, or null for none; {"type": "function", "function": {...}} each
  ToolChoice tool_choice;
  bool parallel_tool_calls = true;
  ChatOptions options;
  std::optional<Structure> structure;
};

// The error says that the model has no chat format.
Result<void> check_chat(const ApiContext& context);
// thinking {type} or a boolean, chat_template_kwargs {thinking, enable_thinking}, reasoning_effort "none".
void read_chat_options(Fields& fields, const ApiContext& context, ChatOptions* options);
// Only the prompt's ids: for /tokenize and count_tokens.
Result<std::vector<int32_t>> encode_chat_prompt(const ApiContext& context, const ChatInput& input, bool add_special = false);
// Fills prompt, visible_special and grammar of `request`, and the parser of `plan`.
Result<void> prepare_chat(const ApiContext& context, const ChatInput& input, AnswerPlan* plan, EngineRequest* request);

}  // namespace dg::api
