#include "text/prompt_messages.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/json.h"
#include "text/jinja_value.h"

namespace dg {
namespace {

const char* json_type(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null: return "null";
    case Json::value_t::object: return "an object";
    case Json::value_t::array: return "a list";
    case Json::value_t::string: return "a string";
    case Json::value_t::boolean: return "a boolean";
    default: return "a number";
  }
}

// A piece of the client's text that is safe to quote in a one-line message.
std::string shown(std::string_view text) {
  constexpr size_t kMaxShown = 60;
  std::string quoted = Json(std::string(text.substr(0, kMaxShown))).dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() > kMaxShown ? quoted + "..." : quoted;
}

Error wrong(const std::string& where, std::string_view expected, const std::string& found) {
  return input_error(fmt::format("{}: expected {}, found {}", where, expected, found));
}

const Json* member(const Json& object, const char* name) {
  auto it = object.find(name);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

Result<std::string> read_text(const Json& object, const char* name, const std::string& where) {
  const Json* value = member(object, name);
  if (!value) return wrong(where + "." + name, "a string", "nothing");
  if (!value->is_string()) return wrong(where + "." + name, "a string", json_type(*value));
  return value->get<std::string>();
}

Result<std::string> read_content(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return wrong(where, "a string or a list of text parts", json_type(content));
  std::string text;
  for (size_t i = 0; i < content.size(); i++) {
    const Json& part = content[i];
    std::string at = fmt::format("{}[{}]", where, i);
    if (part.is_string()) {
      text += part.get_ref<const std::string&>();
      continue;
    }
    if (!part.is_object()) return wrong(at, "an object such as {\"type\": \"text\", \"text\": \"...\"}", json_type(part));
    DG_ASSIGN(std::string type, read_text(part, "type", at));
    if (type != "text" && type != "input_text" && type != "output_text")
      return wrong(at + ".type", "\"text\" (this server reads text only)", shown(type));
    DG_ASSIGN(std::string piece, read_text(part, "text", at));
    text += piece;
  }
  return text;
}

Result<ChatRole> read_role(const Json& message, const std::string& where) {
  DG_ASSIGN(std::string role, read_text(message, "role", where));
  if (role == "system" || role == "developer") return ChatRole::kSystem;
  if (role == "user") return ChatRole::kUser;
  if (role == "assistant") return ChatRole::kAssistant;
  if (role == "tool") return ChatRole::kTool;
  return wrong(where + ".role", "system, developer, user, assistant or tool", shown(role));
}

Result<std::vector<ChatToolCall>> read_calls(const Json& calls, const std::string& where) {
  if (!calls.is_array()) return wrong(where, "a list of tool calls", json_type(calls));
  std::vector<ChatToolCall> out;
  for (size_t i = 0; i < calls.size(); i++) {
    std::string at = fmt::format("{}[{}]", where, i);
    if (!calls[i].is_object()) return wrong(at, "an object with a function", json_type(calls[i]));
    const Json* function = member(calls[i], "function");
    if (!function || !function->is_object())
      return wrong(at + ".function", "an object with name and arguments", function ? json_type(*function) : "nothing");
    ChatToolCall call;
    if (const Json* id = member(calls[i], "id"); id && id->is_string()) call.id = id->get<std::string>();
    const Json* type = member(calls[i], "type");
    if (type && !type->is_string()) return wrong(at + ".type", "\"function\"", json_type(*type));
    call.type = type ? type->get<std::string>() : "function";
    DG_ASSIGN(call.name, read_text(*function, "name", at + ".function"));
    const Json* arguments = member(*function, "arguments");
    if (!arguments) call.arguments = "{}";
    else if (arguments->is_string()) call.arguments = arguments->get<std::string>();
    else if (arguments->is_object()) call.arguments = python_json(*arguments);
    else return wrong(at + ".function.arguments", "a string with JSON or an object", json_type(*arguments));
    out.push_back(std::move(call));
  }
  return out;
}

Result<ChatMessage> read_message(const Json& json, const std::string& where) {
  if (!json.is_object()) return wrong(where, "an object with role and content", json_type(json));
  ChatMessage message;
  DG_ASSIGN(message.role, read_role(json, where));
  bool assistant = message.role == ChatRole::kAssistant;
  if (const Json* content = member(json, "content")) {
    DG_ASSIGN(message.content, read_content(*content, where + ".content"));
    message.has_content = true;
  } else if (!assistant) {
    return wrong(where + ".content", "a string or a list of text parts", json.contains("content") ? "null" : "nothing");
  }
  if (!assistant) return message;
  const Json* reasoning = member(json, "reasoning_content");
  if (!reasoning) reasoning = member(json, "reasoning");
  if (reasoning) {
    if (!reasoning->is_string()) return wrong(where + ".reasoning_content", "a string", json_type(*reasoning));
    message.reasoning = reasoning->get<std::string>();
  }
  if (const Json* prefix = member(json, "prefix"); prefix && prefix->is_boolean()) message.prefix = prefix->get<bool>();
  if (const Json* calls = member(json, "tool_calls")) {
    DG_ASSIGN(message.calls, read_calls(*calls, where + ".tool_calls"));
  }
  if (!message.has_content && message.calls.empty() && !message.reasoning)
    return wrong(where + ".content", "a string (only a message with tool_calls may have none)", "nothing");
  return message;
}

}  // namespace

Result<std::vector<ChatMessage>> read_chat_messages(const Json& messages, const ChatOptions& options) {
  if (!messages.is_array()) return wrong("messages", "a list of messages", json_type(messages));
  if (messages.empty()) return wrong("messages", "at least one message", "an empty list");
  std::vector<ChatMessage> out;
  const ChatMessage* caller = nullptr;  // the assistant message whose results may follow
  size_t caller_at = 0;
  out.reserve(messages.size());  // `caller` points into it
  for (size_t i = 0; i < messages.size(); i++) {
    std::string where = fmt::format("messages[{}]", i);
    DG_ASSIGN(ChatMessage message, read_message(messages[i], where));
    if (message.role == ChatRole::kTool) {
      if (!caller) return input_error(where + ".role: a tool message must follow an assistant message with tool_calls");
      const Json* id = member(messages[i], "tool_call_id");
      bool known = !id || std::any_of(caller->calls.begin(), caller->calls.end(), [id](const ChatToolCall& call) {
        return call.id.empty() || (id->is_string() && call.id == id->get_ref<const std::string&>());
      });
      if (!known)
        return wrong(where + ".tool_call_id", fmt::format("the id of a call in messages[{}].tool_calls", caller_at),
                     id->is_string() ? shown(id->get_ref<const std::string&>()) : std::string(json_type(*id)));
    }
    out.push_back(std::move(message));
    if (out.back().role != ChatRole::kTool) caller = out.back().calls.empty() ? nullptr : &out.back();
    if (caller == &out.back()) caller_at = i;
  }
  if (options.continue_final_message) {
    std::string where = fmt::format("messages[{}]", out.size() - 1);
    if (out.back().role != ChatRole::kAssistant)
      return input_error(where + ".role: continue_final_message needs an assistant message at the end; add one or leave the option out");
    if (!out.back().calls.empty()) return input_error(where + ".tool_calls: a message with tool calls cannot be continued");
  }
  return out;
}

Result<std::vector<ChatTool>> read_chat_tools(const Json& tools) {
  std::vector<ChatTool> out;
  if (tools.is_null()) return out;
  if (!tools.is_array()) return wrong("tools", "a list of tools or null", json_type(tools));
  for (size_t i = 0; i < tools.size(); i++) {
    std::string where = fmt::format("tools[{}]", i);
    if (!tools[i].is_object()) return wrong(where, "an object with a function", json_type(tools[i]));
    const Json* function = member(tools[i], "function");
    if (!function || !function->is_object())
      return wrong(where + ".function", "an object with a name", function ? json_type(*function) : "nothing");
    ChatTool tool;
    DG_ASSIGN(tool.name, read_text(*function, "name", where + ".function"));
    if (const Json* description = member(*function, "description")) {
      if (!description->is_string()) return wrong(where + ".function.description", "a string", json_type(*description));
      tool.description = description->get<std::string>();
    }
    const Json* parameters = member(*function, "parameters");
    if (parameters && !parameters->is_object())
      return wrong(where + ".function.parameters", "an object with a JSON schema", json_type(*parameters));
    tool.parameters = parameters ? python_json(*parameters) : "{}";
    tool.whole = python_json(tools[i]);
    out.push_back(std::move(tool));
  }
  return out;
}

std::string python_json(const Json& value) {
  try {
    jinja::Heap heap(INT64_MAX, SIZE_MAX);  // the size of a request is limited where it is read
    return jinja::to_json(heap, heap.from_json(value), {});
  } catch (const jinja::Failure&) {  // nested deeper than the interpreter goes
    return dump_json_python(value);
  }
}

}  // namespace dg
