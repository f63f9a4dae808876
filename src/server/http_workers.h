// HttpWorkers: threads that run handlers, behind a bounded queue.
#pragma once
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dg {

class HttpWorkers {
 public:
  HttpWorkers(int threads, size_t max_queued);
  ~HttpWorkers() { stop(); }
  // False when the queue is full or stopped; the task is then not touched.
  bool submit(std::function<void()>& task);
  void stop();  // forgets what is queued, waits for what runs

 private:
  void run();
  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

// Signals of the process (SIGTERM, SIGHUP, ...) go to other threads, and a write to a closed socket is an error, no signal.
void block_signals_in_this_thread();

}  // namespace dg
