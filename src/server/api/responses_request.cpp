#include "server/api/responses_request.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg::api {
namespace {

// A string, or a list of {"type": "input_text" | "output_text" | "text" | "reasoning_text" | "refusal", ...}.
Result<std::string> item_text(const Json& content, const std::string& where) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) return wrong_field(where, "a string or a list of text parts", &content);
  std::string out;
  for (size_t i = 0; i < content.size(); i++) {
    std::string at = fmt::format("{}[{}]", where, i);
    if (!content[i].is_object()) return wrong_field(at, "an object such as {\"type\": \"input_text\", \"text\": \"...\"}", &content[i]);
    Fields part(content[i], at);
    auto type = part.text("type");
    bool refusal = type == "refusal";
    bool known =
        refusal || type == "input_text" || type == "output_text" || type == "text" || type == "reasoning_text" || type == "summary_text";
    if (part.ok() && !known) part.wrong("type", "\"input_text\" or \"output_text\" (this server reads text only)");
    auto text = part.text(refusal ? "refusal" : "text");
    if (part.ok() && !text) part.wrong("text", "a string");
    if (!part.ok()) return part.error();
    out += *text;
  }
  return out;
}

// Builds messages from items: reasoning and calls belong to the assistant's message beside them.
class ItemReader {
 public:
  explicit ItemReader(Json& messages) : messages_(messages) {}

  Result<void> add(const Json& item, const std::string& where) {
    if (!item.is_object()) return wrong_field(where, "an object such as {\"role\": \"user\", \"content\": \"...\"}", &item);
    Fields fields(item, where);
    std::string type = fields.text("type").value_or("message");
    if (!fields.ok()) return fields.error();
    if (type == "message") return add_message(fields, where);
    if (type == "function_call") return add_call(fields);
    if (type == "function_call_output") return add_output(fields, where);
    if (type == "reasoning") return add_reasoning(fields, where);
    fields.wrong("type", "\"message\", \"function_call\", \"function_call_output\" or \"reasoning\"");
    return fields.error();
  }

 private:
  Result<void> add_message(Fields& fields, const std::string& where) {
    auto role = fields.choice("role", {"user", "assistant", "system", "developer"});
    if (fields.ok() && !role) fields.wrong("role", "\"user\", \"assistant\", \"system\" or \"developer\"");
    const Json* content = fields.find("content");
    if (fields.ok() && !content) fields.wrong("content", "a string or a list of text parts");
    if (!fields.ok()) return fields.error();
    DG_ASSIGN(std::string text, item_text(*content, where + ".content"));
    Json message = {{"role", *role == "developer" ? "system" : *role}, {"content", text}};
    if (*role == "assistant" && !reasoning_.empty()) message["reasoning_content"] = reasoning_;
    reasoning_.clear();
    messages_.push_back(std::move(message));
    return {};
  }

  Result<void> add_call(Fields& fields) {
    auto id = fields.text("call_id");
    auto name = fields.text("name");
    auto arguments = fields.text("arguments");
    if (fields.ok() && !id) fields.wrong("call_id", "a string");
    if (fields.ok() && !name) fields.wrong("name", "the name of a function");
    if (fields.ok() && !arguments) fields.wrong("arguments", "a string with JSON");
    if (!fields.ok()) return fields.error();
    if (messages_.empty() || messages_.back()["role"] != "assistant") {
      Json message = {{"role", "assistant"}, {"content", ""}};
      if (!reasoning_.empty()) message["reasoning_content"] = reasoning_;
      messages_.push_back(std::move(message));
    }
    reasoning_.clear();
    Json& message = messages_.back();
    if (!message.contains("tool_calls")) message["tool_calls"] = Json::array();
    message["tool_calls"].push_back({{"id", *id}, {"type", "function"}, {"function", {{"name", *name}, {"arguments", *arguments}}}});
    return {};
  }

