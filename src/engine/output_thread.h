// OutputThread: turns the tokens of the engine into text and hands it to the listeners, so that detokenising, stop texts and
// whatever listeners do cost the step loop nothing. The engine gives one batch per step; order is kept.
//
// A stop text is found here, behind the engine: the answer ends at once for the listener, and the engine is asked to stop it.
// Tokens it generated meanwhile are dropped, and not counted.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/stop.h"
#include "text/detokenizer.h"

namespace dg {

// What the output thread keeps of a request. Made by submit(); afterwards output thread only.
class OutputState {
 public:
  OutputState(uint64_t handle, const EngineRequest& request, const Tokenizer& tokenizer, std::shared_ptr<RequestListener> listener);

  const uint64_t handle;

 private:
  friend class OutputThread;
  struct Answer {
    StreamDetokenizer detokenizer;
    StopMatcher stop;
    int64_t tokens = 0;
    bool finished = false;
  };
  const bool include_stop_text_;
  std::shared_ptr<RequestListener> listener_;
  std::vector<Answer> answers_;
};

// News of one answer. `at` lives until the request's OutputEnd, which comes behind all of its items.
struct OutputItem {
  OutputState* at = nullptr;
  int index = 0;
  int32_t id = -1;        // a generated token, -1: none
  int32_t extra = -1;     // index into OutputBatch::infos, -1: no logprobs asked
  bool finished = false;  // of the answer
  FinishReason reason = FinishReason::kStop;
  int32_t stop_id = -1;  // `id` is a stop id: it gives no text
};

struct OutputEnd {
  std::shared_ptr<OutputState> state;
  RequestUsage usage;
  std::optional<Error> error;
};

struct OutputBatch {
  std::vector<OutputItem> items;
  std::vector<TokenInfo> infos;
  struct Extra {
    OutputState* at;
    std::vector<TokenInfo> prompt_logprobs;
    std::vector<float> embedding;
  };
  std::vector<Extra> extras;    // handled before the items
  std::vector<OutputEnd> ends;  // handled after the items
  bool empty() const { return items.empty() && ends.empty() && extras.empty(); }
  void clear() { items.clear(), infos.clear(), extras.clear(), ends.clear(); }
};

class OutputThread {
 public:
  // `stop_answer` is called when a stop text ended an answer of a request; any thread-safe function.
  explicit OutputThread(std::function<void(uint64_t handle, int index)> stop_answer);
  ~OutputThread();  // handles what was posted, then joins

  // Takes the contents of `batch` and leaves it empty. Waits while very much is unhandled.
  void post(OutputBatch& batch);
  // Everything posted so far has been handled.
  void flush();

 private:
  static constexpr size_t kMaxItems = size_t{1} << 18;

  void loop();
  void handle(OutputBatch& batch);
  void deliver(OutputState& state, int index, std::span<const TokenInfo> tokens, std::span<const OutputItem> items);

  std::function<void(uint64_t, int)> stop_answer_;
  std::mutex mutex_;
  std::condition_variable ready_, done_;
  OutputBatch pending_;
  bool stop_ = false, busy_ = false;
  std::vector<TokenInfo> infos_;  // of one delivery
  std::thread thread_;
};

}  // namespace dg
