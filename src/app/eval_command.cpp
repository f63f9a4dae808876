// `dougong eval`: accuracy on a suite of questions and perplexity of a text.
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>

#include "app/commands.h"
#include "app/eval_suite.h"
#include "app/model_options.h"
#include "app/perplexity.h"
#include "app/terminal.h"
#include "base/file.h"
#include "base/json.h"
#include "text/reasoning.h"

namespace dg {
namespace {

constexpr int64_t kDefaultMaxTokens = 420;
constexpr size_t kMaxTextBytes = size_t{1} << 30;
constexpr int64_t kWindowTokens = 1023;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Score {
  int64_t correct = 0, judged = 0;
  double percent() const { return judged > 0 ? 100.0 * static_cast<double>(correct) / static_cast<double>(judged) : 0; }
};

struct SuiteReport {
  std::map<std::string, Score> tasks;
  Score total;
  int64_t questions = 0, output_tokens = 0, finished = 0;  // finished: ended by the model itself
  double seconds = 0;
};

struct PerplexityReport {
  std::vector<std::pair<const char*, PerplexityResult>> modes;
  double seconds = 0;
};

// One line on a terminal that is overwritten; nothing elsewhere.
class Counter {
 public:
  explicit Counter(bool show) : show_(show && error_is_terminal()) {}
  ~Counter() {
    if (shown_) print_error("\r\x1b[K");
  }
  void show(const std::string& text) {
    if (!show_ || (shown_ && seconds_since(last_) < 0.1)) return;
    print_error("\r\x1b[K" + text);
    last_ = Clock::now();
    shown_ = true;
  }

