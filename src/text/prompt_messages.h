// Messages and tools of a request, checked and in a plain form that the encoders read.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"
#include "text/chat.h"

namespace dg {

enum class ChatRole : uint8_t { kSystem, kUser, kAssistant, kTool };

struct ChatToolCall {
  std::string id, type, name;
  std::string arguments;  // JSON text as the client sent it; an object is written as Python's json.dumps does
};

struct ChatMessage {
  ChatRole role = ChatRole::kUser;
  std::string content;       // text parts concatenated; "" when null
  bool has_content = false;  // content was given and not null
  bool prefix = false;       // DeepSeek's API: the reply continues this assistant message
  std::optional<std::string> reasoning;
  std::vector<ChatToolCall> calls;
};

struct ChatTool {
  std::string name, description;
  std::string parameters;  // JSON text
  std::string whole;       // the complete tool as JSON text
};

// A message with the role developer is read as system. Checks also what concerns several messages: a tool message
// follows an assistant message with calls, continue_final_message needs an assistant message at the end.
Result<std::vector<ChatMessage>> read_chat_messages(const Json& messages, const ChatOptions& options);
Result<std::vector<ChatTool>> read_chat_tools(const Json& tools);  // null or empty: none

// json.dumps(value, ensure_ascii=False), floats as Python prints them.
std::string python_json(const Json& value);

}  // namespace dg
