// Names and marks of the tool formats.
#include <fmt/core.h>

#include <algorithm>
#include <iterator>

#include "text/output_parser.h"
#include "text/tool_reader.h"

namespace dg {
namespace {

constexpr ToolMarkText kDeepseekMarks[] = {
    {ToolMark::kSectionBegin, "<｜tool▁calls▁begin｜>"},
    {ToolMark::kSectionEnd, "<｜tool▁calls▁end｜>"},
    {ToolMark::kCallBegin, "<｜tool▁call▁begin｜>"},
    {ToolMark::kCallEnd, "<｜tool▁call▁end｜>"},
    {ToolMark::kSeparator, "<｜tool▁sep｜>"},
};
constexpr ToolMarkText kHermesMarks[] = {{ToolMark::kCallBegin, "<tool_call>"}, {ToolMark::kCallEnd, "</tool_call>"}};

struct FormatName {
  std::string_view name;
  ToolFormat format;
};
// What users pass; the first name of a format is the one shown.
constexpr FormatName kFormatNames[] = {
    {"none", ToolFormat::kNone},
    {"deepseek_v3", ToolFormat::kDeepseekV3},
    {"deepseekv3", ToolFormat::kDeepseekV3},
    {"deepseek_v31", ToolFormat::kDeepseekV31},
    {"deepseekv31", ToolFormat::kDeepseekV31},
    {"hermes", ToolFormat::kHermes},
    {"qwen3", ToolFormat::kHermes},
};
// By the prompt encoder (PromptEncoder::name()).
constexpr FormatName kEncoderFormats[] = {
    {"deepseek_v3", ToolFormat::kDeepseekV3},
    {"deepseek_v3_0324", ToolFormat::kDeepseekV3},
    {"deepseek_r1", ToolFormat::kDeepseekV3},
    {"deepseek_r1_0528", ToolFormat::kDeepseekV3},
    {"deepseek_v31", ToolFormat::kDeepseekV31},
    {"mini_r1", ToolFormat::kDeepseekV31},
    {"qwen3", ToolFormat::kHermes},
    {"deepseek_llm", ToolFormat::kNone},
    {"deepseek_v2", ToolFormat::kNone},
};

template <size_t n>
const FormatName* find_named(const FormatName (&table)[n], std::string_view name) {
  auto found = std::find_if(std::begin(table), std::end(table), [name](const FormatName& row) { return row.name == name; });
  return found == std::end(table) ? nullptr : found;
}

// By how the template writes the calls of earlier turns.
ToolFormat format_of_template(std::string_view text) {
  if (text.find("<｜tool▁call▁begin｜>") != std::string_view::npos)
    return text.find("```json") != std::string_view::npos ? ToolFormat::kDeepseekV3 : ToolFormat::kDeepseekV31;
  return text.find("<tool_call>") != std::string_view::npos ? ToolFormat::kHermes : ToolFormat::kNone;
}

}  // namespace

std::span<const ToolMarkText> tool_marks(ToolFormat format) {
  switch (format) {
    case ToolFormat::kNone: return {};
    case ToolFormat::kDeepseekV3:
    case ToolFormat::kDeepseekV31: return kDeepseekMarks;
    case ToolFormat::kHermes: return kHermesMarks;
  }
  return {};
}

Result<ToolFormat> find_tool_format(std::string_view name, std::string_view encoder_name, std::string_view chat_template) {
  if (name == "auto") {
    const FormatName* known = find_named(kEncoderFormats, encoder_name);
    return known ? known->format : format_of_template(chat_template);
  }
  if (const FormatName* named = find_named(kFormatNames, name)) return named->format;
  std::string list = "auto";
  for (const FormatName& row : kFormatNames) list += ", " + std::string(row.name);
  std::string shown_name;
  for (char c : name.substr(0, 60)) shown_name += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  return input_error(fmt::format("--tool-call-parser: expected one of {}, found \"{}\"", list, shown_name));
}

const char* tool_format_name(ToolFormat format) {
  for (const FormatName& row : kFormatNames)
    if (row.format == format) return row.name.data();  // of a literal: ends with NUL
  return "none";
}

std::vector<std::string> tool_format_marks(ToolFormat format) {
  std::vector<std::string> out;
  for (const ToolMarkText& mark : tool_marks(format)) out.emplace_back(mark.text);
  return out;
}

}  // namespace dg