 private:
  bool show_, shown_ = false;
  Clock::time_point last_;
};

Json answer_record(const EvalQuestion& question, bool in_reasoning, const GenerateResult& result, std::optional<bool> correct) {
  std::string reasoning, content;
  ReasoningSplitter splitter(in_reasoning);
  auto take = [&](const std::vector<ReasoningSplitter::Piece>& pieces) {
    for (const auto& piece : pieces) (piece.reasoning ? reasoning : content) += piece.text;
  };
  take(splitter.push(result.text));
  take(splitter.finish());
  return {{"id", *parse_json(question.id, "id")},
          {"task", question.task},
          {"match", question.match_name},
          {"correct", correct ? Json(*correct) : Json(nullptr)},
          {"reasoning", reasoning},
          {"text", content},
          {"prompt_tokens", result.prompt_tokens},
          {"output_tokens", result.ids.size()},
          {"finish_reason", finish_reason_name(result.reason)}};
}

Result<SuiteReport> run_suite(const Options& options, OpenedModel& model, const std::vector<EvalQuestion>& questions,
                              const std::string& origin, const std::atomic<bool>* cancel) {
  SuiteReport report;
  std::vector<std::string> records(questions.size());
  std::vector<bool> in_reasoning(questions.size());
  Counter counter(!options.flag("quiet"));
  auto start = Clock::now();
  auto chat_of = [&](const EvalQuestion& q) {
    ChatOptions chat = chat_options(options);
    if (!chat.thinking) chat.thinking = q.thinking;
    else if (*chat.thinking && q.thinking) chat.thinking = q.thinking;  // --thinking allows it; a question may still forbid it
    return chat;
  };
  BatchCallbacks callbacks;
  callbacks.make_request = [&](size_t index) -> Result<GenerateRequest> {
    const EvalQuestion& q = questions[index];
    auto encode = [&]() -> Result<EncodedChat> {
      DG_ASSIGN(Json messages, parse_json(q.messages, "messages"));
      DG_ASSIGN(Json tools, parse_json(q.tools, "tools"));
      DG_ASSIGN(EncodedChat encoded, encode_chat(model, messages, tools, chat_of(q)));
      DG_TRY(check_prompt(encoded.ids, *model.executor, max_context(model)));
      return encoded;
    };
    auto encoded = encode();
    if (!encoded.ok()) return Error{encoded.error().kind, fmt::format("{}:{}: {}", origin, q.line, encoded.error().message)};
    GenerateRequest request;
    request.prompt = std::move(encoded->ids);
    in_reasoning[index] = encoded->in_reasoning;
    request.sampling = sampling_params(options, model.generation, false);
    request.max_tokens = options.integer("max-tokens") > 0 ? options.integer("max-tokens") : kDefaultMaxTokens;
    request.eos = model.eos;
    request.skip_special = false;  // tool calls are judged by their markup
    return request;
  };
  callbacks.done = [&](size_t index, GenerateResult result) -> Result<void> {
    const EvalQuestion& q = questions[index];
    std::optional<bool> correct = judge_answer(q, result.text);
    if (correct)
      for (Score* score : {&report.tasks[q.task], &report.total}) score->judged++, score->correct += *correct;
    report.questions++;
    report.output_tokens += static_cast<int64_t>(result.ids.size());
    report.finished += result.reason == FinishReason::kStop;
    records[index] = json_line(answer_record(q, in_reasoning[index], result, correct));
    counter.show(
        fmt::format("{} of {} questions, {} of {} right", report.questions, questions.size(), report.total.correct, report.total.judged));
    return {};
  };
  DG_TRY(generate_batch(*model.executor, *model.tokenizer, generate_limits(options, model), questions.size(), callbacks, cancel));
  report.seconds = seconds_since(start);
  if (options.given("output")) {
    std::string all;
    for (const std::string& record : records) all += record;
    DG_TRY(write_file(options.text("output"), all));
  }
  return report;
}

Result<PerplexityReport> run_perplexity(const Options& options, OpenedModel& model, const std::string& text,
                                        const std::atomic<bool>* cancel) {
  const Tokenizer& tokenizer = *model.tokenizer;
  std::vector<std::string> documents = split_documents(text);
  std::string mode = options.text("perplexity-mode");
  if (mode == "auto") mode = documents.size() > 1 ? "both" : "windows_1024";
  std::optional<int32_t> bos = tokenizer.bos_id();
  if (!bos && model.config.bos) bos = static_cast<int32_t>(*model.config.bos);

  PerplexityReport report;
  Counter counter(!options.flag("quiet"));
  auto start = Clock::now();
  auto measure = [&](const char* name, const std::vector<std::vector<int32_t>>& sequences) -> Result<void> {
    int64_t total = 0;
    for (const auto& ids : sequences) total += static_cast<int64_t>(ids.size()) - 1;
    auto progress = [&](int64_t done) { counter.show(fmt::format("perplexity {}: {} of {} tokens", name, done, total)); };
    DG_ASSIGN(PerplexityResult result, measure_perplexity(*model.executor, sequences, max_context(model), progress, cancel));
    report.modes.emplace_back(name, result);
    return {};
  };
  constexpr Tokenizer::EncodeOptions kPlain{.add_special = false};
  if (mode != "windows_1024") {
    if (!bos || model.eos.empty())
      return input_error(fmt::format(
          "{}: the tokenizer names no BOS or EOS token, which --perplexity-mode per_document needs; use windows_1024", model.path));
    std::vector<std::vector<int32_t>> sequences;
    for (const std::string& document : documents) {
      std::vector<int32_t> ids = tokenizer.encode(document, kPlain);
      ids.insert(ids.begin(), *bos);
      ids.push_back(model.eos.front());
      sequences.push_back(std::move(ids));
    }
    DG_TRY(measure("per_document", sequences));
  }
  if (mode != "per_document") {
    std::string joined;
    for (size_t i = 0; i < documents.size(); i++) joined += (i > 0 ? "\n" : "") + documents[i];
    std::vector<int32_t> ids = tokenizer.encode(joined, kPlain);
    auto window = static_cast<size_t>(std::min(kWindowTokens, max_context(model) - 1));
    std::vector<std::vector<int32_t>> sequences;
    for (size_t at = 0; at < ids.size(); at += window) {
      std::vector<int32_t> run;
      if (bos) run.push_back(*bos);
      run.insert(run.end(), ids.begin() + static_cast<std::ptrdiff_t>(at),
                 ids.begin() + static_cast<std::ptrdiff_t>(std::min(at + window, ids.size())));
      sequences.push_back(std::move(run));
    }
    DG_TRY(measure("windows_1024", sequences));
  }
  report.seconds = seconds_since(start);
  return report;
}

void print_suite(const SuiteReport& r) {
  std::string out = fmt::format("{:<20} {:>9} {:>8}\n", "task", "right", "percent");
  for (auto& [name, score] : r.tasks)
    out += fmt::format("{:<20} {:>9} {:>7.1f}\n", name, fmt::format("{}/{}", score.correct, score.judged), score.percent());
  out += fmt::format("{:<20} {:>9} {:>7.1f}\n", "total", fmt::format("{}/{}", r.total.correct, r.total.judged), r.total.percent());
  out += fmt::format("{} questions, {} ended by themselves, {} tokens in {:.1f} s ({:.0f} tokens/s)\n", r.questions, r.finished,
                     r.output_tokens, r.seconds, static_cast<double>(r.output_tokens) / r.seconds);
  print_output(out);
}

Json suite_json(const SuiteReport& r) {
  Json tasks = Json::object();
  for (auto& [name, score] : r.tasks) tasks[name] = {{"correct", score.correct}, {"judged", score.judged}};
  return {{"accuracy", r.total.percent()}, {"correct", r.total.correct},       {"judged", r.total.judged}, {"questions", r.questions},
          {"finished", r.finished},        {"output_tokens", r.output_tokens}, {"seconds", r.seconds},     {"tasks", std::move(tasks)}};
}

}  // namespace

Result<int> run_eval(const Options& options) {
  DG_ASSIGN(std::string name, model_argument(options));
  DG_ASSIGN(std::string path, resolve_model(name));
  std::string suite_path = options.text("suite"), text_path = options.text("perplexity");
  if (!options.given("suite") && !options.given("perplexity")) {
    suite_path = path + "/eval/mini_eval.jsonl";
    text_path = path + "/eval/heldout_text.txt";
    if (!file_exists(suite_path) || !file_exists(text_path))
      return input_error(
          fmt::format("{}: has no evaluation files (eval/mini_eval.jsonl, eval/heldout_text.txt); give --suite FILE.jsonl or "
                      "--perplexity FILE.txt",
                      path));
  }
  std::vector<EvalQuestion> questions;
  if (!suite_path.empty()) {
    DG_ASSIGN(questions, read_eval_suite(suite_path));
    questions = spread_questions(std::move(questions), options.integer("limit"));
  }
  std::string text;
  if (!text_path.empty()) {
    DG_ASSIGN(text, read_file(text_path, kMaxTextBytes));
    if (text.empty()) return input_error(fmt::format("{}: expected text, found an empty file", text_path));
  }
  if (options.given("output")) DG_TRY(write_file(options.text("output"), ""));  // better to learn now that it cannot be written

  OpenOptions open = open_options(options);
  open.max_sequences = options.integer("batch");
  if (!text.empty()) {  // every row's logits are wanted: at most 64 MiB of them
    DG_ASSIGN(ModelConfig config, read_model_config(path));
    open.max_logit_rows = std::max(open.max_sequences, std::clamp<int64_t>((int64_t{16} << 20) / config.vocab, 16, open.max_step_tokens));
  }
  DG_ASSIGN(std::unique_ptr<OpenedModel> model, open_model(path, open));
  InterruptScope interrupt(2);
  Json json = {{"model", model->path}};
  bool passed = true;
  if (!questions.empty()) {
    DG_ASSIGN(SuiteReport report, run_suite(options, *model, questions, suite_path, &interrupt.requested()));
    if (options.flag("json")) json["suite"] = suite_json(report);
    else print_suite(report);
    if (options.given("min-accuracy")) passed = passed && report.total.percent() >= options.number("min-accuracy");
  }
  if (!text.empty()) {
    DG_ASSIGN(PerplexityReport report, run_perplexity(options, *model, text, &interrupt.requested()));
    Json modes = Json::object();
    for (auto& [mode, result] : report.modes) {
      modes[mode] = {{"perplexity", result.value()}, {"tokens", result.tokens}};
      if (!options.flag("json")) print_output(fmt::format("perplexity {:<14} {:.4f}  ({} tokens)\n", mode, result.value(), result.tokens));
      if (options.given("max-perplexity")) passed = passed && result.value() <= options.number("max-perplexity");
    }
    modes["seconds"] = report.seconds;
    json["perplexity"] = std::move(modes);
    if (!options.flag("json")) print_output(fmt::format("perplexity took {:.1f} s\n", report.seconds));
  }
  if (options.flag("json")) print_output(json_line(json));
  return passed ? 0 : 1;
}

}  // namespace dg
