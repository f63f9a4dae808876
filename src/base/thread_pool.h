// ThreadPool: fork-join over an index range for the CPU kernels. The caller works too (as worker 0); the other workers
// spin a few tens of microseconds for the next loop and then park, so an idle engine costs nothing and a machine shared
// with others is not starved. A loop costs no allocation.
//
// Each worker starts on its own contiguous share of the range (the same one every time, so its memory node keeps it) and
// takes chunks from it; when it is done it helps the others. A worker that is not scheduled in time is not waited for:
// the caller closes the loop and waits only for those that joined. Which worker runs which chunk is therefore not
// deterministic: a kernel's numbers must not depend on it.
//
// Any thread may call; concurrent calls take turns. A call from inside a loop runs inline on the same worker.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include "base/topology.h"

namespace dg {

class ThreadPool {
 public:
  // `threads` 0: topology.worker_count(). `pin` binds worker i to core i of the topology; the caller stays free unless it
  // calls pin_caller(). Fewer threads are started when the system refuses to create them.
  ThreadPool(int threads, const Topology& topology, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  void pin_caller() const;  // binds the calling thread to the core of worker 0

  // Calls fn(begin, end, worker) on disjoint pieces covering [0, n), each at most about `grain` long, and returns when all
  // are done. Runs fn(0, n, worker) inline when n <= grain, with one thread, or inside another loop. fn must not throw.
  template <class F>
  void parallel_for(int64_t n, int64_t grain, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    run(
        n, grain, [](void* f, int64_t begin, int64_t end, int worker) { (*static_cast<Fn*>(f))(begin, end, worker); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Body = void (*)(void* context, int64_t begin, int64_t end, int worker);
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void run(int64_t n, int64_t grain, Body body, void* context);
  void worker_loop(int worker);
  void work(int worker);

  // The loop in progress; written by the caller while no worker is joined.
  Body body_ = nullptr;
  void* context_ = nullptr;
  int64_t grain_ = 1;
  std::unique_ptr<Share[]> shares_;

  // Generation (high 32 bits), closed bit, number of joined workers. A worker joins a loop by adding one while it is open.
  std::atomic<uint64_t> state_;
  std::atomic<int> parked_{0};
  std::atomic<bool> caller_waits_{false}, stop_{false};
  std::mutex park_mutex_, caller_mutex_;
  std::condition_variable work_ready_, work_done_;
  std::vector<std::vector<int>> cpus_;  // per worker; empty when not pinned
  std::vector<std::thread> workers_;
};

}  // namespace dg
