#include "base/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <vector>

namespace dg {
namespace {

class Pipe {
 public:
  Pipe() { ok_ = ::pipe(fds_) == 0; }
  ~Pipe() {
    ::close(fds_[0]);
    ::close(fds_[1]);
  }
  int in() const { return fds_[1]; }
  std::string drain() {
    std::string out(1 << 16, '\0');
    ::write(fds_[1], "", ok_ ? 1 : 0) == 1 ? void() : std::abort();  // so that the read below never waits
    ssize_t n = ::read(fds_[0], out.data(), out.size());
    out.resize(n > 0 ? static_cast<size_t>(n) - 1 : 0);
    return out;
  }

 private:
  int fds_[2] = {-1, -1};
  bool ok_ = false;
};

TEST(Progress, CountsThings) {
  EXPECT_EQ(progress_line("bench", 30, 120, 4.5, 40, "requests"), "bench   25%  30/120 requests  4.5/s  ETA 0:20");
  EXPECT_EQ(progress_summary("bench", 120, 30, "requests"), "bench: 120 requests in 30.0 s (4.0/s)");
}

TEST(ProgressLine, ShowsFiguresAndBar) {
  EXPECT_EQ(progress_line("loading", 289'100'000'000, 688'600'000'000, 7.5e9, 80),
            "loading [==========>               ]   41%  289.1/688.6 GB  7.50 GB/s  ETA 0:54");
  EXPECT_EQ(progress_line("loading", 0, 100, 0, 0), "loading    0%  0/100 B  0.00 GB/s  ETA --:--");
  EXPECT_EQ(progress_line("x", 3'000'000, 3'000'000, 1e6, 20), "x  100%  3.0/3.0 MB  0.00 GB/s  ETA 0:00");
  EXPECT_EQ(progress_line("x", 999, 1000, 1, 20), "x   99%  1.0/1.0 kB  0.00 GB/s  ETA 0:01");  // 100% only when all is there
  EXPECT_EQ(progress_line("x", 0, 7'384'000'000'000, 1e9, 20), "x    0%  0.0/7.4 TB  1.00 GB/s  ETA 2:03:04");
}

TEST(ProgressLine, FitsTheTerminal) {
  for (std::string_view label : {"loading weights", "加载权重", ""})
    for (int columns : {60, 79, 80, 200}) {
      std::string line = progress_line(label, 1'000'000'000, 4'000'000'000, 1e9, columns);
      int wide = label == "加载权重" ? 4 : 0;  // three bytes, two columns each
      EXPECT_LT(static_cast<int>(line.size()) - wide, columns) << line;
      EXPECT_EQ(line.find(']') != std::string::npos, columns >= 79 || label.empty() || wide > 0) << line;
    }
}

TEST(ProgressLine, SurvivesOddNumbers) {
  EXPECT_EQ(progress_line("x", 5, 0, 1, 0), "x  100%  0/0 B  0.00 GB/s  ETA 0:00");
  EXPECT_EQ(progress_line("x", 11, 10, 1, 0), "x  100%  10/10 B  0.00 GB/s  ETA 0:00");
  EXPECT_NE(progress_line("x", 1, UINT64_MAX, 1e-9, 80).find("ETA --:--"), std::string::npos);
}

TEST(ProgressSummary, SaysHowFast) {
  EXPECT_EQ(progress_summary("loading", 688'600'000'000, 92.06), "loading: 688.6 GB in 92.1 s (7.48 GB/s)");
  EXPECT_EQ(progress_summary("loading", 12, 0), "loading: 12 B in 0.0 s (0.00 GB/s)");
}

TEST(Progress, WritesOneLineToALogFile) {
  Pipe pipe;
  {
    Progress progress("loading", 1000, {.fd = pipe.in()});
    progress.add(400);
    progress.add(600);
    EXPECT_EQ(pipe.drain(), "");
    progress.finish();
    progress.finish();
  }
  EXPECT_THAT(pipe.drain(), testing::MatchesRegex("loading: 1.0 kB in [0-9.]+ s \\([0-9.]+ GB/s\\)\n"));
}

TEST(Progress, RedrawsOneLineOnATerminal) {
  Pipe pipe;
  Progress progress("loading", 1000, {.fd = pipe.in(), .terminal = true, .columns = 70, .redraw_interval_s = 0});
  progress.add(250);
  std::string line = pipe.drain();
  EXPECT_EQ(line.substr(0, 10), "\rloading [") << line;
  EXPECT_NE(line.find(" 25%  0.2/1.0 kB"), std::string::npos) << line;
  EXPECT_TRUE(line.ends_with("\x1b[K")) << line;
  EXPECT_EQ(line.find('\n'), std::string::npos);
  progress.finish();
  line = pipe.drain();
  EXPECT_EQ(line.substr(0, 10), "\rloading: ");
  EXPECT_TRUE(line.ends_with("\x1b[K\n")) << line;
}

TEST(Progress, LimitsRedraws) {
  Pipe pipe;
  Progress progress("loading", 1'000'000, {.fd = pipe.in(), .terminal = true, .columns = 70, .redraw_interval_s = 3600});
  for (int i = 0; i < 1000; i++) progress.add(1);
  std::string all = pipe.drain();
  EXPECT_EQ(std::count(all.begin(), all.end(), '\r'), 1);
}

TEST(Progress, AFailedTransferLeavesACleanLine) {
  Pipe pipe;
  { Progress progress("loading", 10, {.fd = pipe.in(), .terminal = false}); }
  EXPECT_EQ(pipe.drain(), "");
  {
    Progress progress("loading", 10, {.fd = pipe.in(), .terminal = true, .columns = 70});
    progress.add(1);
    pipe.drain();
  }
  EXPECT_EQ(pipe.drain(), "\r\x1b[K");
}

TEST(Progress, CanBeSilent) {
  Pipe pipe;
  Progress progress("loading", 10, {.silent = true, .fd = pipe.in(), .terminal = true, .redraw_interval_s = 0});
  progress.add(10);
  progress.finish();
  EXPECT_EQ(pipe.drain(), "");
  EXPECT_EQ(progress.done_bytes(), 10u);
}

TEST(Progress, AddsFromManyThreads) {
  Pipe pipe;
  Progress progress("loading", 40'000, {.fd = pipe.in(), .terminal = true, .columns = 70, .redraw_interval_s = 0.005});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++)
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; i++) progress.add(1);
    });
  for (std::thread& thread : threads) thread.join();
  progress.finish();
  EXPECT_EQ(progress.done_bytes(), 40'000u);
  EXPECT_NE(pipe.drain().find("loading: 40.0 kB in "), std::string::npos);
}

}  // namespace
}  // namespace dg
