// StepThread: runs step plans on a thread of its own, one at a time, so that the engine thread can publish meanwhile.
#pragma once
#include <semaphore>
#include <thread>

#include "engine/step.h"

namespace dg {

class StepThread {
 public:
  explicit StepThread(StepRunner& runner) : runner_(runner), thread_([this] { loop(); }) {}
  ~StepThread() {
    plan_ = nullptr;
    launched_.release();
    thread_.join();
  }
  // Plan and results stay untouched by the caller until wait() returns.
  void launch(const StepPlan& plan, StepResults& results) {
    plan_ = &plan, results_ = &results;
    launched_.release();
  }
  void wait() { finished_.acquire(); }

 private:
  void loop() {
    while (true) {
      launched_.acquire();
      if (!plan_) return;
      runner_.run(*plan_, *results_);
      finished_.release();
    }
  }

  StepRunner& runner_;
  const StepPlan* plan_ = nullptr;
  StepResults* results_ = nullptr;
  std::binary_semaphore launched_{0}, finished_{0};
  std::thread thread_;
};

}  // namespace dg