  Result<void> add_output(Fields& fields, const std::string& where) {
    auto id = fields.text("call_id");
    const Json* output = fields.find("output");
    if (fields.ok() && !id) fields.wrong("call_id", "the call_id of a function_call");
    if (fields.ok() && !output) fields.wrong("output", "a string");
    if (!fields.ok()) return fields.error();
    DG_ASSIGN(std::string text, item_text(*output, where + ".output"));
    messages_.push_back({{"role", "tool"}, {"tool_call_id", *id}, {"content", text}});
    return {};
  }

  Result<void> add_reasoning(Fields& fields, const std::string& where) {
    for (const char* name : {"content", "summary"}) {
      const Json* text = fields.find(name);
      if (!text || !reasoning_.empty()) continue;
      DG_ASSIGN(reasoning_, item_text(*text, where + "." + name));
    }
    return {};
  }

  Json& messages_;
  std::string reasoning_;  // of the assistant's message that follows
};

Result<void> add_flat_tools(const Json& list, Json& tools) {
  if (!list.is_array()) return wrong_field("tools", "a list of tools", &list);
  for (size_t i = 0; i < list.size(); i++) {
    std::string where = fmt::format("tools[{}]", i);
    if (!list[i].is_object()) return wrong_field(where, "an object with type, name and parameters", &list[i]);
    Fields fields(list[i], where);
    if (fields.text("type") != "function" && fields.ok()) fields.wrong("type", "\"function\" (this server runs no tools of its own)");
    auto name = fields.text("name");
    if (fields.ok() && (!name || name->empty())) fields.wrong("name", "the name of the function");
    auto description = fields.text("description");
    const Json* parameters = fields.find("parameters");
    if (parameters && !parameters->is_object()) fields.wrong("parameters", "an object with a JSON schema");
    auto strict = fields.flag("strict");
    if (!fields.ok()) return fields.error();
    Json function = {{"name", *name}, {"description", description.value_or("")}};
    function["parameters"] = parameters ? *parameters : Json({{"type", "object"}, {"properties", Json::object()}});
    if (strict) function["strict"] = *strict;
    tools.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return {};
}

}  // namespace

Result<void> read_responses_chat(Fields& fields, const ApiContext& context, Json* messages, Json* tools, ChatInput* input) {
  *messages = Json::array();
  *tools = Json::array();
  if (auto instructions = fields.text("instructions"); instructions && !instructions->empty())
    messages->push_back({{"role", "system"}, {"content", *instructions}});
  const Json* items = fields.find("input");
  if (fields.ok() && (!items || !(items->is_string() || (items->is_array() && !items->empty()))))
    fields.wrong("input", "a string or a list of items");
  if (!fields.ok()) return fields.error();
  if (items->is_string()) {
    messages->push_back({{"role", "user"}, {"content", *items}});
  } else {
    ItemReader reader(*messages);
    for (size_t i = 0; i < items->size(); i++) DG_TRY(reader.add((*items)[i], fmt::format("input[{}]", i)));
  }
  if (messages->empty()) return wrong_field("input", "at least one message", items);
  if (const Json* given = fields.find("tools")) DG_TRY(add_flat_tools(*given, *tools));
  input->tool_choice = read_tool_choice(fields, true);
  input->parallel_tool_calls = fields.flag("parallel_tool_calls").value_or(true);
  read_chat_options(fields, context, &input->options);
  if (fields.has("reasoning")) {
    Fields reasoning = fields.object("reasoning");
    if (reasoning.choice("effort", {"none", "minimal", "low", "medium", "high", "xhigh", "max"}) == "none") input->options.thinking = false;
  }
  if (fields.has("text")) {
    Fields text = fields.object("text");
    input->structure = read_response_format(text, "format", true);
  }
  input->messages = messages;
  input->tools = tools->empty() ? nullptr : tools;
  if (!fields.ok()) return fields.error();
  return {};
}

}  // namespace dg::api
