#include "server/api/messages_request.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg::api {
namespace {

Result<std::string> block_type(const Json& block, const std::string& where) {
  if (!block.is_object()) return wrong_field(where, "a content block such as {\"type\": \"text\", \"text\": \"...\"}", &block);
  Fields fields(block, where);
  auto type = fields.text("type");
  if (fields.ok() && !type) fields.wrong("type", "the type of the block");
  if (!fields.ok()) return fields.error();
  return std::move(*type);
}

Result<std::string> text_of(const Json& block, const char* name, const std::string& where) {
  Fields fields(block, where);
  auto text = fields.text(name);
  if (fields.ok() && !text) fields.wrong(name, "a string");
  if (!fields.ok()) return fields.error();
  return std::move(*text);
}

// A string or a list of text blocks.
Result<std::string> plain_text(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return wrong_field(where, "a string or a list of text blocks", &content);
  std::string out;
  for (size_t i = 0; i < content.size(); i++) {
    std::string at = fmt::format("{}[{}]", where, i);
    DG_ASSIGN(std::string type, block_type(content[i], at));
    if (type != "text") return wrong_field(at + ".type", "\"text\" (this server reads text only)", &content[i]["type"]);
    DG_ASSIGN(std::string text, text_of(content[i], "text", at));
    out += text;
  }
  return out;
}

// Results of tools become messages of their own, before the user's words.
Result<void> add_user(const Json& content, const std::string& where, Json& messages) {
  if (content.is_string()) {
    messages.push_back({{"role", "user"}, {"content", content}});
    return {};
  }
  if (!content.is_array()) return wrong_field(where, "a string or a list of content blocks", &content);
  std::string words;
  bool has_words = content.empty();
  for (size_t i = 0; i < content.size(); i++) {
    std::string at = fmt::format("{}[{}]", where, i);
    DG_ASSIGN(std::string type, block_type(content[i], at));
    if (type == "text") {
      DG_ASSIGN(std::string text, text_of(content[i], "text", at));
      words += text;
      has_words = true;
    } else if (type == "tool_result") {
      DG_ASSIGN(std::string id, text_of(content[i], "tool_use_id", at));
      std::string result;
      auto inner = content[i].find("content");
      if (inner != content[i].end() && !inner->is_null()) {
        DG_ASSIGN(result, plain_text(*inner, at + ".content"));
      }
      messages.push_back({{"role", "tool"}, {"tool_call_id", id}, {"content", result}});
    } else {
      return wrong_field(at + ".type", "\"text\" or \"tool_result\" (this server reads text only)", &content[i]["type"]);
    }
  }
  if (has_words) messages.push_back({{"role", "user"}, {"content", words}});
  return {};
}

Result<void> add_assistant(const Json& content, const std::string& where, Json& messages) {
  Json message = {{"role", "assistant"}};
  if (content.is_string()) {
    message["content"] = content;
    messages.push_back(std::move(message));
    return {};
  }
  if (!content.is_array()) return wrong_field(where, "a string or a list of content blocks", &content);
  std::string words, reasoning;
  Json calls = Json::array();
  for (size_t i = 0; i < content.size(); i++) {
    const Json& block = content[i];
    std::string at = fmt::format("{}[{}]", where, i);
    DG_ASSIGN(std::string type, block_type(block, at));
    if (type == "text") {
      DG_ASSIGN(std::string text, text_of(block, "text", at));
      words += text;
    } else if (type == "thinking") {
      DG_ASSIGN(std::string text, text_of(block, "thinking", at));
      reasoning += text;
    } else if (type == "tool_use") {
      DG_ASSIGN(std::string id, text_of(block, "id", at));
      DG_ASSIGN(std::string name, text_of(block, "name", at));
      auto arguments = block.find("input");
      if (arguments == block.end() || !arguments->is_object())
        return wrong_field(at + ".input", "an object", arguments == block.end() ? nullptr : &*arguments);
      calls.push_back({{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", dump_json_python(*arguments)}}}});
    } else if (type != "redacted_thinking") {
      return wrong_field(at + ".type", "\"text\", \"thinking\" or \"tool_use\"", &block["type"]);
    }
  }
  message["content"] = words;
  if (!reasoning.empty()) message["reasoning_content"] = reasoning;
  if (!calls.empty()) message["tool_calls"] = std::move(calls);
  messages.push_back(std::move(message));
  return {};
}

Result<void> add_messages(const Json& list, Json& messages) {
  if (!list.is_array() || list.empty()) return wrong_field("messages", "a list with at least one message", &list);
  for (size_t i = 0; i < list.size(); i++) {
    std::string where = fmt::format("messages[{}]", i);
    if (!list[i].is_object()) return wrong_field(where, "an object with role and content", &list[i]);
    Fields fields(list[i], where);
    auto role = fields.choice("role", {"user", "assistant", "system"});
    if (fields.ok() && !role) fields.wrong("role", "\"user\" or \"assistant\"");
    const Json* content = fields.find("content");
    if (fields.ok() && !content) fields.wrong("content", "a string or a list of content blocks");
    if (!fields.ok()) return fields.error();
    if (*role == "user") {
      DG_TRY(add_user(*content, where + ".content", messages));
    } else if (*role == "assistant") {
      DG_TRY(add_assistant(*content, where + ".content", messages));
    } else {
      DG_ASSIGN(std::string text, plain_text(*content, where + ".content"));
      messages.push_back({{"role", "system"}, {"content", text}});
    }
  }
  return {};
}

Result<void> add_tools(const Json& list, Json& tools) {
  if (!list.is_array()) return wrong_field("tools", "a list of tools", &list);
  for (size_t i = 0; i < list.size(); i++) {
    std::string where = fmt::format("tools[{}]", i);
    if (!list[i].is_object()) return wrong_field(where, "an object with name and input_schema", &list[i]);
    Fields fields(list[i], where);
    if (auto type = fields.text("type"); type && *type != "custom")
      fields.wrong("type", "\"custom\" (this server runs no tools of its own)");
    auto name = fields.text("name");
    if (fields.ok() && (!name || name->empty())) fields.wrong("name", "the name of the tool");
    auto description = fields.text("description");
    const Json* schema = fields.find("input_schema");
    if (fields.ok() && (!schema || !schema->is_object())) fields.wrong("input_schema", "an object with a JSON schema");
    auto strict = fields.flag("strict");
    if (!fields.ok()) return fields.error();
    Json function = {{"name", *name}, {"description", description.value_or("")}, {"parameters", *schema}};
    if (strict) function["strict"] = *strict;
    tools.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return {};
}

void read_choice(Fields& fields, ChatInput* input) {
  if (!fields.has("tool_choice")) return;
  Fields choice = fields.object("tool_choice");
  auto type = choice.choice("type", {"auto", "any", "tool", "none"});
  if (fields.ok() && !type) choice.wrong("type", "\"auto\", \"any\", \"tool\" or \"none\"");
  if (choice.flag("disable_parallel_tool_use").value_or(false)) input->parallel_tool_calls = false;
  if (type == "none") input->tool_choice.kind = ToolChoice::kNone;
  if (type == "any" || type == "tool") input->tool_choice.kind = ToolChoice::kRequired;
  if (type != "tool") return;
  auto name = choice.text("name");
  if (fields.ok() && (!name || name->empty())) choice.wrong("name", "the name of a tool");
  input->tool_choice.function = name.value_or("");
}

}  // namespace

Result<void> read_anthropic_chat(Fields& fields, const ApiContext& context, Json* messages, Json* tools, ChatInput* input) {
  *messages = Json::array();
  *tools = Json::array();
  if (const Json* system = fields.find("system")) {
    DG_ASSIGN(std::string text, plain_text(*system, "system"));
    if (!text.empty()) messages->push_back({{"role", "system"}, {"content", text}});
  }
  const Json* list = fields.find("messages");
  if (!list) return wrong_field("messages", "a list with at least one message", nullptr);
  DG_TRY(add_messages(*list, *messages));
  if (const Json* given = fields.find("tools")) DG_TRY(add_tools(*given, *tools));
  read_choice(fields, input);

  read_chat_options(fields, context, &input->options);
  // Who does not ask for thinking reads content[0] as the answer, as with Anthropic's own service.
  if (!fields.has("thinking") && !fields.has("chat_template_kwargs")) input->options.thinking = false;
  const Json& last = messages->back();
  input->options.continue_final_message = last["role"] == "assistant" && !last.contains("tool_calls");  // a prefilled answer
  input->options.add_generation_prompt = !input->options.continue_final_message;
  input->messages = messages;
  input->tools = tools->empty() ? nullptr : tools;
  if (!fields.ok()) return fields.error();
  return {};
}

}  // namespace dg::api
