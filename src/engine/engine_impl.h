// The engine's one implementation; see engine.h and docs/engine_contract.md.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/output_thread.h"
#include "engine/scheduler.h"
#include "engine/speculation.h"
#include "engine/step_runner.h"

namespace dg {

class EngineImpl : public Engine {
 public:
  EngineImpl(const EngineParts& parts, const EngineOptions& options, EngineObserver* observer, std::unique_ptr<StepRunner> owned);
  ~EngineImpl() override;

  Result<uint64_t> submit(EngineRequest request, std::shared_ptr<RequestListener> listener) override;
  void cancel(uint64_t handle) override;
  void pause(uint64_t handle, bool paused) override;
  int64_t cancel_id(const std::string& request_id) override;
  void drain() override;
  bool idle() const override { return live_ == 0; }
  bool wait_idle(std::chrono::milliseconds limit) override;
  void reset_prefix_cache() override;
  EngineStats stats() const override;
  std::vector<RequestStatus> requests() const override;
  std::optional<Error> failure() const override;
  const EngineOptions& options() const override { return options_; }

 private:
  struct Command {
    enum Kind { kAdd, kCancel, kPause, kResume, kStopAnswer, kResetCache } kind;
    uint64_t handle = 0;
    int index = 0;
    std::unique_ptr<RequestState> request{};
    std::string reason{};
  };

  void send(Command command);
  void loop();
  void take_commands();
  void apply(Command& command);
  void expire(EngineClock::time_point now);
  void note_scheduled(EngineClock::time_point now);
  // `period` as in EngineObserver::on_step.
  void commit(EngineClock::time_point now, double seconds, double period);
  void commit_tokens(const StepItem& item, ItemResult& result, EngineClock::time_point now);
  void commit_prompt_logprobs(const StepItem& item, ItemResult& result);
  void fail_all(const Error& error, EngineClock::time_point now);
  void finish_answer(Sequence& sequence, FinishReason reason, EngineClock::time_point now);
  void end(RequestState& request, FinishReason reason, std::optional<Error> error, EngineClock::time_point now);
  void publish();
  void update_stats();

  const EngineParts parts_;
  const EngineOptions options_;
  EngineObserver* const observer_;
  std::unique_ptr<StepRunner> owned_runner_;

  // Engine thread; readers of other threads lock state_mutex_, which the engine thread holds but while it waits.
  mutable std::mutex state_mutex_;
  Scheduler scheduler_;
  SpeculationController controller_;
  StepPlan plan_;
  StepResults results_;
  OutputBatch batch_;
  std::vector<RequestState*> expired_;
  std::vector<Command> taken_;

  mutable std::mutex stats_mutex_;
  std::optional<Error> failure_;
  EngineStats stats_, shown_;

  mutable std::mutex command_mutex_;
  std::condition_variable command_ready_;
  std::vector<Command> commands_;
  bool stop_ = false;

  std::atomic<uint64_t> next_handle_{1};
  std::atomic<int64_t> queued_{0};  // submitted, never scheduled
  std::atomic<int64_t> live_{0};    // submitted, on_end not yet handed to the output thread
  std::atomic<bool> draining_{false};
  std::atomic<bool> failed_{false};  // failure_ is set, for good
  std::mutex idle_mutex_;
  std::condition_variable idle_;

  OutputThread output_;
  std::thread thread_;
};

}  // namespace dg
