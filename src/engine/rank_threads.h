// RankThreads: runs a function for every rank at once, rank 0 on the calling thread and each other one on a thread of its own. The
// threads spin shortly for the next call, as the passes of one step follow each other, and then park: an idle engine costs nothing.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/result.h"

namespace dg {

class RankThreads {
 public:
  // The error: the system gives no thread.
  static Result<std::unique_ptr<RankThreads>> create(int ranks);
  ~RankThreads();
  RankThreads(const RankThreads&) = delete;
  RankThreads& operator=(const RankThreads&) = delete;

  // Calls fn(rank) for all ranks and returns when all are done. fn must not throw. One caller at a time.
  void run(const std::function<void(int rank)>& fn);

 private:
  RankThreads() = default;
  void work(int rank);

  const std::function<void(int)>* fn_ = nullptr;  // of the call in progress
  std::atomic<uint64_t> call_{0};                 // counts them
  std::atomic<int> busy_{0};                      // threads that have not finished it
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable called_, finished_;
  std::vector<std::thread> threads_;
};

}  // namespace dg
