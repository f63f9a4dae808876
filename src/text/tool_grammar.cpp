// What tool_choice demands, as a grammar in GBNF. The text a constrained model writes is what OutputParser reads: one rule
// per function with the format's markup around its arguments, and one per schema.
#include <fmt/core.h>

#include <algorithm>

#include "base/json.h"
#include "text/output_parser.h"
#include "text/prompt_messages.h"
#include "text/tool_reader.h"

namespace dg {
namespace {

bool is_strict(const Json& tool) {
  if (!tool.is_object()) return false;
  auto function = tool.find("function");
  if (function == tool.end() || !function->is_object()) return false;
  auto strict = function->find("strict");
  return strict != function->end() && strict->is_boolean() && strict->get<bool>();
}

std::string gbnf_literal(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\n') out += "\\n";
    else if (c == '"' || c == '\\') out += std::string("\\") + c;
    else if (byte < 0x20 || byte == 0x7f) out += fmt::format("\\x{:02X}", byte);
    else out += c;
  }
  return out + '"';
}

std::string json_text(const Json& value) { return value.dump(-1, ' ', false, Json::error_handler_t::replace); }

// The arguments of a call are an object whatever the schema leaves open.
Json strict_schema(const Json& function) {
  auto parameters = function.find("parameters");
  if (parameters == function.end() || !parameters->is_object())
    return Json{{"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
  Json schema = *parameters;
  const char* deciding[] = {"type", "$ref", "anyOf", "allOf", "oneOf", "enum", "const"};
  if (std::none_of(std::begin(deciding), std::end(deciding), [&](const char* key) { return schema.contains(key); }))
    schema["type"] = "object";
  return schema;
}

// The marks of a format and the text around a function's arguments.
struct CallShape {
  std::string section_begin, section_end;  // expressions; "" = none
  std::string call_begin, call_end;
  std::string_view call_begin_text;
  std::string between;  // calls
};

CallShape shape_of(ToolFormat format) {
  CallShape shape;
  for (const ToolMarkText& mark : tool_marks(format)) {
    std::string token = fmt::format("<[{}]> ", mark.text);
    switch (mark.mark) {
      case ToolMark::kSectionBegin: shape.section_begin = token; break;
      case ToolMark::kSectionEnd: shape.section_end = token; break;
      case ToolMark::kCallBegin:
        shape.call_begin = token;
        shape.call_begin_text = mark.text;
        break;
      case ToolMark::kCallEnd: shape.call_end = token; break;
      case ToolMark::kSeparator: break;
    }
  }
  if (format != ToolFormat::kDeepseekV31) shape.between = "\"\\n\" ";
  return shape;
}

// What stands between the marks of a call of this function.
std::string call_body(ToolFormat format, const std::string& name, const std::string& arguments_rule) {
  const std::string separator = " <[<｜tool▁sep｜>]> ";
  switch (format) {
    case ToolFormat::kDeepseekV3:
      return gbnf_literal("function") + separator + gbnf_literal(name + "\n```json\n") + ' ' + arguments_rule + ' ' + gbnf_literal("\n```");
    case ToolFormat::kDeepseekV31: return gbnf_literal(name) + separator + arguments_rule;
    default:
      return gbnf_literal(fmt::format("\n{{\"name\": {}, \"arguments\": ", json_text(Json(name)))) + ' ' + arguments_rule + ' ' +
             gbnf_literal("}\n");
  }
}

Error no_such_function(const std::vector<ChatTool>& tools, std::string_view function) {
  std::string names;
  for (size_t i = 0; i < tools.size() && i < 8; i++) names += (i > 0 ? ", " : "") + json_text(Json(tools[i].name.substr(0, 60)));
  if (tools.size() > 8) names += ", ...";
  return input_error(fmt::format("tool_choice.function.name: expected one of the request's tools ({}), found {}",
                                 names.empty() ? "there are none" : names, json_text(Json(std::string(function.substr(0, 60))))));
}

}  // namespace

bool any_strict_tool(const Json& tools) { return tools.is_array() && std::any_of(tools.begin(), tools.end(), is_strict); }

Result<std::optional<GrammarSpec>> tool_grammar(ToolFormat format, const Json& tools, const ToolGrammarOptions& options) {
  const bool forced = options.required || !options.function.empty();
  if (!forced && (format == ToolFormat::kNone || !any_strict_tool(tools))) return std::optional<GrammarSpec>();
  if (format == ToolFormat::kNone)
    return input_error(
        "tool_choice: the model's tool format is none, so no call can be required; use \"auto\" or \"none\", or start the "
        "server with --tool-call-parser");
  DG_ASSIGN(std::vector<ChatTool> known, read_chat_tools(tools));
  if (known.empty()) return input_error("tool_choice: expected tools to choose from, found none; add tools or use \"none\"");

  std::string bodies, rules;
  bool any_object = false;
  for (size_t i = 0; i < known.size(); i++) {
    if (!options.function.empty() && known[i].name != options.function) continue;
    if (!is_tool_name(known[i].name))
      return input_error(fmt::format("tools[{}].function.name: expected 1 to {} bytes without control characters, found {} bytes", i,
                                     kMaxToolNameBytes, known[i].name.size()));
    std::string arguments = "object";
    if (is_strict(tools[i])) {
      arguments = fmt::format("arguments-{}", i);
      rules += fmt::format("{} ::= %json{}\n", arguments, json_text(strict_schema(tools[i]["function"])));
    } else {
      any_object = true;
    }
    bodies += fmt::format("{}body-{}", bodies.empty() ? "" : " | ", i);
    rules += fmt::format("body-{} ::= {}\n", i, call_body(format, known[i].name, arguments));
  }
  if (bodies.empty()) return no_such_function(known, options.function);
  if (any_object) rules += "object ::= %json{\"type\":\"object\"}\n";

  GrammarSpec spec;
  spec.kind = GrammarKind::kEbnf;
  spec.start_after = options.start_after;
  const CallShape shape = shape_of(format);
  const std::string more = options.parallel ? fmt::format("( {}{}body {})* ", shape.between, shape.call_begin, shape.call_end) : "";
  std::string root;
  if (forced) {
    if (!options.start_after.empty()) root = "( \"\\n\" \"\\n\"? )? ";  // models write a blank line behind their thoughts
    root += shape.section_begin + shape.call_begin;
  } else {
    spec.trigger = std::string(shape.call_begin_text);
  }
  spec.text = fmt::format("root ::= {}body {}{}{}\nbody ::= {}\n{}", root, shape.call_end, more, shape.section_end, bodies, rules);
  return std::optional<GrammarSpec>(std::move(spec));
}

}  // namespace dg
