// The texts made from the tables: help on the terminal and docs/options.md.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "config/options.h"

namespace dg {
namespace {

constexpr size_t kWidth = 110;

// `text` broken at blanks into lines of at most kWidth columns, all but the first indented by `indent`.
std::string wrapped(std::string_view text, size_t indent) {
  std::string out;
  size_t column = indent;
  while (!text.empty()) {
    size_t end = std::min(text.find(' '), text.size());
    if (column > indent && column + 1 + end > kWidth) {
      out += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column > indent) {
      out += ' ';
      column++;
    }
    out += text.substr(0, end);
    column += end;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return out;
}

std::string choices_text(const OptionRow& row) {
  std::string text = row.choices;
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 3) text.replace(at, 1, " | ");
  return text;
}

bool shows_default(const OptionRow& row) {
  return *row.fallback && !(row.type == OptionType::kInteger && std::string_view(row.fallback) == "0");
}

std::string flag_text(const OptionRow& row) {
  std::string out = std::string("--") + row.name;
  if (row.type == OptionType::kFlag && std::string_view(row.fallback) == "true") out = std::string("--[no-]") + row.name;
  if (std::string_view(row.name) == "thinking") out = "--[no-]thinking";
  if (row.type == OptionType::kOptionalText) out += fmt::format("[={}]", row.value);
  else if (row.type != OptionType::kFlag) out += std::string(" ") + row.value;
  return out;
}

std::string option_help(const OptionRow& row) {
  std::string left = "  " + flag_text(row);
  for (std::string_view aliases = row.aliases; aliases.starts_with('-') && !aliases.starts_with("--"); aliases = "") {
    left += ", " + std::string(aliases.substr(0, aliases.find(' ')));  // the short form, if there is one
  }
  std::string help = row.help;
  if (*row.choices) help += fmt::format(" [{}]", choices_text(row));
  if (shows_default(row)) help += fmt::format(" (default {})", row.fallback);
  constexpr size_t kColumn = 32;
  left += left.size() < kColumn ? std::string(kColumn - left.size(), ' ') : "\n" + std::string(kColumn, ' ');
  return left + wrapped(help, kColumn) + "\n";
}

std::string cell(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '|') out += "\\|";
    else if (c == '<') out += "&lt;";
    else out += c;
  }
  return out;
}

std::string range_cell(const OptionRow& row) {
  if (*row.choices) return choices_text(row);
  if (row.type != OptionType::kInteger && row.type != OptionType::kNumber) return "";
  auto bound = [](double value) { return fmt::format("{:.16g}", value); };
  if (std::isinf(row.low) && std::isinf(row.high)) return "";
  return bound(row.low) + " … " + (std::isinf(row.high) ? "" : bound(row.high));
}

constexpr const char* kExitCodes =
    "Exit codes: 0 success; 1 a verification or an evaluation failed; 2 wrong input (option, file, prompt); 3 not enough\n"
    "memory or other resources; 4 a device failed; 130 interrupted by Ctrl-C. An error is one line on standard error.\n";

constexpr const char* kEnvironment =
    "Every option can be set by an environment variable: --max-tokens by DOUGONG_MAX_TOKENS, and so on; the command line\n"
    "wins. DOUGONG_MODELS names a directory of models. NO_COLOR turns colours off.\n";

}  // namespace

std::string program_help() {
  std::string out = "dougong runs DeepSeek-family models.\n\nUsage: dougong COMMAND [arguments] [options]\n\nCommands:\n";
  for (const CommandRow& command : command_rows()) {
    std::string left = fmt::format("  {} {}", command.name, command.arguments);
    out += fmt::format("{:<28}{}\n", left, command.summary);
  }
  out +=
      "\n`dougong COMMAND --help` explains a command. MODEL is a directory with config.json, tokenizer.json and *.safetensors as\n"
      "published on Hugging Face, or the name of a model that is found beside the program, such as mini-r1.\n\n";
  return out + kEnvironment + "\n" + kExitCodes + "\nTry: dougong generate mini-r1 \"What is 12 + 30?\"\n";
}

std::string command_help(const CommandRow& command) {
  std::string out = fmt::format("dougong {}: {}\n\nUsage: dougong {}{}{} [options]\n\n{}\n\nOptions:\n", command.name, command.summary,
                                command.name, *command.arguments ? " " : "", command.arguments, command.details);
  for (const OptionRow& row : option_rows())
    if (belongs_to(row, command) && !row.hidden) out += option_help(row);
  return out + "\n" + kExitCodes;
}

std::string options_markdown() {
  std::string out =
      "# Commands and options\n\n"
      "Written by `dougong --help-markdown` from the tables in `src/config/option_table.cpp`; do not edit.\n\n## Commands\n\n";
  for (const CommandRow& command : command_rows())
    out += fmt::format("### dougong {}{}{}\n\n{}.\n\n```text\n{}\n```\n\n", command.name, *command.arguments ? " " : "", command.arguments,
                       command.summary, command.details);
  out += "## Options\n\n" + std::string(kEnvironment) +
         "\n| option | also | values | default | commands | meaning |\n|---|---|---|---|---|---|\n";
  for (const OptionRow& row : option_rows()) {
    if (row.hidden) continue;
    out += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", flag_text(row), row.aliases, cell(range_cell(row)), row.fallback,
                       std::string_view(row.commands) == "*" ? "all" : row.commands, cell(row.help));
  }
  return out + "\n## Exit codes\n\n" + kExitCodes;
}

}  // namespace dg
