// Parsing of the command line and the environment against the table.
#include "config/options.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace dg {
namespace {

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> words;
  while (!text.empty()) {
    size_t end = std::min(text.find(separator), text.size());
    if (end > 0) words.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return words;
}

std::string plain(double value) { return fmt::format("{:.16g}", value); }

std::string range_text(const OptionRow& row) {
  std::string kind = row.type == OptionType::kInteger ? "an integer" : "a number";
  if (std::isinf(row.high)) return std::isinf(row.low) ? kind : fmt::format("{} of at least {}", kind, plain(row.low));
  return fmt::format("{} from {} to {}", kind, plain(row.low), plain(row.high));
}

// What `--name` means: a row, possibly negated; row null when unknown.
struct Match {
  const OptionRow* row = nullptr;
  bool negated = false;
};

bool has_alias(const OptionRow& row, std::string_view alias) {
  for (std::string_view rest = row.aliases; !rest.empty();) {
    size_t end = std::min(rest.find(' '), rest.size());
    if (rest.substr(0, end) == alias) return true;
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return false;
}

// vLLM accepts --max_tokens for --max-tokens; so do we.
std::string with_dashes(std::string_view word) {
  std::string out(word);
  std::replace(out.begin(), out.end(), '_', '-');
  return out;
}

Match find_row(const CommandRow& command, std::string_view word) {
  std::string name = with_dashes(word);
  for (const OptionRow& row : option_rows()) {
    if (!belongs_to(row, command)) continue;
    if (name == std::string("--") + row.name || has_alias(row, word) || has_alias(row, name)) return {&row, false};
    if (row.type == OptionType::kFlag && name == std::string("--no-") + row.name) return {&row, true};
  }
  return {};
}

Error unknown_option(const CommandRow& command, std::string_view word) {
  std::vector<std::string> known;
  std::string elsewhere;
  for (const OptionRow& row : option_rows()) {
    if (row.hidden) continue;
    if (!belongs_to(row, command)) {
      if (with_dashes(word) == std::string("--") + row.name) elsewhere = row.commands;
      continue;
    }
    known.push_back(std::string("--") + row.name);
    if (row.type == OptionType::kFlag) known.push_back(std::string("--no-") + row.name);
    for (std::string& alias : split(row.aliases, ' '))
      if (alias.starts_with("--")) known.push_back(std::move(alias));
  }
  std::string advice = fmt::format("`dougong {} --help` lists the options", command.name);
  if (!elsewhere.empty()) advice = fmt::format("it belongs to: {}", elsewhere);
  else if (std::string near = nearest_word(with_dashes(word), known); !near.empty()) advice = fmt::format("did you mean {}?", near);
  return input_error(fmt::format("unknown option {}; {}", in_quotes(word), advice));
}

bool looks_like_option(std::string_view word) {
  return word.size() > 1 && word[0] == '-' && !(word[1] >= '0' && word[1] <= '9') && word[1] != '.';
}

template <class T>
bool parse_number(std::string_view text, T* out) {
  if (text.starts_with('+')) text.remove_prefix(1);
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

}  // namespace

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (char c : text.substr(0, 200)) {
    auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\', out += c;
    else if (c == '\n') out += "\\n";
    else if (byte < 0x20 || byte == 0x7f) out += fmt::format("\\x{:02x}", byte);
    else out += c;
  }
  if (text.size() > 200) out += "...";
  return out + '"';
}

// Optimal string alignment distance (insert, delete, replace, swap neighbours); near = at most a third of the word.
std::string nearest_word(std::string_view word, const std::vector<std::string>& known) {
  word = word.substr(0, 64);
  std::string best;
  size_t best_distance = std::max<size_t>(word.size() / 3, 1) + 1;
  for (const std::string& other : known) {
    size_t n = word.size(), m = other.size();
    std::vector<std::vector<size_t>> d(n + 1, std::vector<size_t>(m + 1));
    for (size_t i = 0; i <= n; i++) d[i][0] = i;
    for (size_t j = 0; j <= m; j++) d[0][j] = j;
    for (size_t i = 1; i <= n; i++)
      for (size_t j = 1; j <= m; j++) {
        d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (word[i - 1] != other[j - 1])});
        if (i > 1 && j > 1 && word[i - 1] == other[j - 2] && word[i - 2] == other[j - 1]) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
      }
    // A word that is the beginning of a known one is near it whatever its length.
    size_t distance = word.size() >= 5 && std::string_view(other).starts_with(word) ? 1 : d[n][m];
    if (distance < best_distance) best_distance = distance, best = other;
  }
  return best;
}

bool belongs_to(const OptionRow& row, const CommandRow& command) {
  if (std::string_view(row.commands) == "*") return true;
  for (const std::string& name : split(row.commands, ' '))
    if (name == command.name) return true;
  return false;
}

const CommandRow* find_command(std::string_view name) {
  for (const CommandRow& row : command_rows())
    if (name == row.name) return &row;
  return nullptr;
}

std::string environment_name(const OptionRow& row) {
  std::string name = std::string("DOUGONG_") + row.name;
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
  return name;
}

Environment process_environment() {
  return [](const char* name) { return std::getenv(name); };
}

