#include "engine/generate.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>

namespace dg {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

bool cancelled(const std::atomic<bool>* cancel) { return cancel && cancel->load(std::memory_order_relaxed); }

// Runs one step of as many of `running` as fit: generated tokens first, then prompts in order.
Result<void> run_step(Executor& executor, std::span<GenerateSequence* const> running, int64_t chunk_tokens, Sampler& sampler,
                      const TokenCallback& on_token) {
  const ExecutorOptions& options = executor.options();
  int64_t rows = options.max_step_tokens, logit_rows = options.max_logit_rows;
  std::vector<StepSequence> steps;
  std::vector<GenerateSequence*> members;
  for (bool prefilling : {false, true}) {
    for (GenerateSequence* sequence : running) {
      if (sequence->prefilling() != prefilling || rows == 0 || logit_rows == 0) continue;
      if (static_cast<int64_t>(steps.size()) == options.max_step_sequences) break;
      StepSequence step = sequence->next_step(chunk_tokens > 0 ? std::min(chunk_tokens, rows) : rows);
      rows -= static_cast<int64_t>(step.ids.size());
      logit_rows -= step.logits == LogitsWanted::kLast;
      steps.push_back(step);
      members.push_back(sequence);
    }
  }
  DG_ASSIGN(StepResult result, executor.run(steps));
  for (size_t i = 0; i < steps.size(); i++) {
    std::span<const float> logits;
    if (steps[i].logits == LogitsWanted::kLast)
      logits = {result.row(result.first_row[i]), static_cast<size_t>(executor.model().config().vocab)};
    DG_TRY(members[i]->commit(logits, sampler, on_token));
  }
  return {};
}

}  // namespace

Result<void> check_prompt(std::span<const int32_t> prompt, Executor& executor, int64_t max_context) {
  if (prompt.empty()) return input_error("the prompt has no tokens: give it some text");
  if (static_cast<int64_t>(prompt.size()) >= max_context)
    return input_error(
        fmt::format("the prompt has {} tokens, the context takes {} with at least one for the answer; shorten it or raise "
                    "--max-model-len",
                    prompt.size(), max_context));
  int64_t vocab = executor.model().config().vocab;
  for (int32_t id : prompt)
    if (id < 0 || id >= vocab)
      return input_error(
          fmt::format("tokenizer.json: token id {} of the prompt is not in the model's vocabulary (vocab_size {} in config.json); "
                      "the tokenizer belongs to another model",
                      id, vocab));
  return {};
}

Result<GenerateResult> Generator::run(GenerateRequest request, const TokenCallback& on_token, const std::atomic<bool>* cancel) {
  DG_TRY(check_prompt(request.prompt, executor_, limits_.max_context));
  // The longest common beginning; the last token of the prompt is run again, because its logits are needed.
  size_t common = 0, most = std::min(cached_ids_.size(), request.prompt.size() - 1);
  while (common < most && cached_ids_[common] == request.prompt[common]) common++;
  if (!blocks_) blocks_ = std::make_unique<BlockTable>(executor_.kv());
  blocks_->truncate(static_cast<int64_t>(common));
  cached_ids_.clear();

  GenerateSequence sequence(std::move(request), tokenizer_, std::move(blocks_), static_cast<int64_t>(common), limits_.max_context);
  GenerateSequence* one[] = {&sequence};
  double prefill_s = 0, decode_s = 0;
  while (!sequence.finished()) {
    bool prefilling = sequence.prefilling();
    auto start = Clock::now();
    DG_TRY(run_step(executor_, one, limits_.chunk_tokens, sampler_, on_token));
    (prefilling ? prefill_s : decode_s) += seconds_since(start);
    if (!sequence.finished() && cancelled(cancel)) sequence.finish(FinishReason::kCancelled, on_token);
  }
  cached_ids_ = sequence.computed_ids();
  blocks_ = sequence.take_blocks();
  GenerateResult result = sequence.take_result();
  result.prefill_s = prefill_s;
  result.decode_s = decode_s;
  return result;
}

void Generator::reset() {
  blocks_.reset();
  cached_ids_.clear();
}

Result<void> generate_batch(Executor& executor, const Tokenizer& tokenizer, GenerateLimits limits, size_t count,
                            const BatchCallbacks& callbacks, const std::atomic<bool>* cancel) {
  struct Running {
    size_t index;
    std::unique_ptr<GenerateSequence> sequence;
    int64_t blocks;  // it can come to need
  };
  KvPool& kv = executor.kv();
  Sampler sampler;
  std::vector<Running> running;
  std::unique_ptr<Running> waiting;  // made, but there are no blocks for it yet
  int64_t promised = 0;
  size_t next = 0;
  while (next < count || waiting || !running.empty()) {
    if (cancelled(cancel)) return Error{ErrorKind::kCancelled, "interrupted"};
    while (static_cast<int64_t>(running.size()) < executor.options().max_step_sequences && (waiting || next < count)) {
      if (!waiting) {
        DG_ASSIGN(GenerateRequest request, callbacks.make_request(next));
        DG_TRY(check_prompt(request.prompt, executor, limits.max_context));
        auto sequence =
            std::make_unique<GenerateSequence>(std::move(request), tokenizer, std::make_unique<BlockTable>(kv), 0, limits.max_context);
        int64_t blocks = (sequence->max_rows() + kv.block_tokens() - 1) / kv.block_tokens();
        waiting = std::make_unique<Running>(Running{next++, std::move(sequence), blocks});
      }
      // Admitted only if the pool can hold every running sequence at its longest: none can run out of cache half-way.
      if (promised + waiting->blocks > kv.blocks()) {
        if (running.empty())
          return resource_error(
              fmt::format("KV cache: a request may need {} blocks of {} tokens, there are {}; lower --max-tokens or raise "
                          "--max-model-len",
                          waiting->blocks, kv.block_tokens(), kv.blocks()));
        break;
      }
      promised += waiting->blocks;
      running.push_back(std::move(*waiting));
      waiting.reset();
    }
    std::vector<GenerateSequence*> sequences;
    for (const Running& r : running) sequences.push_back(r.sequence.get());
    DG_TRY(run_step(executor, sequences, limits.chunk_tokens, sampler, {}));
    for (size_t i = 0; i < running.size();) {
      if (!running[i].sequence->finished()) {
        i++;
        continue;
      }
      promised -= running[i].blocks;
      size_t index = running[i].index;
      GenerateResult result = running[i].sequence->take_result();
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));  // gives its blocks back
      DG_TRY(callbacks.done(index, std::move(result)));
    }
  }
  return {};
}

}  // namespace dg
