#include "base/thread_pool.h"

#include <algorithm>
#include <chrono>
#include <system_error>

namespace dg {
namespace {

constexpr uint64_t kClosed = uint64_t{1} << 31;
constexpr uint64_t kJoinedMask = kClosed - 1;
constexpr int kMaxThreads = 4096;
constexpr auto kSpin = std::chrono::microseconds(30);

// Worker number of this thread in the pool whose loop it is running; nested loops run inline.
thread_local const void* current_pool = nullptr;
thread_local int current_worker = 0;

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// Spins until `done` or the spin time is over; true when done.
template <class F>
bool spin_until(F done) {
  for (int i = 0; i < 64; i++) {
    if (done()) return true;
    cpu_relax();
  }
  auto limit = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; i++) {
      if (done()) return true;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < limit);
  return done();
}

}  // namespace

ThreadPool::ThreadPool(int threads, const Topology& topology, bool pin) : state_(kClosed) {
  int n = std::clamp(threads > 0 ? threads : topology.worker_count(), 1, kMaxThreads);
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(n));
  cpus_.resize(static_cast<size_t>(n));
  // More threads than cores: they would share cores, so leave them to the system.
  if (pin && n <= static_cast<int>(topology.cores.size()))
    for (size_t i = 0; i < cpus_.size(); i++) cpus_[i] = topology.cores[i].cpus;
  workers_.reserve(static_cast<size_t>(n) - 1);
  for (int i = 1; i < n; i++) {
    try {
      workers_.emplace_back([this, i] { worker_loop(i); });
    } catch (const std::system_error&) {
      break;  // out of threads: go on with those there are
    }
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  { std::lock_guard lock(park_mutex_); }
  work_ready_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::pin_caller() const { pin_current_thread(cpus_[0]); }

void ThreadPool::work(int worker) {
  const int count = threads();
  for (int k = 0; k < count; k++) {
    Share& share = shares_[static_cast<size_t>((worker + k) % count)];
    while (share.next.load(std::memory_order_relaxed) < share.end) {
      int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= share.end) break;
      body_(context_, begin, std::min(begin + grain_, share.end), worker);
    }
  }
}

void ThreadPool::run(int64_t n, int64_t grain, Body body, void* context) {
  if (n <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (current_pool == this) return body(context, 0, n, current_worker);
  // A pool used inside a loop of another pool: this thread is worker 0 here and gets its old number back afterwards.
  const void* outer_pool = current_pool;
  const int outer_worker = current_worker;
  std::lock_guard turn(caller_mutex_);  // also keeps worker 0 unique for inline loops
  current_pool = this, current_worker = 0;
  if (n <= grain || workers_.empty()) {
    body(context, 0, n, 0);
    current_pool = outer_pool, current_worker = outer_worker;
    return;
  }
  const int64_t count = threads(), chunks = (n + grain - 1) / grain;
  for (int64_t i = 0; i < count; i++) {
    Share& share = shares_[static_cast<size_t>(i)];
    share.next.store(std::min(n, chunks * i / count * grain), std::memory_order_relaxed);
    share.end = std::min(n, chunks * (i + 1) / count * grain);
  }
  body_ = body, context_ = context, grain_ = grain;
  uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
  state_.store(generation << 32);  // opens the loop
  if (parked_.load() > 0) {
    { std::lock_guard lock(park_mutex_); }
    work_ready_.notify_all();
  }
  work(0);
  // Every chunk is taken. Whoever has not joined by now need not: close, and wait for those that did.
  state_.fetch_or(kClosed);
  auto left = [this] { return (state_.load() & kJoinedMask) == 0; };
  if (!spin_until(left)) {
    std::unique_lock lock(park_mutex_);
    caller_waits_.store(true);
    work_done_.wait(lock, left);
    caller_waits_.store(false);
  }
  current_pool = outer_pool, current_worker = outer_worker;
}

void ThreadPool::worker_loop(int worker) {
  if (!cpus_[static_cast<size_t>(worker)].empty()) pin_current_thread(cpus_[static_cast<size_t>(worker)]);
  current_pool = this, current_worker = worker;
  uint64_t seen = 0;  // generation of the loop last joined
  auto ready = [&] {
    uint64_t s = state_.load();
    return stop_.load(std::memory_order_relaxed) || ((s & kClosed) == 0 && (s >> 32) != seen);
  };
  while (true) {
    if (!spin_until(ready)) {
      std::unique_lock lock(park_mutex_);
      parked_.fetch_add(1);
      work_ready_.wait(lock, ready);
      parked_.fetch_sub(1);
    }
    if (stop_.load()) return;
    uint64_t s = state_.load();
    if ((s & kClosed) != 0 || (s >> 32) == seen || !state_.compare_exchange_strong(s, s + 1)) continue;
    seen = s >> 32;
    work(worker);
    uint64_t before = state_.fetch_sub(1);
    if ((before & kClosed) != 0 && (before & kJoinedMask) == 1 && caller_waits_.load()) {
      { std::lock_guard lock(park_mutex_); }
      work_done_.notify_one();
    }
  }
}

}  // namespace dg