Result<void> Options::set(const OptionRow& row, std::string_view value, std::string_view where, bool from_user) {
  Value& to = values_[row.name];
  auto wrong = [&](std::string_view expected) {
    return input_error(fmt::format("{}: expected {}, found {}", where, expected, in_quotes(value)));
  };
  to.given = to.given || from_user;
  switch (row.type) {
    case OptionType::kFlag:
      if (value == "true" || value == "1" || value == "yes" || value == "on") to.flag = true;
      else if (value == "false" || value == "0" || value == "no" || value == "off") to.flag = false;
      else return wrong("true or false");
      return {};
    case OptionType::kInteger:
      if (!parse_number(value, &to.integer) || static_cast<double>(to.integer) < row.low || static_cast<double>(to.integer) > row.high)
        return wrong(range_text(row));
      return {};
    case OptionType::kNumber:
      if (!parse_number(value, &to.number) || !std::isfinite(to.number) || to.number < row.low || to.number > row.high)
        return wrong(range_text(row));
      return {};
    case OptionType::kChoice: {
      std::vector<std::string> choices = split(row.choices, '|');
      if (std::find(choices.begin(), choices.end(), value) == choices.end()) {
        std::string list, near = nearest_word(value, choices);
        for (const std::string& choice : choices) list += (list.empty() ? "" : ", ") + choice;
        Error error = wrong("one of " + list);
        if (!near.empty()) error.message += fmt::format("; did you mean {}?", near);
        return error;
      }
      to.text = value;
      return {};
    }
    case OptionType::kText: to.text = value; return {};
    case OptionType::kList: to.list.emplace_back(value); return {};
    case OptionType::kOptionalText: to.text = value; return {};
  }
  return {};
}

Result<Options> parse_options(const CommandRow& command, std::span<const std::string> args, const Environment& environment) {
  Options options;
  options.command_ = &command;
  for (const OptionRow& row : option_rows())
    if (belongs_to(row, command)) options.values_[row.name];
  for (const std::string& arg : args) {  // help wins over whatever else is wrong
    if (arg == "--") break;
    if (arg == "-h" || arg == "--help") {
      options.values_["help"].flag = true;
      return options;
    }
  }
  for (size_t i = 0; i < args.size(); i++) {
    const std::string& arg = args[i];
    if (arg == "--") {
      options.arguments_.insert(options.arguments_.end(), args.begin() + static_cast<std::ptrdiff_t>(i) + 1, args.end());
      break;
    }
    if (!looks_like_option(arg)) {
      options.arguments_.push_back(arg);
      continue;
    }
    size_t equals = arg.find('=');
    std::string word = arg.substr(0, equals);
    Match match = find_row(command, word);
    if (!match.row) return unknown_option(command, word);
    const OptionRow& row = *match.row;
    if (row.type == OptionType::kFlag) {
      if (match.negated && equals != std::string::npos)
        return input_error(fmt::format("{}: expected no value, found {}", word, in_quotes(arg.substr(equals + 1))));
      DG_TRY(options.set(row, match.negated ? "false" : equals == std::string::npos ? "true" : arg.substr(equals + 1), word, true));
      continue;
    }
    if (equals != std::string::npos || row.type == OptionType::kOptionalText) {
      DG_TRY(options.set(row, equals == std::string::npos ? "" : arg.substr(equals + 1), word, true));
      continue;
    }
    // A value may begin with a dash (a negative number, a text), but not be an option of this command.
    if (i + 1 >= args.size() || (looks_like_option(args[i + 1]) && find_row(command, args[i + 1].substr(0, args[i + 1].find('='))).row)) {
      return input_error(fmt::format("{}: expected a value ({}), found {}", word, row.value,
                                     i + 1 < args.size() ? in_quotes(args[i + 1]) + fmt::format("; write {}=... if that is the value", word)
                                                         : std::string("the end of the command line")));
    }
    DG_TRY(options.set(row, args[++i], word, true));
  }
  for (const OptionRow& row : option_rows()) {
    if (!belongs_to(row, command) || options.values_[row.name].given || std::string_view(row.name) == "help") continue;
    std::string variable = environment_name(row);
    if (const char* value = environment(variable.c_str())) DG_TRY(options.set(row, value, "environment variable " + variable, true));
    else if (*row.fallback) DG_TRY(options.set(row, row.fallback, row.name, false));
  }
  auto count = static_cast<int>(options.arguments_.size());
  if (count < command.min_arguments)
    return input_error(fmt::format("expected {}, found {}; usage: dougong {} {} [options]", command.arguments,
                                   count == 0 ? "no argument" : in_quotes(options.arguments_.back()), command.name, command.arguments));
  if (command.max_arguments >= 0 && count > command.max_arguments)
    return input_error(fmt::format("unexpected argument {}; usage: dougong {}{}{} [options]",
                                   in_quotes(options.arguments_[static_cast<size_t>(command.max_arguments)]), command.name,
                                   *command.arguments ? " " : "", command.arguments));
  return options;
}

const Options::Value& Options::get(std::string_view name) const {
  auto it = values_.find(name);
  CHECK(it != values_.end()) << "option " << std::string(name) << " of " << command_->name;
  return it->second;
}

const Options::Value& Options::get(std::string_view name, OptionType type) const {
  const Value& value = get(name);
  for (const OptionRow& row : option_rows())
    if (name == row.name)
      CHECK(row.type == type || (type == OptionType::kText && (row.type == OptionType::kChoice || row.type == OptionType::kOptionalText)))
          << row.name;
  return value;
}

bool Options::given(std::string_view name) const { return get(name).given; }
bool Options::flag(std::string_view name) const { return get(name, OptionType::kFlag).flag; }
int64_t Options::integer(std::string_view name) const { return get(name, OptionType::kInteger).integer; }
double Options::number(std::string_view name) const { return get(name, OptionType::kNumber).number; }
const std::string& Options::text(std::string_view name) const { return get(name, OptionType::kText).text; }
const std::vector<std::string>& Options::list(std::string_view name) const { return get(name, OptionType::kList).list; }

}  // namespace dg
