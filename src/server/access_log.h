// AccessLog: one JSON object per line and request, written by a thread of its own behind a bounded queue. A full queue or a
// file that cannot be written never holds a request up: lines are dropped, counted, and the count is written as a line of its
// own ({"time", "dropped"}) as soon as the file takes lines again.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "base/result.h"
#include "server/http.h"

namespace dg {

struct AccessRecord {
  std::chrono::system_clock::time_point time;  // when the request had been received
  std::string request_id, trace_id, peer, tenant, key_name, method, path;
  int status = 0;  // 0: the client went away before an answer
  bool client_closed = false;
  uint64_t bytes_in = 0, bytes_out = 0;
  double duration_s = 0;
  AccessFields fields;
};

std::string access_line(const AccessRecord& record);  // JSON, without the line break

class AccessLog {
 public:
  // `path` "-": stderr. The error names the file.
  static Result<std::unique_ptr<AccessLog>> open(const std::string& path, size_t max_queued = 8192);
  ~AccessLog();  // writes what is queued

  void write(AccessRecord record);  // any thread, never blocks on the file
  void reopen();                    // any thread: after the file was renamed (log rotation)
  uint64_t dropped() const;         // lines, since the start
  void flush();                     // waits until what was queued before is written

 private:
  AccessLog(std::string path, int fd, size_t max_queued);
  void run();
  void open_again();
  bool write_all(const std::string& text);

  const std::string path_;
  const size_t max_queued_;
  int fd_;  // writer thread only

  mutable std::mutex mutex_;
  std::condition_variable wake_, written_;
  std::deque<AccessRecord> queue_;
  uint64_t dropped_ = 0, unreported_ = 0;
  bool reopen_ = false, stop_ = false, busy_ = false;
  std::chrono::steady_clock::time_point next_warning_{};
  std::thread thread_;
};

}  // namespace dg
