#include "engine/rank_threads.h"

#include <fmt/core.h>

#include <chrono>
#include <system_error>

namespace dg {
namespace {

constexpr std::chrono::microseconds kSpin{50};

// Whether `ready` came true within kSpin.
template <class Ready>
bool spin(Ready ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (!ready()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

}  // namespace

Result<std::unique_ptr<RankThreads>> RankThreads::create(int ranks) {
  auto made = std::unique_ptr<RankThreads>(new RankThreads());
  try {
    for (int r = 1; r < ranks; r++) made->threads_.emplace_back([t = made.get(), r] { t->work(r); });
  } catch (const std::system_error& e) {
    return resource_error(fmt::format("no thread for rank {} of {}: {}", made->threads_.size() + 1, ranks, e.what()));
  }
  return made;
}

RankThreads::~RankThreads() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    call_++;
  }
  called_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void RankThreads::run(const std::function<void(int)>& fn) {
  if (threads_.empty()) return fn(0);
  {
    std::lock_guard lock(mutex_);
    fn_ = &fn;
    busy_ = static_cast<int>(threads_.size());
    call_++;
  }
  called_.notify_all();
  fn(0);
  auto done = [this] { return busy_.load(std::memory_order_acquire) == 0; };
  if (spin(done)) return;
  std::unique_lock lock(mutex_);
  finished_.wait(lock, done);
}

void RankThreads::work(int rank) {
  uint64_t seen = 0;
  while (true) {
    auto called = [&] { return call_.load(std::memory_order_acquire) != seen; };
    if (!spin(called)) {
      std::unique_lock lock(mutex_);
      called_.wait(lock, called);
    }
    if (stop_) return;
    seen++;  // the next call comes when this one is finished by all
    (*fn_)(rank);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      std::lock_guard lock(mutex_);
      finished_.notify_one();
    }
  }
}

}  // namespace dg
