// LocalGroup: the RankGroup of ranks that are threads of one process.
#pragma once
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "device/rank_group.h"

namespace dg {

class LocalGroup : public RankGroup {
 public:
  LocalGroup(int size, std::chrono::milliseconds timeout);

  int size() const override { return static_cast<int>(values_.size()); }
  std::chrono::milliseconds timeout() const override { return timeout_; }
  Result<std::vector<void*>> exchange(int rank, void* value) override;
  void fail(int rank, const Error& error) override;
  bool failed() const override { return failed_.load(std::memory_order_acquire); }
  // What the first failure was; ok() before one.
  Result<void> status() const;

 private:
  void fail_locked(Error error);

  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;
  std::condition_variable all_came_;
  std::vector<void*> values_;   // of the exchange in progress
  std::vector<bool> came_;      // to it
  std::vector<void*> results_;  // of the last complete one: the next cannot complete before all have left this one
  int arrived_ = 0;
  uint64_t round_ = 0;  // exchanges completed
  std::atomic<bool> failed_{false};
  std::unique_ptr<Error> error_;
};

}  // namespace dg
