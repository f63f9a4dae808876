#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <chrono>

namespace dg {
namespace {

Topology cores(int n) {
  Topology t;
  t.nodes.push_back({});
  for (int i = 0; i < n; i++) t.cores.push_back({0, {0}});
  return t;
}

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads, cores(2), false);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000, 12345})
      for (int64_t grain : {1, 3, 64, 100000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        std::atomic<bool> bad{false};
        pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int worker) {
          if (worker < 0 || worker >= threads || begin >= end) bad = true;
          if (n > grain && threads > 1 && end - begin > grain) bad = true;
          for (int64_t i = begin; i < end; i++) seen[static_cast<size_t>(i)]++;
        });
        EXPECT_FALSE(bad);
        for (auto& count : seen) ASSERT_EQ(count.load(), 1) << "n " << n << " grain " << grain << " threads " << threads;
      }
  }
}

// What a loop wrote, plainly, is visible afterwards; workers never share a number at the same time.
TEST(ThreadPool, ManyShortLoops) {
  ThreadPool pool(4, cores(4), false);
  std::vector<int64_t> values(256, 0);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<bool> shared{false};
  for (int round = 0; round < 2000; round++)
    pool.parallel_for(256, 8, [&](int64_t begin, int64_t end, int worker) {
      if (busy[static_cast<size_t>(worker)].exchange(1)) shared = true;
      for (int64_t i = begin; i < end; i++) values[static_cast<size_t>(i)] += i;
      busy[static_cast<size_t>(worker)] = 0;
    });
  EXPECT_FALSE(shared);
  for (int64_t i = 0; i < 256; i++) ASSERT_EQ(values[static_cast<size_t>(i)], 2000 * i);
}

TEST(ThreadPool, WorksAfterParking) {
  ThreadPool pool(3, cores(3), false);
  for (int round = 0; round < 20; round++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than the spin
    std::atomic<int64_t> sum{0};
    pool.parallel_for(100, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) sum += i;
    });
    ASSERT_EQ(sum.load(), 4950);
  }
}

TEST(ThreadPool, IdleWorkersTakeOverWork) {
  ThreadPool pool(2, cores(2), false);
  // The first chunk waits until all others are done: they must be run by the other worker, whoever's share they are.
  std::atomic<int> done{0};
  pool.parallel_for(50, 1, [&](int64_t begin, int64_t, int) {
    if (begin == 0) {
      auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      while (done < 49 && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
      EXPECT_EQ(done.load(), 49);
    } else {
      done++;
    }
  });
}

TEST(ThreadPool, NestedLoopsRunInline) {
  ThreadPool pool(3, cores(3), false);
  std::atomic<int64_t> sum{0};
  std::atomic<bool> bad{false};
  pool.parallel_for(20, 1, [&](int64_t, int64_t, int worker) {
    pool.parallel_for(10, 1, [&](int64_t begin, int64_t end, int inner) {
      if (inner != worker || begin != 0 || end != 10) bad = true;
      for (int64_t i = begin; i < end; i++) sum += i;
    });
  });
  EXPECT_FALSE(bad);
  EXPECT_EQ(sum.load(), 20 * 45);
}

TEST(ThreadPool, CallersTakeTurns) {
  ThreadPool pool(2, cores(2), false);
  int64_t unguarded = 0;  // a race between two loops would lose increments (and TSan would say so)
  auto caller = [&] {
    for (int round = 0; round < 300; round++)
      pool.parallel_for(1, 1, [&](int64_t, int64_t, int worker) {
        EXPECT_EQ(worker, 0);
        unguarded++;
      });
  };
  std::thread other(caller);
  caller();
  other.join();
  EXPECT_EQ(unguarded, 600);
}

TEST(ThreadPool, AnotherPoolInsideALoop) {
  ThreadPool outer(2, cores(2), false), inner(2, cores(2), false);
  std::atomic<int64_t> sum{0};
  outer.parallel_for(8, 1, [&](int64_t, int64_t, int worker) {
    inner.parallel_for(16, 1, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
    outer.parallel_for(1, 1, [&](int64_t, int64_t, int again) { EXPECT_EQ(again, worker); });
  });
  EXPECT_EQ(sum.load(), 8 * 16);
}

TEST(ThreadPool, DefaultsToTheCoresWithinTheQuota) {
  Topology t = cores(6);
  EXPECT_EQ(ThreadPool(0, t, false).threads(), 6);
  t.cpu_quota = 2.5;
  EXPECT_EQ(ThreadPool(0, t, false).threads(), 3);
  EXPECT_EQ(ThreadPool(4, t, false).threads(), 4);
}

TEST(ThreadPool, PinsItsWorkers) {
  Topology t = Topology::load();
  ThreadPool pool(0, t, true);
  std::thread([&] {
    pool.pin_caller();
    std::vector<int> cpu(static_cast<size_t>(pool.threads()), -1);
    pool.parallel_for(1000, 1, [&](int64_t, int64_t, int worker) { cpu[static_cast<size_t>(worker)] = sched_getcpu(); });
    for (size_t i = 0; i < cpu.size(); i++) {
      if (cpu[i] < 0) continue;  // this worker came too late for a chunk
      EXPECT_EQ(std::count(t.cores[i].cpus.begin(), t.cores[i].cpus.end(), cpu[i]), 1) << "worker " << i << " on " << cpu[i];
    }
  }).join();
}

}  // namespace
}  // namespace dg
