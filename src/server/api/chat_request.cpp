#include "server/api/chat_request.h"

#include <fmt/core.h>

#include "base/json.h"

namespace dg::api {
namespace {

constexpr size_t kMaxTools = 512;

bool has_tools(const ChatInput& input) {
  return input.tools && input.tools->is_array() && !input.tools->empty() && input.tool_choice.kind != ToolChoice::kNone;
}

Result<void> check_tools(const ApiContext& context, const ChatInput& input) {
  const ToolChoice& choice = input.tool_choice;
  if (input.tools && !input.tools->is_null() && !input.tools->is_array()) return wrong_field("tools", "a list of tools", input.tools);
  if (input.tools && input.tools->size() > kMaxTools)
    return input_error(fmt::format("tools: expected at most {} tools, found {}", kMaxTools, input.tools->size()));
  if (choice.kind != ToolChoice::kRequired) return {};
  if (!has_tools(input)) return input_error("tool_choice: a call is required, but no tools are given; add tools or leave tool_choice out");
  if (context.options.tool_format == ToolFormat::kNone)
    return input_error(
        "tool_choice: a call cannot be required of this model, its tool-call format is not known; start the server with "
        "--tool-call-parser");
  if (choice.function.empty()) return {};
  for (const Json& tool : *input.tools) {
    if (!tool.is_object()) continue;  // the encoder tells
    auto function = tool.find("function");
    if (function == tool.end() || !function->is_object()) continue;
    auto name = function->find("name");
    if (name != function->end() && name->is_string() && name->get_ref<const std::string&>() == choice.function) return {};
  }
  return input_error(fmt::format("tool_choice: expected the name of one of the tools, found {}", shown_value(Json(choice.function))));
}

Result<std::string> render(const ApiContext& context, const ChatInput& input) {
  DG_TRY(check_chat(context));
  DG_TRY(check_tools(context, input));
  static const Json kNoTools = nullptr;
  return context.prompt->render(*input.messages, has_tools(input) ? *input.tools : kNoTools, input.options);
}

}  // namespace

ToolChoice read_tool_choice(Fields& fields, bool flat) {
  const Json* choice = fields.find("tool_choice");
  if (!choice) return {};
  constexpr const char* kExpected = "\"none\", \"auto\", \"required\" or a function such as {\"type\": \"function\", ...}";
  if (choice->is_string()) {
    const auto& kind = choice->get_ref<const std::string&>();
    if (kind == "auto") return {};
    if (kind == "none") return {.kind = ToolChoice::kNone};
    if (kind == "required") return {.kind = ToolChoice::kRequired};
    fields.wrong("tool_choice", kExpected);
    return {};
  }
  if (!choice->is_object()) {
    fields.wrong("tool_choice", kExpected);
    return {};
  }
  Fields named = fields.object("tool_choice");
  named.choice("type", {"function"});
  Fields function = flat ? named : named.object("function");
  auto name = function.text("name");
  if (fields.ok() && (!name || name->empty()))
    function.fail(wrong_field(flat ? "tool_choice.name" : "tool_choice.function.name", "the name of a tool", nullptr));
  return {.kind = ToolChoice::kRequired, .function = name.value_or("")};
}

Result<void> check_chat(const ApiContext& context) {
  if (context.prompt) return {};
  return input_error(
      "this model has no chat template, so it answers /v1/completions only; start the server with --chat-format to name a format");
}

void read_chat_options(Fields& fields, const ApiContext& context, ChatOptions* options) {
  options->thinking = context.options.thinking;
  if (fields.choice("reasoning_effort", {"none", "minimal", "low", "medium", "high", "xhigh", "max"}) == "none") options->thinking = false;
  if (fields.has("chat_template_kwargs")) {
    Fields kwargs = fields.object("chat_template_kwargs");
    if (auto thinking = kwargs.flag("enable_thinking")) options->thinking = *thinking;
    if (auto thinking = kwargs.flag("thinking")) options->thinking = *thinking;
  }
  const Json* thinking = fields.find("thinking");
  if (thinking && thinking->is_boolean()) {
    options->thinking = thinking->get<bool>();
  } else if (thinking) {
    auto type = fields.object("thinking").choice("type", {"enabled", "disabled", "adaptive", "auto"});
    if (type == "enabled") options->thinking = true;
    if (type == "disabled") options->thinking = false;
  }
}

Result<std::vector<int32_t>> encode_chat_prompt(const ApiContext& context, const ChatInput& input, bool add_special) {
  DG_ASSIGN(std::string text, render(context, input));
  return context.tokenizer.encode(text, {.add_special = add_special});
}

Result<void> prepare_chat(const ApiContext& context, const ChatInput& input, AnswerPlan* plan, EngineRequest* request) {
  DG_ASSIGN(std::string text, render(context, input));
  request->prompt = context.tokenizer.encode(text, {.add_special = false});
  bool in_reasoning = prompt_ends_in_reasoning(text);
  bool tools = has_tools(input) && context.options.tool_format != ToolFormat::kNone;
  request->visible_special = tools ? context.tool_marks : context.chat_marks;
  plan->parse = true;
  plan->parser = {.parse_reasoning = context.options.parse_reasoning,
                  .starts_in_reasoning = in_reasoning,
                  .tools = tools ? context.options.tool_format : ToolFormat::kNone,
                  .parallel_tool_calls = input.parallel_tool_calls};

  std::string start_after = in_reasoning ? "</think>" : "";
  bool required = input.tool_choice.kind == ToolChoice::kRequired;
  Json nothing = Json::object();
  Fields fields(nothing);
  if (input.structure) {
    if (has_tools(input))
      return input_error(
          fmt::format("{}: the answer cannot be held to a structure and call tools at the same time; set tool_choice to "
                      "\"none\" or leave it out",
                      input.structure->field));
    GrammarSpec spec = input.structure->spec;
    spec.start_after = start_after;
    set_grammar(fields, context, spec, input.structure->field, request);
  } else if (tools && (required || any_strict_tool(*input.tools))) {
    DG_ASSIGN(std::optional<GrammarSpec> spec, tool_grammar(context.options.tool_format, *input.tools,
                                                            {.function = input.tool_choice.function,
                                                             .required = required,
                                                             .parallel = input.parallel_tool_calls && input.tool_choice.function.empty(),
                                                             .start_after = start_after}));
    if (spec) set_grammar(fields, context, *spec, "tools", request);
  }
  if (!fields.ok()) return fields.error();
  return {};
}

}  // namespace dg::api
