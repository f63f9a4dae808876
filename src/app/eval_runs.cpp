#include "app/eval_runs.h"

#include <fmt/core.h>

#include <algorithm>

#include "app/terminal.h"
#include "base/file.h"
#include "base/json.h"
#include "text/reasoning.h"

namespace dg {
namespace {

constexpr int64_t kDefaultMaxTokens = 420;
constexpr int64_t kWindowTokens = 1023;

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

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

}  // namespace

EvalCounter::EvalCounter(bool show) : show_(show && error_is_terminal()) {}

EvalCounter::~EvalCounter() {
  if (shown_) print_error("\r\x1b[K");
}

void EvalCounter::show(const std::string& text) {
  if (!show_ || (shown_ && seconds_since(last_) < 0.1)) return;
  print_error("\r\x1b[K" + text);
  last_ = Clock::now();
  shown_ = true;
}

Result<SuiteReport> run_suite(const Options& options, OpenedModel& model, const std::vector<EvalQuestion>& questions,
                              const std::string& origin, const std::atomic<bool>* cancel) {
  SuiteReport report;
  std::vector<std::string> records(questions.size());
  std::vector<bool> in_reasoning(questions.size());
  EvalCounter counter(!options.flag("quiet"));
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
      for (EvalScore* score : {&report.tasks[q.task], &report.total}) score->judged++, score->correct += *correct;
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

Result<std::vector<TextMode>> text_modes(const Options& options, const OpenedModel& model, const std::string& text) {
  const Tokenizer& tokenizer = *model.tokenizer;
  std::vector<std::string> documents = split_documents(text);
  std::string mode = options.text("perplexity-mode");
  if (mode == "auto") mode = documents.size() > 1 ? "both" : "windows_1024";
  std::optional<int32_t> bos = tokenizer.bos_id();
  if (!bos && model.config.bos) bos = static_cast<int32_t>(*model.config.bos);

  std::vector<TextMode> modes;
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
    modes.push_back({"per_document", std::move(sequences)});
  }
  if (mode != "per_document") {
    std::string joined;
    for (size_t i = 0; i < documents.size(); i++) joined += (i > 0 ? "\n" : "") + documents[i];
    std::vector<int32_t> ids = tokenizer.encode(joined, kPlain);
    auto window = static_cast<size_t>(std::min(kWindowTokens, max_context(model) - 1));
    std::vector<std::vector<int32_t>> sequences;
    for (size_t at = 0; at < ids.size(); at += window) {
      std::vector<int32_t> run;
      run.reserve(window + 1);
      if (bos) run.push_back(*bos);
      for (size_t i = at; i < std::min(at + window, ids.size()); i++) run.push_back(ids[i]);
      sequences.push_back(std::move(run));
    }
    modes.push_back({"windows_1024", std::move(sequences)});
  }
  return modes;
}

Result<PerplexityReport> run_perplexity(const Options& options, OpenedModel& model, const std::string& text,
                                        const std::atomic<bool>* cancel) {
  PerplexityReport report;
  EvalCounter counter(!options.flag("quiet"));
  auto start = Clock::now();
  DG_ASSIGN(std::vector<TextMode> modes, text_modes(options, model, text));
  for (const TextMode& mode : modes) {
    int64_t total = 0;
    for (const auto& ids : mode.sequences) total += static_cast<int64_t>(ids.size()) - 1;
    auto progress = [&](int64_t done) { counter.show(fmt::format("perplexity {}: {} of {} tokens", mode.name, done, total)); };
    DG_ASSIGN(PerplexityResult result, measure_perplexity(*model.executor, mode.sequences, max_context(model), progress, cancel));
    report.modes.emplace_back(mode.name, result);
  }
  report.seconds = seconds_since(start);
  return report;
}

}  // namespace dg
