// The protocol of kernels/collective.h with CPU threads as the threads of GPUs: sums, order, delays, replays of the same arguments,
// odd sizes, and a rank that never comes. Run under ThreadSanitizer it shows that flags order every access to data.
#include "backends/cuda/kernels/collective.h"

#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace dg::cuda {
namespace {

// One thread of a block. Data is plain memory, flags are atomics.
struct Cpu {
  struct Block {
    explicit Block(int threads) : barrier(threads), sums(static_cast<size_t>(threads)) {}
    std::barrier<> barrier;
    std::vector<float> sums;
    std::atomic<int> bad{0};
  };
  struct Row {  // of the blocks that share one
    explicit Row(int threads) : barrier(threads) {}
    std::barrier<> barrier;
    float parts[4] = {};
  };
  Block* in;
  Row* row = nullptr;
  int thread_index, thread_count, block_index, block_count, parts = 1;

  int thread() const { return thread_index; }
  int threads() const { return thread_count; }
  int block() const { return block_index; }
  int blocks() const { return block_count; }
  void sync() { in->barrier.arrive_and_wait(); }
  bool all(bool v) {
    if (!v) in->bad.fetch_add(1);
    sync();
    const bool good = in->bad.load() == 0;
    sync();
    return good;
  }
  void wait_for_previous() {}
  void start_next() {}
  static uint64_t acquire(const uint64_t* p) { return std::atomic_ref(*const_cast<uint64_t*>(p)).load(std::memory_order_acquire); }
  static void release(uint64_t* p, uint64_t v) { std::atomic_ref(*p).store(v, std::memory_order_release); }
  static void publish(uint32_t* p, uint32_t v) { std::atomic_ref(*p).store(v, std::memory_order_release); }
  template <class T>
  static T get(const T* p) {
    return std::atomic_ref(*const_cast<T*>(p)).load(std::memory_order_relaxed);
  }
  template <class T>
  static void set(T* p, T v) {
    std::atomic_ref(*p).store(v, std::memory_order_relaxed);
  }
  static uint32_t swap(uint32_t* p, uint32_t v) { return std::atomic_ref(*p).exchange(v); }
  static bool last(uint32_t* p, uint32_t count) { return std::atomic_ref(*p).fetch_add(1, std::memory_order_acq_rel) == count - 1; }
  static void pause() { std::this_thread::yield(); }
  static int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
  static float root(float v) { return std::sqrt(v); }
  template <bool kVector>
  static Four load(const float* p, int64_t left) {
    EXPECT_TRUE(!kVector || reinterpret_cast<uintptr_t>(p) % 16 == 0);
    return {left > 0 ? p[0] : 0, left > 1 ? p[1] : 0, left > 2 ? p[2] : 0, left > 3 ? p[3] : 0};
  }
  template <bool kVector>
  static void store(float* p, int64_t left, Four v) {
    const float values[4] = {v.x, v.y, v.z, v.w};
    for (int64_t i = 0; i < std::min<int64_t>(left, 4); i++) p[i] = values[i];
  }
  float row_sum(float v) {
    in->sums[static_cast<size_t>(thread_index)] = v;
    sync();
    v = 0;
    for (float s : in->sums) v += s;
    sync();
    if (parts == 1) return v;
    if (thread_index == 0) row->parts[block_index % parts] = v;
    row->barrier.arrive_and_wait();
    v = 0;
    for (int p = 0; p < parts; p++) v += row->parts[p];
    row->barrier.arrive_and_wait();
    return v;
  }
};

struct Work {
  Collective what = Collective::kOneShot;
  int blocks = 1, parts = 1;
  int64_t rows = 1, cols = 4;
  int64_t shift = 0;  // of x, in floats, from an aligned address
};

constexpr int64_t kMost = 4096;

// The GPUs of a group: every block's threads run through a list of collectives as kernels on one stream do, one after the other.
class Group {
 public:
  Group(int ranks, std::chrono::nanoseconds limit) : ranks_(ranks) {
    for (int r = 0; r < ranks; r++) {
      gpus_.push_back(std::make_unique<Gpu>());
      gpus_.back()->random.seed(static_cast<uint32_t>(r) + 1);
    }
    for (int r = 0; r < ranks; r++) {
      CollectiveArgs& c = gpus_[static_cast<size_t>(r)]->args;
      for (int q = 0; q < ranks; q++) c.flags[q] = &at(q).flags, c.buffer[q] = at(q).buffer;
      c.state = &at(r).state, c.report = &at(r).report;
      c.half_elements = kMost, c.limit_ns = limit.count(), c.rank = r, c.ranks = ranks;
    }
  }
  struct Gpu {
    SharedFlags flags{};
    CollectiveState state{};
    CollectiveReport report{};
    CollectiveArgs args{};
    alignas(64) float buffer[2 * kMost] = {}, x[kMost + 8] = {}, residual[kMost] = {}, out[kMost] = {};
    std::mt19937 random;
  };
  Gpu& at(int rank) { return *gpus_[static_cast<size_t>(rank)]; }

