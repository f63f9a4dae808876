// Options: the one table of every option of every command (option_table.cpp), and the values of one invocation.
//
// A row of the table feeds the command line, the environment variable DOUGONG_<NAME>, `--help` and docs/options.md, so a new
// option is one row. Values are checked against the row (type, range, choices) before a command sees them; asking for an
// option that the command does not have is a bug.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dg {

enum class OptionType {
  kFlag,          // --name, --no-name, --name=true|false
  kInteger,       // within [low, high]
  kNumber,        // within [low, high], finite
  kText,          // any bytes
  kChoice,        // one of `choices`
  kList,          // any bytes, repeatable; its order is kept
  kOptionalText,  // --name or --name=TEXT; given() tells whether, text() may be ""
};

struct OptionRow {
  const char* name;      // without dashes; the environment variable is DOUGONG_ + upper case with '_' for '-'
  const char* commands;  // separated by blanks; "*" = all
  OptionType type;
  const char* fallback;  // default as text; "" = none: given() tells whether the user set it
  const char* help;
  const char* value = "N";  // placeholder in the help: unit or kind
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  const char* choices = "";  // separated by '|'
  const char* aliases = "";  // with dashes, separated by blanks
  bool hidden = false;       // neither in the help nor in the docs
};

struct CommandRow {
  const char* name;
  const char* arguments;             // "MODEL [PROMPT]"
  int min_arguments, max_arguments;  // max -1: any number
  const char* summary;               // one line
  const char* details;               // paragraphs: behaviour, fields of --json
};

std::span<const OptionRow> option_rows();
std::span<const CommandRow> command_rows();
const CommandRow* find_command(std::string_view name);

// Looks up an environment variable; null when unset. Tests pass their own.
using Environment = std::function<const char*(const char*)>;

class Options {
 public:
  const CommandRow& command() const { return *command_; }
  const std::vector<std::string>& arguments() const { return arguments_; }  // without the options

  bool has(std::string_view name) const { return values_.contains(name); }  // whether the command has this option
  bool given(std::string_view name) const;                                  // by the command line or the environment
  bool flag(std::string_view name) const;                                   // false without a value
  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  const std::string& text(std::string_view name) const;  // "" without a value
  const std::vector<std::string>& list(std::string_view name) const;

 private:
  friend Result<Options> parse_options(const CommandRow&, std::span<const std::string>, const Environment&);
  struct Value {
    bool given = false;
    bool flag = false;
    int64_t integer = 0;
    double number = 0;
    std::string text;
    std::vector<std::string> list;
  };
  const Value& get(std::string_view name, OptionType type) const;
  const Value& get(std::string_view name) const;
  Result<void> set(const OptionRow& row, std::string_view value, std::string_view where, bool from_user);

  const CommandRow* command_ = nullptr;
  std::vector<std::string> arguments_;
  std::map<std::string, Value, std::less<>> values_;
};

// Values of `args` (everything behind the command's name), then of the environment, then the defaults. With -h or --help
// among the options, only flag("help") counts and nothing else is checked.
Result<Options> parse_options(const CommandRow& command, std::span<const std::string> args, const Environment& environment);
Environment process_environment();

std::string environment_name(const OptionRow& row);
bool belongs_to(const OptionRow& row, const CommandRow& command);

// The text of `dougong --help`, `dougong COMMAND --help` and docs/options.md.
std::string program_help();
std::string command_help(const CommandRow& command);
std::string options_markdown();

// The known word nearest to a mistyped one, or "" when none is near.
std::string nearest_word(std::string_view word, const std::vector<std::string>& known);
// `text` in double quotes on one line, for messages.
std::string in_quotes(std::string_view text);

}  // namespace dg
