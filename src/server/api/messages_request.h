// Anthropic's messages, tools and tool_choice in OpenAI's shape, which the prompt encoders read.
#pragma once
#include "base/json_fwd.h"
#include "base/result.h"
#include "server/api/chat_request.h"
#include "server/api/request_fields.h"

namespace dg::api {

// `messages` and `tools` (empty: none) are filled; `input` points to them.
Result<void> read_anthropic_chat(Fields& fields, const ApiContext& context, Json* messages, Json* tools, ChatInput* input);

}  // namespace dg::api
