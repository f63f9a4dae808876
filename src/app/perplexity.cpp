#include "app/perplexity.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

namespace dg {
namespace {

struct Running {
  size_t index;
  std::vector<std::unique_ptr<BlockTable>> blocks;  // one for each executor
  int64_t computed = 0;
};

}  // namespace

// The exponentials are summed in double: the sum of 129k floats must not lose digits.
double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += static_cast<double>(std::exp(x - max));
  return std::log(sum) + static_cast<double>(max) - static_cast<double>(logits[static_cast<size_t>(target)]);
}

double PerplexityResult::value() const { return tokens > 0 ? std::exp(nll / static_cast<double>(tokens)) : 0; }

Result<void> run_sequences(std::span<Executor* const> executors, const std::vector<std::vector<int32_t>>& sequences, int64_t max_context,
                           const std::function<void(size_t sequence, size_t t, LogitRows logits)>& on_row,
                           const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel) {
  CHECK(!executors.empty());
  auto vocab = static_cast<size_t>(executors[0]->model().config().vocab);
  int64_t max_rows = INT64_MAX, max_running = INT64_MAX, done = 0;
  for (Executor* executor : executors) {
    const ExecutorOptions& options = executor->options();
    CHECK(static_cast<size_t>(executor->model().config().vocab) == vocab);
    max_rows = std::min({max_rows, options.max_step_tokens, options.max_logit_rows});
    max_running = std::min(max_running, options.max_step_sequences);
  }
  for (size_t i = 0; i < sequences.size(); i++) {
    if (static_cast<int64_t>(sequences[i].size()) > max_context + 1)
      return input_error(
          fmt::format("document {} has {} tokens, the context takes {}; use --perplexity-mode windows_1024, or raise "
                      "--max-model-len",
                      i + 1, sequences[i].size(), max_context));
    for (int32_t id : sequences[i])
      if (id < 0 || static_cast<size_t>(id) >= vocab)
        return input_error(
            fmt::format("tokenizer.json: token id {} is not in the model's vocabulary (vocab_size {} in config.json)", id, vocab));
  }
  std::vector<Running> running;
  std::vector<StepResult> results(executors.size());
  std::vector<std::span<const float>> logits(executors.size());
  size_t next = 0;
  for (;;) {
    if (cancel && cancel->load(std::memory_order_relaxed)) return Error{ErrorKind::kCancelled, "interrupted"};
    int64_t rows = max_rows;
    std::vector<StepSequence> steps;
    for (size_t i = 0; rows > 0; i++) {
      if (i == running.size()) {
        while (next < sequences.size() && sequences[next].size() < 2) next++;
        if (next == sequences.size() || static_cast<int64_t>(running.size()) == max_running) break;
        running.push_back({next++, {}});
        for (Executor* executor : executors) running.back().blocks.push_back(std::make_unique<BlockTable>(executor->kv()));
      }
      const std::vector<int32_t>& ids = sequences[running[i].index];
      int64_t count = std::min(rows, static_cast<int64_t>(ids.size()) - 1 - running[i].computed);
      steps.push_back({.ids = std::span(ids).subspan(static_cast<size_t>(running[i].computed), static_cast<size_t>(count)),
                       .first_position = running[i].computed,
                       .logits = LogitsWanted::kAll});
      rows -= count;
    }
    if (steps.empty()) return {};
    for (size_t e = 0; e < executors.size(); e++) {
      for (size_t i = 0; i < steps.size(); i++) steps[i].blocks = running[i].blocks[e].get();
      DG_ASSIGN(results[e], executors[e]->run(steps));
    }
    for (size_t i = 0; i < steps.size(); i++) {
      Running& r = running[i];
      for (size_t row = 0; row < steps[i].ids.size(); row++) {
        for (size_t e = 0; e < executors.size(); e++)
          logits[e] = {results[e].row(results[e].first_row[i] + static_cast<int64_t>(row)), vocab};
        on_row(r.index, static_cast<size_t>(r.computed) + row, logits);
      }
      done += static_cast<int64_t>(steps[i].ids.size());
      r.computed += static_cast<int64_t>(steps[i].ids.size());
    }
    std::erase_if(running, [&](const Running& r) { return r.computed + 1 == static_cast<int64_t>(sequences[r.index].size()); });
    if (progress) progress(done);
  }
}

Result<PerplexityResult> measure_perplexity(Executor& executor, const std::vector<std::vector<int32_t>>& sequences, int64_t max_context,
                                            const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel) {
  std::vector<double> nll(sequences.size());  // apart, so that the sum does not depend on what ran together
  PerplexityResult result;
  Executor* one[] = {&executor};
  DG_TRY(run_sequences(
      one, sequences, max_context,
      [&](size_t sequence, size_t t, LogitRows logits) {
        nll[sequence] += negative_log_likelihood(logits[0], sequences[sequence][t + 1]);
        result.tokens++;
      },
      progress, cancel));
  for (double x : nll) result.nll += x;
  if (!std::isfinite(result.nll))
    return input_error("the model's logits are not numbers (NaN): the weights are damaged; check them with `dougong verify`");
  return result;
}

std::vector<std::string> split_documents(const std::string& text) {
  constexpr std::string_view kSeparator = "\n%%\n";
  std::vector<std::string> documents;
  size_t begin = 0;
  for (size_t at; (at = text.find(kSeparator, begin)) != std::string::npos; begin = at + kSeparator.size())
    documents.push_back(text.substr(begin, at - begin));
  documents.push_back(text.substr(begin));
  return documents;
}

}  // namespace dg
