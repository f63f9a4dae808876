// Generation on one executor, for the commands: Generator answers one prompt at a time and keeps the cache of the last one;
// generate_batch keeps several sequences running and refills as they finish. Both run the same step: generated tokens first,
// then chunks of prompts up to the step's limits. Neither chunking nor the company in a step changes a sequence's tokens (the
// backend computes every row independently).
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "engine/executor.h"
#include "engine/generate_sequence.h"

namespace dg {

struct GenerateLimits {
  int64_t max_context = 0;   // prompt and answer of one sequence
  int64_t chunk_tokens = 0;  // rows of one prompt in one step; 0: as many as the step takes
};

// Whether a prompt can be run at all; the error says what to change.
Result<void> check_prompt(std::span<const int32_t> prompt, Executor& executor, int64_t max_context);

// Engine thread only.
class Generator {
 public:
  Generator(Executor& executor, const Tokenizer& tokenizer, GenerateLimits limits)
      : executor_(executor), tokenizer_(tokenizer), limits_(limits) {}

  // What the cache holds of the prompt's beginning, from the request before, is not computed again. `cancel` is looked at
  // after every step; a cancelled request is a result, not an error.
  Result<GenerateResult> run(GenerateRequest request, const TokenCallback& on_token, const std::atomic<bool>* cancel);
  // Forgets the cached prefix and gives its blocks back.
  void reset();

 private:
  Executor& executor_;
  const Tokenizer& tokenizer_;
  GenerateLimits limits_;
  Sampler sampler_;
  std::unique_ptr<BlockTable> blocks_;
  std::vector<int32_t> cached_ids_;
};

// Answers requests 0 .. count-1, at most executor.options().max_step_sequences at a time. `make_request` is called in order,
// `done` as they finish; an error from either, or of the executor, ends everything.
struct BatchCallbacks {
  std::function<Result<GenerateRequest>(size_t index)> make_request;
  std::function<Result<void>(size_t index, GenerateResult result)> done;
};
Result<void> generate_batch(Executor& executor, const Tokenizer& tokenizer, GenerateLimits limits, size_t count,
                            const BatchCallbacks& callbacks, const std::atomic<bool>* cancel);

}  // namespace dg
