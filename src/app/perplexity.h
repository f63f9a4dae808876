// Perplexity of a text under a model: exp of the mean negative log likelihood per token.
#pragma once
#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "engine/executor.h"

namespace dg {

struct PerplexityResult {
  double nll = 0;  // nats, all tokens together
  int64_t tokens = 0;
  double value() const;
};

// Every token of every sequence but the first is predicted from those before it. Sequences are run side by side, as many rows
// as the executor takes; the result does not depend on it. `progress` gets the number of tokens done so far.
Result<PerplexityResult> measure_perplexity(Executor& executor, const std::vector<std::vector<int32_t>>& sequences, int64_t max_context,
                                            const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel);

// Documents of a text: separated by lines that hold only %%.
std::vector<std::string> split_documents(const std::string& text);

}  // namespace dg
