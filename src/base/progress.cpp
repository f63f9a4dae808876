#include "base/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>

namespace dg {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int terminal_columns(int fd) {
  winsize size{};
  return ::ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

struct Unit {
  const char* name;
  double bytes;
};

Unit unit_for(uint64_t bytes) {
  if (bytes >= 1'000'000'000'000) return {"TB", 1e12};
  if (bytes >= 1'000'000'000) return {"GB", 1e9};
  if (bytes >= 1'000'000) return {"MB", 1e6};
  if (bytes >= 1'000) return {"kB", 1e3};
  return {"B", 1};
}

std::string bytes_text(uint64_t bytes) {
  Unit unit = unit_for(bytes);
  return fmt::format("{:.{}f} {}", static_cast<double>(bytes) / unit.bytes, unit.bytes > 1 ? 1 : 0, unit.name);
}

std::string time_left(double seconds) {
  if (!(seconds >= 0) || seconds >= 100 * 3600.0) return "--:--";
  auto s = static_cast<int64_t>(std::ceil(seconds));
  return s < 3600 ? fmt::format("{}:{:02}", s / 60, s % 60) : fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

// Columns that UTF-8 text takes: one a character, two from the Hangul block (U+1100) on, which is where the wide scripts
// lie. Good enough for fitting a line; narrow symbols above it only make the bar a little shorter.
int display_columns(std::string_view text) {
  int columns = 0;
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    if ((byte & 0xC0) != 0x80) columns += byte >= 0xE1 ? 2 : 1;
  }
  return columns;
}

}  // namespace

std::string progress_line(std::string_view label, uint64_t done_bytes, uint64_t total_bytes, double bytes_per_s, int columns,
                          std::string_view counted) {
  uint64_t shown = std::min(done_bytes, total_bytes);
  double fraction = total_bytes == 0 ? 1.0 : static_cast<double>(shown) / static_cast<double>(total_bytes);
  Unit unit = unit_for(total_bytes);
  double left_s = bytes_per_s > 0 ? static_cast<double>(total_bytes - shown) / bytes_per_s : shown == total_bytes ? 0.0 : -1.0;
  int digits = unit.bytes > 1 ? 1 : 0;
  // Rounded down: 100% means that all is there.
  const int percent = static_cast<int>(std::floor(fraction * 100));
  std::string figures =
      counted.empty()
          ? fmt::format("{:3}%  {:.{}f}/{:.{}f} {}  {:.2f} GB/s  ETA {}", percent, static_cast<double>(shown) / unit.bytes, digits,
                        static_cast<double>(total_bytes) / unit.bytes, digits, unit.name, bytes_per_s / 1e9, time_left(left_s))
          : fmt::format("{:3}%  {}/{} {}  {:.1f}/s  ETA {}", percent, shown, total_bytes, counted, bytes_per_s, time_left(left_s));
  // "label [bar]  figures", and the last column stays free: writing there wraps on some terminals.
  int bar = std::min(columns - display_columns(label) - static_cast<int>(figures.size()) - 6, 40);
  if (bar < 4) return fmt::format("{}  {}", label, figures);
  auto filled = static_cast<size_t>(std::floor(fraction * bar));
  std::string cells(filled, '=');
  if (cells.size() < static_cast<size_t>(bar)) cells += '>';
  cells.resize(static_cast<size_t>(bar), ' ');
  return fmt::format("{} [{}]  {}", label, cells, figures);
}

std::string progress_summary(std::string_view label, uint64_t done_bytes, double elapsed_s, std::string_view counted) {
  double rate = elapsed_s > 0 ? static_cast<double>(done_bytes) / elapsed_s : 0;
  if (!counted.empty()) return fmt::format("{}: {} {} in {:.1f} s ({:.1f}/s)", label, done_bytes, counted, elapsed_s, rate);
  return fmt::format("{}: {} in {:.1f} s ({:.2f} GB/s)", label, bytes_text(done_bytes), elapsed_s, rate / 1e9);
}

Progress::Progress(std::string label, uint64_t total_bytes, ProgressOptions options)
    : label_(std::move(label)),
      total_bytes_(total_bytes),
      options_(options),
      terminal_(!options.silent && (options.terminal ? *options.terminal : ::isatty(options.fd) == 1)),
      start_ns_(now_ns()),
      next_redraw_ns_(start_ns_),
      last_ns_(start_ns_) {}

Progress::~Progress() {
  std::lock_guard lock(drawing_);
  if (line_shown_ && !finished_) print("\r\x1b[K");
}

void Progress::add(uint64_t bytes) {
  done_bytes_.fetch_add(bytes, std::memory_order_relaxed);
  if (!terminal_) return;
  int64_t now = now_ns();
  if (now >= next_redraw_ns_.load(std::memory_order_relaxed)) redraw(now);
}

void Progress::redraw(int64_t now) {
  std::unique_lock lock(drawing_, std::try_to_lock);
  if (!lock.owns_lock() || finished_ || now < next_redraw_ns_.load(std::memory_order_relaxed)) return;
  next_redraw_ns_.store(now + static_cast<int64_t>(options_.redraw_interval_s * 1e9), std::memory_order_relaxed);
  uint64_t done = done_bytes();
  double passed_s = static_cast<double>(now - last_ns_) / 1e9;
  double elapsed_s = static_cast<double>(now - start_ns_) / 1e9;
  if (passed_s > 0) {
    constexpr double kMemory_s = 5;  // long enough to calm the ETA, short enough to show a disk that slows down
    double latest = static_cast<double>(done - last_bytes_) / passed_s;
    double average = static_cast<double>(done) / elapsed_s;
    double weight = 1 - std::exp(-passed_s / kMemory_s);
    bytes_per_s_ = elapsed_s < kMemory_s ? average : bytes_per_s_ + weight * (latest - bytes_per_s_);
    last_ns_ = now;
    last_bytes_ = done;
  }
  int columns = options_.columns > 0 ? options_.columns : terminal_columns(options_.fd);
  print("\r" + progress_line(label_, done, total_bytes_, bytes_per_s_, columns, options_.unit) + "\x1b[K");
  line_shown_ = true;
}

void Progress::finish() {
  std::lock_guard lock(drawing_);
  if (finished_) return;
  finished_ = true;
  if (options_.silent) return;
  std::string summary = progress_summary(label_, done_bytes(), static_cast<double>(now_ns() - start_ns_) / 1e9, options_.unit);
  print(terminal_ ? "\r" + summary + "\x1b[K\n" : summary + "\n");
}

// One write a line, so that threads and processes that share the terminal do not mix within it. A terminal that went away
// is no reason to fail.
void Progress::print(std::string_view text) const {
  while (!text.empty()) {
    ssize_t n = ::write(options_.fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    text.remove_prefix(static_cast<size_t>(n));
  }
}

}  // namespace dg
