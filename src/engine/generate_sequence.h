// One request while it is generated: its tokens, cache blocks, stop rules and text. The loop in generate.cpp runs it.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/executor.h"
#include "engine/finish.h"
#include "engine/sampler.h"
#include "engine/stop.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace dg {

struct GenerateRequest {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = 0;         // 0: until the context is full
  std::vector<int32_t> eos;       // ids that end the text; they are in the ids of the result, not in its text
  std::vector<std::string> stop;  // texts that end it; neither they nor anything behind them is in the text
  bool skip_special = true;       // special tokens give no text
};

struct GenerateResult {
  std::vector<int32_t> ids;  // generated
  std::string text;
  FinishReason reason = FinishReason::kCancelled;
  std::string stop;                              // the stop text that was met
  int64_t prompt_tokens = 0, cached_tokens = 0;  // cached: the beginning of the prompt that was not computed again
  // Only meaningful for a request that ran alone.
  double prefill_s = 0, decode_s = 0;
};

// Called for every generated token with the text that has become certain, possibly "". Once more with id -1 for the rest.
using TokenCallback = std::function<void(int32_t id, std::string_view text)>;

// Owned by the loop; engine thread only.
class GenerateSequence {
 public:
  // `computed` tokens of the prompt are in the cache of `blocks` already; at least the last one is not.
  GenerateSequence(GenerateRequest request, const Tokenizer& tokenizer, std::unique_ptr<BlockTable> blocks, int64_t computed,
                   int64_t max_context);

  bool prefilling() const { return computed_ < result_.prompt_tokens; }
  bool finished() const { return finished_; }
  // The next rows to run: one generated token, or at most `max_rows` of the prompt.
  StepSequence next_step(int64_t max_rows);
  // The rows of next_step() have run; `logits` is the row of the last one, empty unless that was asked for.
  Result<void> commit(std::span<const float> logits, Sampler& sampler, const TokenCallback& on_token);
  void finish(FinishReason reason, const TokenCallback& on_token);

  // After the end: the result, and the cache with the ids whose rows it holds.
  GenerateResult take_result() { return std::move(result_); }
  std::unique_ptr<BlockTable> take_blocks() { return std::move(blocks_); }
  std::vector<int32_t> computed_ids() const { return {ids_.begin(), ids_.begin() + computed_}; }
  // The most cache rows it can come to need.
  int64_t max_rows() const { return max_rows_; }

 private:
  void emit(int32_t id, std::string_view text, const TokenCallback& on_token);

  GenerateRequest request_;
  GenerateResult result_;
  std::vector<int32_t> ids_;  // prompt and generated
  int64_t computed_, pending_ = 0, max_context_, max_rows_;
  std::unique_ptr<BlockTable> blocks_;
  TokenHistory history_;
  StreamDetokenizer detokenizer_;
  StopMatcher stop_;
  bool finished_ = false;
};

}  // namespace dg
