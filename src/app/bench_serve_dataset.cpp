// Prompts of a load run: random token ids or words, or the records of a file.
#include <fmt/core.h>

#include <algorithm>
#include <random>

#include "app/bench_serve.h"
#include "base/file.h"
#include "base/json.h"
#include "config/options.h"

namespace dg {
namespace {

constexpr size_t kMaxFileBytes = size_t{1} << 30;
constexpr int64_t kDefaultCount = 100;

constexpr std::string_view kWords[] = {
    "water",   "light",   "house",   "garden", "street",  "number",  "morning", "window",   "paper",  "letter",  "river",   "mountain",
    "winter",  "summer",  "green",   "yellow", "silver",  "little",  "strong",  "early",    "quiet",  "simple",  "answer",  "people",
    "country", "village", "machine", "engine", "music",   "picture", "story",   "minute",   "second", "evening", "table",   "door",
    "wall",    "field",   "tree",    "leaf",   "stone",   "road",    "bridge",  "ship",     "train",  "wheel",   "clock",   "glass",
    "bread",   "salt",    "sugar",   "coffee", "apple",   "orange",  "horse",   "bird",     "fish",   "cloud",   "rain",    "snow",
    "wind",    "fire",    "earth",   "star",   "moon",    "night",   "walk",    "write",    "read",   "speak",   "listen",  "carry",
    "build",   "break",   "begin",   "follow", "learn",   "teach",   "think",   "remember", "under",  "above",   "between", "before",
    "after",   "always",  "never",   "often",  "because", "while",   "where",   "which",    "other",  "every"};

Error bad_record(const std::string& where, std::string_view expected, std::string_view found) {
  return input_error(fmt::format("{}: expected {}, found {}", where, expected, found));
}

// What one record asks: {"prompt"}, {"messages"} or a ShareGPT conversation, of which the first turn is taken.
Result<BenchPrompt> read_record(const SortedJson& record, const std::string& where, const BenchPrompts& options) {
  if (!record.is_object()) return bad_record(where, "an object with prompt, messages or conversations", record.type_name());
  BenchPrompt out;
  out.output_tokens = options.output_len;
  for (const char* name : {"max_tokens", "output_len"})
    if (auto it = record.find(name); it != record.end()) {
      if (!it->is_number_integer() || it->get<int64_t>() < 1 || it->get<int64_t>() > (1 << 30))
        return bad_record(where + "." + name, "a number of tokens, 1 or more",
                          it->dump(-1, ' ', true, SortedJson::error_handler_t::replace).substr(0, 60));
      out.output_tokens = it->get<int64_t>();
    }
  if (auto messages = record.find("messages"); messages != record.end()) {
    if (!messages->is_array() || messages->empty()) return bad_record(where + ".messages", "a list of messages", messages->type_name());
    if (!options.chat) return input_error(where + ": has messages; use --endpoint /v1/chat/completions");
    out.key = "messages";
    out.value = messages->dump(-1, ' ', false, SortedJson::error_handler_t::replace);
    return out;
  }
  const SortedJson* prompt = nullptr;
  if (auto it = record.find("prompt"); it != record.end()) {
    prompt = &*it;
  } else if (auto turns = record.find("conversations"); turns != record.end() && turns->is_array()) {
    for (const SortedJson& turn : *turns) {
      if (!turn.is_object()) continue;
      auto from = turn.find("from");
      auto value = turn.find("value");
      if (from != turn.end() && value != turn.end() && (*from == "human" || *from == "user")) {
        prompt = &*value;
        break;
      }
    }
    if (!prompt) return bad_record(where + ".conversations", "a turn {\"from\": \"human\", \"value\": ...}", "none");
  }
  if (!prompt) return bad_record(where, "prompt, messages or conversations", "none of them");
  const bool ids =
      prompt->is_array() && !prompt->empty() && std::all_of(prompt->begin(), prompt->end(), [](auto& x) { return x.is_number_integer(); });
  if (!prompt->is_string() && !ids) return bad_record(where + ".prompt", "a text or a list of token ids", prompt->type_name());
  if (ids && options.chat) return input_error(where + ".prompt: has token ids; use --endpoint /v1/completions");
  if (ids) out.prompt_tokens = static_cast<int64_t>(prompt->size());
  out.key = options.chat ? "messages" : "prompt";
  const std::string text = prompt->dump(-1, ' ', false, SortedJson::error_handler_t::replace);
  out.value = options.chat ? fmt::format("[{{\"role\":\"user\",\"content\":{}}}]", text) : text;
  return out;
}

Result<std::vector<BenchPrompt>> read_file_prompts(const BenchPrompts& options) {
  DG_ASSIGN(std::string text, read_file(options.dataset, kMaxFileBytes));
  std::vector<BenchPrompt> out;
  auto full = [&] { return options.count > 0 && static_cast<int64_t>(out.size()) >= options.count; };
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '[') {  // ShareGPT publishes one array
    DG_ASSIGN(SortedJson records, parse_sorted_json(text, options.dataset, {.max_bytes = kMaxFileBytes}));
    for (size_t i = 0; i < records.size() && !full(); i++) {
      DG_ASSIGN(BenchPrompt prompt, read_record(records[i], fmt::format("{}: [{}]", options.dataset, i), options));
      out.push_back(std::move(prompt));
    }
  } else {
    std::string_view rest = text;
    for (int64_t number = 1; !rest.empty() && !full(); number++) {
      const size_t end = rest.find('\n');
      const std::string_view line = rest.substr(0, end);
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
      if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
      const std::string where = fmt::format("{}, line {}", options.dataset, number);
      DG_ASSIGN(SortedJson record, parse_sorted_json(line, where));
      DG_ASSIGN(BenchPrompt prompt, read_record(record, where, options));
      out.push_back(std::move(prompt));
    }
  }
  if (out.empty()) return input_error(fmt::format("{}: expected at least one record, found none", options.dataset));
  const size_t records = out.size();
  while (options.count > 0 && !full()) out.push_back(out[out.size() % records]);
  return out;
}

std::vector<BenchPrompt> random_prompts(const BenchPrompts& options) {
  std::mt19937_64 random(options.seed);
  const bool ids = !options.token_ids.empty() && !options.chat;
  const size_t choices = ids ? options.token_ids.size() : std::size(kWords);
  auto piece = [&](int64_t n, std::string& out) {
    for (int64_t i = 0; i < n; i++) {
      if (!out.empty()) out += ids ? "," : " ";
      const size_t pick = random() % choices;
      out += ids ? std::to_string(options.token_ids[pick]) : std::string(kWords[pick]);
    }
  };
  std::string prefix;
  piece(options.prefix_len, prefix);
  std::vector<BenchPrompt> out;
  const int64_t count = options.count > 0 ? options.count : kDefaultCount;
  for (int64_t i = 0; i < count; i++) {
    std::string text = prefix;
    piece(options.input_len, text);
    BenchPrompt prompt;
    prompt.key = options.chat ? "messages" : "prompt";
    prompt.value = ids            ? "[" + text + "]"
                   : options.chat ? fmt::format("[{{\"role\":\"user\",\"content\":\"{}\"}}]", text)
                                  : "\"" + text + "\"";
    prompt.prompt_tokens = options.prefix_len + options.input_len;
    prompt.output_tokens = options.output_len;
    out.push_back(std::move(prompt));
  }
  return out;
}

}  // namespace

std::string bench_words() {
  std::string out;
  for (std::string_view word : kWords) out += (out.empty() ? "" : " ") + std::string(word);
  return out;
}

Result<std::vector<BenchPrompt>> make_bench_prompts(const BenchPrompts& options) {
  if (options.dataset != "random") return read_file_prompts(options);
  return random_prompts(options);
}

}  // namespace dg
