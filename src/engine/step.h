// What runs in one step and what came out of it: plain data between the scheduler, the step runner and the engine. Buffers
// are reused from step to step, so that the loop does not allocate.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/request.h"
#include "engine/sampler.h"

namespace dg {

struct Sequence;

// Rows [begin, begin + rows) of a sequence, of which the last `drafts` are its drafts.
struct StepItem {
  Sequence* sequence = nullptr;
  int64_t begin = 0;
  int32_t rows = 0, drafts = 0;
  bool decode = false;         // generated tokens (also when they are replayed after a preemption); false: prompt
  bool wants_token = false;    // the rows end at the sequence's end: the next token is sampled
  bool prompt_logits = false;  // logits of every row (prompt_logprobs)
};

struct StepPlan {
  std::vector<StepItem> items;
  int64_t prefill_tokens = 0, decode_tokens = 0;
  bool draft = false;    // propose drafts for the next step
  bool follows = false;  // the step before ended just now: until this one begins, the device waits for the host
  void clear() {
    items.clear();
    prefill_tokens = decode_tokens = 0;
  }
};

// Of the item with the same index.
struct ItemResult {
  std::vector<SampleOutput> tokens;  // [0, token_count): accepted drafts and the token behind them
  int token_count = 0;
  int accepted = 0;                 // drafts
  std::optional<FinishReason> end;  // the last token ends the answer
  int32_t stop_id = -1;
  std::vector<int32_t> drafts;             // for the next step
  std::vector<TokenInfo> prompt_logprobs;  // of the tokens behind rows [begin, begin + rows)
  bool failed = false;                     // logits that are not numbers
};

struct StepResults {
  std::vector<ItemResult> items;
  std::optional<Error> error;  // the step failed as a whole: a device
  double waited_s = 0;         // of the device for the host: before the step, where it follows another, and between its passes
};

// Runs plans. One thread at a time.
class StepRunner {
 public:
  virtual ~StepRunner() = default;
  virtual void run(const StepPlan& plan, StepResults& results) = 0;
};

}  // namespace dg
