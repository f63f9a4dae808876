// What one user wants generated, and what comes back: plain data between the front end (any thread) and the engine thread.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/finish.h"
#include "engine/sampler.h"

namespace dg {

class Grammar;  // text/grammar.h

using EngineClock = std::chrono::steady_clock;

enum class Pooling { kNone, kLast, kMean };  // embeddings: the hidden state after the final norm

// Immutable once submitted.
struct EngineRequest {
  std::string id;          // of the front end: logs, /debug/requests, /admin/abort
  std::string tenant;      // fair share; prefixes are shared only inside one tenant
  std::string cache_salt;  // parts a tenant's prefix cache further; "": the tenant's own
  int priority = 0;        // lower runs first
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int n = 1;                      // answers, sharing the prompt's blocks; answer i draws with seed + i
  int64_t max_tokens = 0;         // 0: until the context is full
  int64_t min_tokens = 0;         // stop ids cannot be picked before
  std::vector<int32_t> stop_ids;  // end the answer; in the ids, not in the text. Empty with ignore_eos
  std::vector<std::string> stop;  // texts that end it
  bool include_stop_text = false;
  bool skip_special = true;              // special tokens give no text ...
  std::vector<int32_t> visible_special;  // ... but these do: the marks an output parser looks for
  int logprobs = -1;                     // -1: none; 0: of the chosen token; n: and of the n likeliest
  int prompt_logprobs = -1;              // the same for every prompt token but the first
  std::shared_ptr<const Grammar> grammar;
  bool speculate = true;
  Pooling pooling = Pooling::kNone;  // not kNone: the prompt is run and nothing is generated
  EngineClock::time_point deadline = EngineClock::time_point::max();
};

struct TokenLogprob {
  int32_t id = -1;
  float logprob = 0;
};

// One generated (or prompt) token with what was asked about it.
struct TokenInfo {
  int32_t id = -1;
  float logprob = 0;                // of the distribution before temperature and filters, after penalties, bias and grammar
  std::vector<TokenLogprob> top{};  // likeliest first
};

struct RequestTimes {
  EngineClock::time_point arrived, scheduled, first_token, finished;
};

struct RequestUsage {
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;  // generated: of all n answers
  int64_t draft_tokens = 0, accepted_tokens = 0;                       // speculation
  int64_t preemptions = 0;
  RequestTimes times;
};

// News of one answer.
struct OutputDelta {
  int index = 0;                      // of the answer, 0 .. n-1
  std::string_view text;              // certain: complete UTF-8, and no stop text can take it back
  std::span<const TokenInfo> tokens;  // generated since the last delta; a token may come before its text
  bool finished = false;              // the answer's last delta
  FinishReason reason = FinishReason::kStop;
  std::string_view stop_text;  // the stop text that was met
  int32_t stop_id = -1;        // the stop id that was met, -1: none
};

// Receives a request's output, on the engine's output thread, in order. Must not block or throw. After on_end nothing more.
class RequestListener {
 public:
  virtual ~RequestListener() = default;
  virtual void on_prompt_logprobs(std::span<const TokenInfo> /*tokens*/) {}  // whole prompt; the first has no logprob (NaN)
  virtual void on_embedding(std::span<const float> /*values*/) {}
  virtual void on_delta(const OutputDelta& delta) = 0;
  // The request is over and owns nothing any more. `error`: null after a normal end of all answers; else why it failed
  // (kCancelled: by cancel() or the deadline, kDevice, ...).
  virtual void on_end(const RequestUsage& usage, const Error* error) = 0;
};

}  // namespace dg