  // One kernel of one rank; returns when all of its threads did.
  void run(int rank, const Work& work, int threads) {
    Gpu& gpu = at(rank);
    std::vector<std::unique_ptr<Cpu::Block>> blocks;
    std::vector<std::unique_ptr<Cpu::Row>> rows;
    for (int b = 0; b < work.blocks; b++) blocks.push_back(std::make_unique<Cpu::Block>(threads));
    for (int b = 0; b < work.blocks; b += work.parts) rows.push_back(std::make_unique<Cpu::Row>(threads * work.parts));
    std::vector<std::thread> running;
    for (int b = 0; b < work.blocks; b++)
      for (int t = 0; t < threads; t++)
        running.emplace_back([&, b, t] {
          Cpu m{.in = blocks[static_cast<size_t>(b)].get(),
                .row = rows[static_cast<size_t>(b / work.parts)].get(),
                .thread_index = t,
                .thread_count = threads,
                .block_index = b,
                .block_count = work.blocks,
                .parts = work.parts};
          const ReduceArgs reduce{.x = gpu.x + work.shift, .elements = work.rows * work.cols};
          if (work.what == Collective::kOneShot && work.shift == 0 && reduce.elements % 4 == 0) {
            reduce_one_shot<Cpu, 4, true>(m, gpu.args, reduce);
          } else if (work.what == Collective::kOneShot) {
            reduce_one_shot<Cpu, 4, false>(m, gpu.args, reduce);
          } else if (work.what == Collective::kTwoShot) {
            reduce_two_shot<Cpu, 4, 2>(m, gpu.args, reduce);
          } else {
            reduce_norm<Cpu, 4, 4>(m, gpu.args,
                                   {.out = gpu.out,
                                    .residual = gpu.residual,
                                    .delta = gpu.x,
                                    .weight = weight,
                                    .out_stride = work.cols,
                                    .residual_stride = work.cols,
                                    .delta_stride = work.cols,
                                    .rows = work.rows,
                                    .groups = work.cols / 4,
                                    .eps = 1e-6f,
                                    .parts = work.parts});
          }
        });
    for (std::thread& t : running) t.join();
  }

  int ranks() const { return ranks_; }
  alignas(16) float weight[kMost] = {};

