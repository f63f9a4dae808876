// RequestState and Sequence: a request and its answers while the engine works on them. Engine thread only, except that while
// a step is in flight the step runner uses the sampling state of the sequences in it (docs/engine_contract.md).
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/request.h"
#include "engine/sampler.h"
#include "kv/block_pool.h"
#include "text/grammar.h"

namespace dg {

struct RequestState;
class OutputState;

// One answer.
struct Sequence {
  enum class State : uint8_t {
    kHeld,     // waits for the first answer's prompt (n > 1)
    kWaiting,  // in the queue
    kRunning,  // has its blocks; gets rows in steps
    kFinished,
  };

  Sequence(RequestState& of, int number, BlockAllocator& allocator, int block_tokens);

  RequestState& request;
  const int index;
  State state = State::kHeld;
  bool paused() const;

  std::vector<int32_t> ids;  // prompt and generated
  int64_t prompt_tokens = 0;
  int64_t computed = 0;         // rows that are in the cache
  int64_t inserted_blocks = 0;  // of `blocks`, known to the prefix tree
  BlockTable blocks;
  std::vector<int32_t> drafts;  // proposed for behind ids.back(), not yet verified
  bool ran_before = false;      // was preempted, or admitted once: for statistics

  int64_t generated() const { return static_cast<int64_t>(ids.size()) - prompt_tokens; }
  int64_t remaining() const { return static_cast<int64_t>(ids.size()) - computed; }  // rows to run before the next token
  // The next row gives the next token, and everything before it is in the cache.
  bool decoding() const { return remaining() == 1 && computed >= prompt_tokens; }

  // Sampling state.
  TokenHistory history;
  GrammarState grammar;
  uint64_t seed = 0;
  std::vector<TokenInfo> prompt_infos;  // prompt_logprobs so far
  bool prompt_reported = false;
  std::vector<float> pooled;  // sum over the rows so far (Pooling::kMean) or the last row
  EngineClock::time_point last_token{};
  FinishReason reason = FinishReason::kStop;
};

struct RequestState {
  uint64_t handle = 0;
  uint64_t order = 0;  // arrival
  EngineRequest request;
  std::string salt;  // of the prefix tree: tenant and cache_salt
  std::shared_ptr<OutputState> output;
  std::vector<std::unique_ptr<Sequence>> sequences;
  RequestUsage usage;
  bool paused = false;
  bool admitted = false;
  int64_t unfinished = 0;  // sequences
};

inline bool Sequence::paused() const { return request.paused; }

// Position of a request or sequence in queues and in the order of preemption: higher runs later and is preempted first.
struct RunOrder {
  int priority;
  uint64_t order;
  int index;
  friend auto operator<=>(const RunOrder&, const RunOrder&) = default;
};
inline RunOrder run_order(const Sequence& s) { return {s.request.request.priority, s.request.order, s.index}; }

}  // namespace dg
