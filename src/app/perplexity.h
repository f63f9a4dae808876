// Perplexity of a text under a model: exp of the mean negative log likelihood per token.
#pragma once
#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "engine/executor.h"

namespace dg {

struct PerplexityResult {
  double nll = 0;  // nats, all tokens together
  int64_t tokens = 0;
  double value() const;
};

// Runs sequences through executors of one vocabulary side by side, as many rows at a time as all of them take. Calls
// on_row(sequence, t, logits) for every token t of a sequence but the last, with one row of logits for each executor: those that
// predict token t + 1. Each sequence's rows come in order. Errors: a sequence longer than the context, an id outside the vocabulary,
// cancelled.
using LogitRows = std::span<const std::span<const float>>;
Result<void> run_sequences(std::span<Executor* const> executors, const std::vector<std::vector<int32_t>>& sequences, int64_t max_context,
                           const std::function<void(size_t sequence, size_t t, LogitRows logits)>& on_row,
                           const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel);

// -log softmax(logits)[target] in nats.
double negative_log_likelihood(std::span<const float> logits, int32_t target);

// Every token of every sequence but the first is predicted from those before it. Sequences are run side by side, as many rows
// as the executor takes; the result does not depend on it. `progress` gets the number of tokens done so far.
Result<PerplexityResult> measure_perplexity(Executor& executor, const std::vector<std::vector<int32_t>>& sequences, int64_t max_context,
                                            const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel);

// Documents of a text: separated by lines that hold only %%.
std::vector<std::string> split_documents(const std::string& text);

}  // namespace dg
