// Engine: many requests on one model. One engine thread owns all mutable state (scheduler, KV blocks, sequences); other
// threads talk to it through bounded, thread-safe calls. docs/engine_contract.md is normative.
//
// Each step: commands and deadlines -> plan -> the results of the step before are handed to the output thread (text, stop texts,
// listeners), which works on them meanwhile -> the plan runs -> commit. Engine::submit() never blocks on a step.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/executor.h"
#include "engine/request.h"
#include "engine/step.h"
#include "text/tokenizer.h"

namespace dg {

enum class SpeculationMethod { kNone, kMtp, kNgram };

struct EngineOptions {
  int64_t max_model_len = 0;      // prompt and answer of one sequence
  int64_t max_step_tokens = 512;  // budget of one step
  int64_t max_running = 64;       // sequences in one step
  int64_t max_waiting = 1024;     // requests that wait; more are refused (429)
  int64_t max_prefill_chunk = 0;  // rows of one prompt in one step; 0: the budget
  bool prefix_cache = true;
  SpeculationMethod speculation = SpeculationMethod::kNone;
  int draft_tokens = 1;
  bool adaptive_speculation = true;  // switched off while it does not pay
  // A request's text does not depend on what else runs or is cached, bit for bit (see docs/engine_contract.md).
  bool deterministic = false;
};

// A snapshot for /metrics, /load and the log; see docs/engine_contract.md for the meaning of each.
struct EngineStats {
  int64_t running = 0, waiting = 0;  // sequences in the batch; requests that wait
  int64_t kv_blocks = 0, kv_free = 0, kv_cached = 0;
  uint64_t steps = 0, prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0, preemptions = 0;
  uint64_t prefix_queries = 0, prefix_hits = 0;  // in tokens
  uint64_t drafts = 0, draft_tokens = 0, accepted_tokens = 0;
  std::vector<uint64_t> accepted_per_position;
  bool speculating = false, draining = false;
  double last_step_s = 0;
};

struct RequestStatus {  // one line of /debug/requests
  uint64_t handle = 0;
  std::string id, tenant, stage;  // stage: queued | waiting | prefill | decode | paused
  double age_s = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0, blocks = 0;
  int priority = 0;
};

// Called on the engine thread at the end of a step or request; must be quick (counters, histograms).
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  // Seconds since the step before had ended, or since this one began, if there was nothing to do in between; of these, how long the
  // device waited for the host.
  virtual void on_step(int64_t /*prefill_tokens*/, int64_t /*decode_tokens*/, double /*seconds*/, double /*waited*/) {}
  // Seconds since the token before (or since arrival, `first`).
  virtual void on_token(bool /*first*/, double /*seconds*/) {}
  virtual void on_request_end(const EngineRequest&, const RequestUsage&, FinishReason) {}
};

// What an engine stands on; everything outlives it.
struct EngineParts {
  StepRunner* runner = nullptr;
  BlockAllocator* allocator = nullptr;
  int block_tokens = 16;
  int64_t vocab = 0;
  int64_t max_logit_rows = 0;
  const Tokenizer* tokenizer = nullptr;
};

class Engine {
 public:
  // Starts the threads. The executor, tokenizer and observer (may be null) outlive the engine.
  static Result<std::unique_ptr<Engine>> create(Executor& executor, const Tokenizer& tokenizer, const EngineOptions& options,
                                                EngineObserver* observer = nullptr);
  // The same with another step runner, for tests and for measuring the engine alone.
  static std::unique_ptr<Engine> create(const EngineParts& parts, const EngineOptions& options, EngineObserver* observer = nullptr);
  virtual ~Engine() = default;  // cancels everything, joins

  // Any thread. The error is what the client gets: kInput when the request can never run (its numbers are in the message),
  // kResource when the queue is full or the engine drains. Otherwise a handle; the listener hears on_end exactly once.
  virtual Result<uint64_t> submit(EngineRequest request, std::shared_ptr<RequestListener> listener) = 0;
  // Any thread; unknown or ended handles are fine. The listener hears on_end(kCancelled) within one step.
  virtual void cancel(uint64_t handle) = 0;
  // A paused request keeps its blocks and gets no rows, until resumed: back-pressure of a slow client.
  virtual void pause(uint64_t handle, bool paused) = 0;
  virtual int64_t cancel_id(const std::string& request_id) = 0;  // all requests with this id ("": all); how many

  virtual void drain() = 0;       // refuses new requests, finishes the others
  virtual bool idle() const = 0;  // no request, nothing in flight
  virtual bool wait_idle(std::chrono::milliseconds limit) = 0;
  virtual void reset_prefix_cache() = 0;  // drops all cached blocks that no running sequence uses

  // The device's failure, after which every request ends with it at once, new ones in submit(). The process should end.
  virtual std::optional<Error> failure() const = 0;

  virtual EngineStats stats() const = 0;
  virtual std::vector<RequestStatus> requests() const = 0;
  virtual const EngineOptions& options() const = 0;
};

}  // namespace dg
