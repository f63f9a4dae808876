// `dougong tokenize`: text to ids and back, for people, for pipes and for comparing tokenizers.
#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "app/commands.h"
#include "app/line_input.h"
#include "app/model_options.h"
#include "app/model_tokenizer.h"
#include "app/terminal.h"
#include "base/json.h"
#include "text/tokenizer.h"

namespace dg {
namespace {

std::string joined(std::span<const int32_t> ids) {
  std::string out;
  for (int32_t id : ids) out += (out.empty() ? "" : " ") + std::to_string(id);
  return out;
}

// Ids separated by blanks, commas or newlines; brackets of a JSON array are welcome too.
Result<std::vector<int32_t>> parse_ids(std::string_view text, const Tokenizer& tokenizer, std::string_view where) {
  constexpr std::string_view kSeparators = " \t\r\n,[]";
  std::vector<int32_t> ids;
  for (size_t at = 0; (at = text.find_first_not_of(kSeparators, at)) != std::string_view::npos;) {
    size_t end = std::min(text.find_first_of(kSeparators, at), text.size());
    std::string_view word = text.substr(at, end - at);
    int32_t id = 0;
    auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || stop != word.data() + word.size() || id < 0 || id >= tokenizer.vocab_size())
      return input_error(fmt::format("{}: expected token ids from 0 to {}, found {}", where, tokenizer.vocab_size() - 1, in_quotes(word)));
    ids.push_back(id);
    at = end;
  }
  return ids;
}

Result<Json> convert_line(const Options& options, const Tokenizer& tokenizer, const std::string& line, const std::string& where) {
  const char* key = options.flag("decode") ? "ids" : "text";
  DG_ASSIGN(Json object, parse_json(line, where));
  if (!object.is_object() || !object.contains(key))
    return input_error(fmt::format("{}: expected an object with the field \"{}\", found {}", where, key, in_quotes(line.substr(0, 60))));
  const Json& value = object[key];
  if (!options.flag("decode")) {
    if (!value.is_string())
      return input_error(fmt::format("{}: text: expected a string, found {}", where, in_quotes(value.dump().substr(0, 60))));
    return Json{{"ids", tokenizer.encode(value.get_ref<const std::string&>(), {.add_special = options.flag("bos")})}};
  }
  std::vector<int32_t> ids;
  if (!value.is_array())
    return input_error(fmt::format("{}: ids: expected a list of token ids, found {}", where, in_quotes(value.dump().substr(0, 60))));
  for (const Json& item : value) {
    if (!item.is_number_integer() || item < 0 || item >= tokenizer.vocab_size())
      return input_error(fmt::format("{}: ids: expected token ids from 0 to {}, found {}", where, tokenizer.vocab_size() - 1,
                                     in_quotes(item.dump().substr(0, 60))));
    ids.push_back(item.get<int32_t>());
  }
  return Json{{"text", tokenizer.decode(ids, options.flag("skip-special"))}};
}

}  // namespace

Result<int> run_tokenize(const Options& options) {
  std::vector<std::string> words;
  DG_ASSIGN(std::string name, model_argument(options, &words));
  DG_ASSIGN(std::string path, resolve_model(name));
  DG_ASSIGN(std::unique_ptr<Tokenizer> tokenizer, load_model_tokenizer(path));

  if (options.flag("jsonl")) {
    std::unique_ptr<LineReader> reader = make_plain_line_reader();
    std::string line;
    if (!words.empty()) return input_error(fmt::format("--jsonl reads standard input: unexpected argument {}", in_quotes(words.front())));
    std::string out;
    for (int64_t number = 1; reader->read("", &line) == LineReader::Status::kLine; number++) {
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      auto converted = convert_line(options, *tokenizer, line, fmt::format("standard input:{}", number));
      if (!converted.ok()) print_output(out);
      DG_ASSIGN(Json object, std::move(converted));
      out += json_line(object);
      if (out.size() > 65536) print_output(std::exchange(out, ""));
    }
    print_output(out);
    return 0;
  }

  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  if (words.empty()) {
    if (input_is_terminal()) print_error("reading standard input; end it with Ctrl-D\n");
    DG_ASSIGN(text, read_standard_input());
  }
  if (options.flag("decode")) {
    DG_ASSIGN(std::vector<int32_t> ids, parse_ids(text, *tokenizer, words.empty() ? "standard input" : "arguments"));
    std::string decoded = tokenizer->decode(ids, options.flag("skip-special"));
    print_output(options.flag("json") ? json_line({{"text", decoded}}) : decoded + "\n");
    return 0;
  }
  std::vector<int32_t> ids = tokenizer->encode(text, {.add_special = options.flag("bos")});
  if (options.flag("json")) {
    Json tokens = Json::array();
    for (int32_t id : ids) tokens.push_back(std::string(tokenizer->token_bytes(id)));
    print_output(json_line({{"ids", ids}, {"tokens", tokens}}));
  } else {
    print_output(joined(ids) + "\n");
  }
  return 0;
}

}  // namespace dg