 private:
  const int ranks_;
  std::vector<std::unique_ptr<Gpu>> gpus_;
};

float value_of(int rank, uint32_t round, int64_t i) {
  return static_cast<float>(
             static_cast<int>((static_cast<uint32_t>(i) * 2654435761u + round * 40503u + static_cast<uint32_t>(rank) * 97u) >> 7 & 1023) -
             512) /
         37.0f;
}

// In order of rank, in float.
float sum_of_ranks(int ranks, uint32_t round, int64_t i) {
  float sum = value_of(0, round, i);
  for (int r = 1; r < ranks; r++) sum += value_of(r, round, i);
  return sum;
}

void run_rounds(int ranks, int threads, uint32_t rounds, uint32_t seed) {
  std::vector<Work> works;
  std::mt19937 random(seed);
  for (uint32_t i = 0; i < rounds; i++) {
    Work w;
    w.what = static_cast<Collective>(random() % 3);
    w.blocks = 1 + static_cast<int>(random() % 3);
    w.rows = 1 + random() % 3;
    w.cols = 1 + random() % 120;
    if (w.what == Collective::kNorm) {
      w.cols = 4 * (1 + random() % static_cast<uint32_t>(4 * threads));
      w.parts = random() % 2 == 0 ? 1 : 2;
      w.blocks = w.parts * (1 + static_cast<int>(random() % std::min<uint32_t>(2, static_cast<uint32_t>(w.rows))));
    } else {
      w.shift = random() % 4 == 0 ? 1 : 0;
    }
    works.push_back(w);
  }
  Group group(ranks, std::chrono::seconds(60));
  for (int64_t i = 0; i < kMost; i++) group.weight[i] = 1.0f + static_cast<float>(i % 7);
  std::vector<std::thread> host;
  std::atomic<int> wrong{0};
  for (int rank = 0; rank < ranks; rank++)
    host.emplace_back([&, rank] {
      Group::Gpu& gpu = group.at(rank);
      for (uint32_t round = 0; round < rounds; round++) {
        const Work& w = works[round];
        const int64_t n = w.rows * w.cols;
        for (int64_t i = 0; i < n; i++) gpu.x[w.shift + i] = value_of(rank, round, i);
        for (int64_t i = 0; i < n; i++) gpu.residual[i] = static_cast<float>(i % 5);
        if (gpu.random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(gpu.random() % 300));
        group.run(rank, w, threads);
        for (int64_t row = 0; row < w.rows; row++) {
          double squares = 0;
          for (int64_t c = 0; c < w.cols; c++) {
            const int64_t i = row * w.cols + c;
            const float sum = sum_of_ranks(ranks, round, i);
            if (w.what != Collective::kNorm) wrong += gpu.x[w.shift + i] != sum;  // bit for bit
            else wrong += gpu.residual[i] != static_cast<float>(i % 5) + sum;
            squares += static_cast<double>(static_cast<float>(i % 5) + sum) * (static_cast<float>(i % 5) + sum);
          }
          if (w.what != Collective::kNorm) continue;
          const double inverse = 1 / std::sqrt(squares / static_cast<double>(w.cols) + 1e-6);
          for (int64_t c = 0; c < w.cols; c++) {
            const double expected = gpu.residual[row * w.cols + c] * inverse * group.weight[c];
            wrong += std::abs(gpu.out[row * w.cols + c] - expected) > 1e-5 * (1 + std::abs(expected));
          }
        }
      }
    });
  for (std::thread& t : host) t.join();
  EXPECT_EQ(wrong.load(), 0);
  for (int rank = 0; rank < ranks; rank++) {
    EXPECT_EQ(group.at(rank).state.turn, rounds);
    EXPECT_EQ(group.at(rank).report.code, 0u);
  }
}

TEST(Collective, TwoRanksOfSingleThreads) { run_rounds(2, 1, 400, 1); }
TEST(Collective, ThreeRanks) { run_rounds(3, 2, 120, 2); }
TEST(Collective, FourRanks) { run_rounds(4, 2, 80, 3); }

TEST(Collective, RankThatNeverComesIsReported) {
  Group group(3, std::chrono::milliseconds(50));
  const Work work{.what = Collective::kTwoShot, .blocks = 2, .rows = 4, .cols = 64};
  auto both = [&](const Work& w) {
    std::thread other([&] { group.run(2, w, 2); });
    group.run(0, w, 2);
    other.join();
  };
  both(work);
  int waited = 0;
  for (int rank : {0, 2}) {
    const CollectiveReport& report = group.at(rank).report;
    waited += report.code == 1;
    EXPECT_TRUE(report.code == 1 || report.aborted == 1);
    if (report.code == 1) {
      EXPECT_EQ(report.waited_for, 1u);
      EXPECT_EQ(report.what, Collective::kTwoShot);
      EXPECT_EQ(report.turn, 1u);
      EXPECT_EQ(report.elements, 256);
    }
    EXPECT_EQ(group.at(rank).flags.failed, 1u);
  }
  EXPECT_GE(waited, 1);
  // Everything later ends at once, on all ranks and in every kernel.
  const auto begin = std::chrono::steady_clock::now();
  for (Collective what : {Collective::kOneShot, Collective::kTwoShot, Collective::kNorm})
    both({.what = what, .blocks = 2, .parts = what == Collective::kNorm ? 2 : 1, .rows = 1, .cols = 16});
  group.run(1, work, 2);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(Collective, HostEndsAWait) {
  Group group(2, std::chrono::seconds(600));
  std::thread waiting([&] { group.run(0, {.blocks = 2, .cols = 64}, 2); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  Cpu::set(&group.at(0).report.give_up, 1u);
  waiting.join();
  EXPECT_EQ(group.at(0).report.code, 0u);
  EXPECT_EQ(group.at(0).report.aborted, 1u);
  EXPECT_EQ(group.at(1).flags.failed, 1u);
}

}  // namespace
}  // namespace dg::cuda
