// `dougong eval`: accuracy on a suite of questions and perplexity of a text; --compare is in eval_compare.cpp.
#include <fmt/core.h>

#include <algorithm>

#include "app/commands.h"
#include "app/eval_compare.h"
#include "app/eval_runs.h"
#include "app/terminal.h"
#include "base/file.h"
#include "base/json.h"

namespace dg {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;

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
  InterruptScope interrupt(2);
  if (options.given("compare")) return run_eval_compare(options, path, open, questions, suite_path, text, &interrupt.requested());
  DG_ASSIGN(std::unique_ptr<OpenedModel> model, open_model(path, open));
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
