#include "server/http_workers.h"

#include <signal.h>

#include <initializer_list>
#include <utility>

namespace dg {

void block_signals_in_this_thread() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2}) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

HttpWorkers::HttpWorkers(int threads, size_t max_queued) : max_queued_(max_queued) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

bool HttpWorkers::submit(std::function<void()>& task) {
  {
    std::lock_guard lock(mutex_);
    if (stop_ || queue_.size() >= max_queued_) return false;
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void HttpWorkers::stop() {
  std::deque<std::function<void()>> forgotten;  // destroyed without the lock: responders end there
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    forgotten.swap(queue_);
  }
  wake_.notify_all();
  forgotten.clear();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void HttpWorkers::run() {
  block_signals_in_this_thread();
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (queue_.empty()) return;
    std::function<void()> task = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
}

}  // namespace dg
