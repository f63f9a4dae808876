// Progress of a long transfer, such as loading weights: on a terminal one line that redraws itself (bar, bytes, GB/s, time
// left); elsewhere (a log file, a service) nothing but one summary line at the end.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

namespace dg {

struct ProgressOptions {
  bool silent = false;           // print nothing at all
  int fd = 2;                    // stderr
  std::optional<bool> terminal;  // unset: what isatty(fd) says
  int columns = 0;               // width of the terminal; 0: ask it
  double redraw_interval_s = 0.1;
  std::string unit = "";  // what is counted, such as "requests"; "": bytes
};

// add() may be called from any number of threads; the other calls belong to the owner.
class Progress {
 public:
  Progress(std::string label, uint64_t total_bytes, ProgressOptions options = {});
  ~Progress();  // without finish(): removes the line from the terminal, so that an error message begins on a clean one
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void add(uint64_t bytes);
  void finish();  // prints the summary once; later calls do nothing
  uint64_t done_bytes() const { return done_bytes_.load(std::memory_order_relaxed); }

 private:
  void redraw(int64_t now_ns);
  void print(std::string_view text) const;

  const std::string label_;
  const uint64_t total_bytes_;
  const ProgressOptions options_;
  const bool terminal_;
  const int64_t start_ns_;
  std::atomic<uint64_t> done_bytes_{0};
  std::atomic<int64_t> next_redraw_ns_;

  std::mutex drawing_;  // guards the fields below
  int64_t last_ns_;
  uint64_t last_bytes_ = 0;
  double bytes_per_s_ = 0;  // smoothed over the last seconds
  bool line_shown_ = false;
  bool finished_ = false;
};

// The two texts, of plain numbers. Sizes are decimal (1 GB = 1e9 bytes) in the unit that suits the total.
// The line has at most `columns` columns where the figures allow; the bar takes what is left, or is left out.
// With a unit the numbers count things and are shown as they are.
std::string progress_line(std::string_view label, uint64_t done_bytes, uint64_t total_bytes, double bytes_per_s, int columns,
                          std::string_view unit = {});
std::string progress_summary(std::string_view label, uint64_t done_bytes, double elapsed_s, std::string_view unit = {});

}  // namespace dg
