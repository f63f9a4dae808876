#include "server/access_log.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>
#include <utility>

#include "base/json.h"
#include "base/log.h"

namespace dg {
namespace {

// RFC 3339 in UTC with milliseconds.
std::string rfc3339(std::chrono::system_clock::time_point time) {
  const int64_t ms = std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
  const std::time_t seconds = static_cast<std::time_t>(ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday, parts.tm_hour,
                     parts.tm_min, parts.tm_sec, ms % 1000);
}

double rounded_ms(double seconds) { return std::round(seconds * 1e6) / 1e3; }

int open_file(const std::string& path) {
  if (path == "-") return ::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
  return ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
}

}  // namespace

std::string access_line(const AccessRecord& record) {
  Json line;
  line["time"] = rfc3339(record.time);
  line["request_id"] = record.request_id;
  if (!record.trace_id.empty()) line["trace_id"] = record.trace_id;
  line["peer"] = record.peer;
  if (!record.tenant.empty()) line["tenant"] = record.tenant;
  if (!record.key_name.empty()) line["key"] = record.key_name;
  line["method"] = record.method;
  line["path"] = record.path;
  line["status"] = record.status;
  if (record.client_closed) line["client_closed"] = true;
  line["bytes_in"] = record.bytes_in;
  line["bytes_out"] = record.bytes_out;
  line["duration_ms"] = rounded_ms(record.duration_s);
  const AccessFields& fields = record.fields;
  if (fields.ttft_s >= 0) line["ttft_ms"] = rounded_ms(fields.ttft_s);
  if (!fields.model.empty()) line["model"] = fields.model;
  if (fields.prompt_tokens >= 0) line["prompt_tokens"] = fields.prompt_tokens;
  if (fields.cached_tokens >= 0) line["cached_tokens"] = fields.cached_tokens;
  if (fields.generated_tokens >= 0) line["generated_tokens"] = fields.generated_tokens;
  if (!fields.finish.empty()) line["finish"] = fields.finish;
  // A path may hold any bytes after percent-decoding.
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<std::unique_ptr<AccessLog>> AccessLog::open(const std::string& path, size_t max_queued) {
  const int fd = open_file(path);
  if (fd < 0) {
    return io_error(
        fmt::format("--access-log {}: cannot open for writing: {}; give a file in a writable folder, or '-'", path, std::strerror(errno)));
  }
  return std::unique_ptr<AccessLog>(new AccessLog(path, fd, max_queued));
}

AccessLog::AccessLog(std::string path, int fd, size_t max_queued) : path_(std::move(path)), max_queued_(max_queued), fd_(fd) {
  thread_ = std::thread([this] { run(); });
}

AccessLog::~AccessLog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
  if (fd_ >= 0) ::close(fd_);
}

void AccessLog::write(AccessRecord record) {
  {
    std::lock_guard lock(mutex_);
    if (queue_.size() >= max_queued_ || stop_) {
      ++dropped_;
      ++unreported_;
      return;
    }
    queue_.push_back(std::move(record));
    if (queue_.size() > 1) return;  // the writer has been woken
  }
  wake_.notify_one();
}

void AccessLog::reopen() {
  {
    std::lock_guard lock(mutex_);
    reopen_ = true;
  }
  wake_.notify_one();
}

uint64_t AccessLog::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

void AccessLog::flush() {
  std::unique_lock lock(mutex_);
  written_.wait(lock, [this] { return queue_.empty() && !busy_ && !reopen_; });
}

void AccessLog::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stop_ || reopen_ || !queue_.empty(); });
    if (stop_ && queue_.empty()) return;
    const bool again = std::exchange(reopen_, false);
    std::deque<AccessRecord> batch;
    batch.swap(queue_);
    const uint64_t lost = unreported_;
    busy_ = true;
    lock.unlock();

    if (again) open_again();
    std::string text;
    if (lost > 0) {
      text = fmt::format("{{\"time\":\"{}\",\"dropped\":{}}}\n", rfc3339(std::chrono::system_clock::now()), lost);
    }
    for (const AccessRecord& record : batch) text += access_line(record) + "\n";
    const bool written = write_all(text);

    lock.lock();
    if (written) {
      unreported_ -= lost;
    } else {
      dropped_ += batch.size();
      unreported_ += batch.size();
    }
    busy_ = false;
    written_.notify_all();
  }
}

void AccessLog::open_again() {
  const int fd = open_file(path_);
  if (fd < 0) {
    log_warning(fmt::format("access log {}: cannot reopen: {}; lines go on to the old file", path_, std::strerror(errno)));
    return;
  }
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

bool AccessLog::write_all(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const ssize_t written = ::write(fd_, text.data() + at, text.size() - at);
    if (written > 0) {
      at += static_cast<size_t>(written);
    } else if (errno != EINTR) {
      const auto now = std::chrono::steady_clock::now();
      if (now >= next_warning_) {  // a full disk fails every line: one warning a minute is enough
        next_warning_ = now + std::chrono::minutes(1);
        log_warning(fmt::format("access log {}: cannot write: {}; lines are dropped and counted", path_, std::strerror(errno)));
      }
      return false;
    }
  }
  return true;
}

}  // namespace dg
