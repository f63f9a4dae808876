// The protocol of kernels/collective.h with CPU threads as the threads of GPUs: sums, order, delays, replays of the same arguments,
// odd sizes, and a rank that never comes. Run under ThreadSanitizer it shows that flags, and the ends of kernels, order every access to
// data.
#include "backends/cuda/kernels/collective.h"

#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

namespace dg::cuda {
namespace {

// std::barrier counts its waits in one place for the whole process, which ThreadSanitizer takes for an order between all ranks.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void arrive_and_wait() {
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      while (phase_.load(std::memory_order_acquire) == phase) std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, phase_{0};
};

// One thread of a block. Data is plain memory, flags are atomics.
struct Cpu {
  struct Block {
    explicit Block(int threads) : barrier(threads), sums(static_cast<size_t>(threads)) {}
    Barrier barrier;
    std::vector<float> sums;
    std::atomic<int> bad{0};
  };
  struct Row {  // of the blocks that share one
    explicit Row(int threads) : barrier(threads) {}
    Barrier barrier;
    float parts[4] = {};
  };
  Block* in;
  Row* row = nullptr;
  std::atomic<uint64_t>* begun = nullptr;  // [rank] kernels that passed wait_for_previous()
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
  void wait_for_previous() {}  // Group::run() counts
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
  static void pause() { std::this_thread::yield(); }
  static int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
  // What rank r did before this kernel of it; what it does in the kernel is ordered by nothing.
  void heard(int r) { begun[r].load(std::memory_order_acquire); }
  static void push(float* p, Four v) {
    const float values[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; i++) set(reinterpret_cast<uint32_t*>(p) + i, std::bit_cast<uint32_t>(values[i]));
  }
  static Four poll(const float* p) {
    auto one = [&](int i) { return std::bit_cast<float>(get(reinterpret_cast<const uint32_t*>(p) + i)); };
    return {one(0), one(1), one(2), one(3)};
  }
  static bool empty(float v) { return std::bit_cast<uint32_t>(v) == kEmpty; }
  static float sent(float v) { return empty(v) ? std::bit_cast<float>(kSentInstead) : v; }
  static Four nothing() {
    const float v = std::bit_cast<float>(kEmpty);
    return {v, v, v, v};
  }
  static float add_squares(float sum, Four v) { return sum + (v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w); }
  static float inverse_root(float squares, int dim, float eps) { return 1 / std::sqrt(squares / static_cast<float>(dim) + eps); }
  template <bool kVector>
  static Four own(const float* p, int64_t left) {
    return load<kVector>(p, left);
  }
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
  int idle = 0;       // threads of a row that have no part of it
};

constexpr int64_t kMost = 4096;

// The GPUs of a group: every block's threads run through a list of collectives as kernels on one stream do, one after the other.
class Group {
 public:
  Group(int ranks, std::chrono::nanoseconds limit) : ranks_(ranks) {
    for (int r = 0; r < ranks; r++) {
      gpus_.push_back(std::make_unique<Gpu>());
      gpus_.back()->slots.assign(static_cast<size_t>(2 * ranks * kMost), std::bit_cast<float>(kEmpty));
      gpus_.back()->random.seed(static_cast<uint32_t>(r) + 1);
    }
    for (int r = 0; r < ranks; r++) {
      CollectiveArgs& c = gpus_[static_cast<size_t>(r)]->args;
      for (int q = 0; q < ranks; q++) c.flags[q] = &at(q).flags, c.buffer[q] = at(q).buffer, c.slots[q] = at(q).slots.data();
      c.state = &at(r).state, c.report = &at(r).report;
      c.half_elements = kMost, c.slot_elements = kMost, c.limit_ns = limit.count(), c.rank = r, c.ranks = ranks;
    }
  }
  struct Gpu {
    SharedFlags flags{};
    CollectiveState state{};
    CollectiveReport report{};
    CollectiveArgs args{};
    alignas(64) float buffer[2 * kMost] = {}, x[kMost + 8] = {}, residual[kMost] = {}, out[kMost] = {};
    std::vector<float> slots;
    std::mt19937 random;
  };
  Gpu& at(int rank) { return *gpus_[static_cast<size_t>(rank)]; }

  // One kernel of one rank; returns when all of its threads did.
  void run(int rank, const Work& work, int threads) {
    begun_[rank].fetch_add(1, std::memory_order_release);
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
                .begun = begun_,
                .thread_index = t,
                .thread_count = threads,
                .block_index = b,
                .block_count = work.blocks,
                .parts = work.parts};
          if (ranks_ == 2) kernel<2>(m, rank, work);
          else if (ranks_ <= 4) kernel<4>(m, rank, work);
          else kernel<8>(m, rank, work);
        });
    for (std::thread& t : running) t.join();
  }

  int ranks() const { return ranks_; }
  alignas(16) float weight[kMost] = {};

 private:
  // One thread of it, of the instance that a GPU takes.
  template <int kRanks>
  void kernel(Cpu& m, int rank, const Work& work) {
    Gpu& gpu = at(rank);
    const ReduceArgs reduce{.x = gpu.x + work.shift, .elements = work.rows * work.cols};
    const bool vector = work.shift == 0 && reduce.elements % 4 == 0;
    switch (work.what) {
      case Collective::kOneShot:
        if (vector) reduce_one_shot<Cpu, kRanks, true>(m, gpu.args, reduce);
        else reduce_one_shot<Cpu, kRanks, false>(m, gpu.args, reduce);
        break;
      case Collective::kTwoShot: reduce_two_shot<Cpu, kRanks, 2>(m, gpu.args, reduce); break;
      case Collective::kPush:
        if (vector) reduce_push<Cpu, kRanks, true>(m, gpu.args, reduce);
        else reduce_push<Cpu, kRanks, false>(m, gpu.args, reduce);
        break;
      case Collective::kNorm:
        reduce_norm<Cpu, kRanks, 4>(m, gpu.args,
                                    {.out = gpu.out,
                                     .residual = gpu.residual,
                                     .delta = gpu.x,
                                     .weight = weight,
                                     .out_stride = work.cols,
                                     .residual_stride = work.cols,
                                     .delta_stride = work.cols,
                                     .rows = work.rows,
                                     .groups = static_cast<int>(work.cols / 4),
                                     .eps = 1e-6f,
                                     .parts = work.parts,
                                     .across = m.thread_count * work.parts - work.idle});
    }
  }

  const int ranks_;
  std::vector<std::unique_ptr<Gpu>> gpus_;
  std::atomic<uint64_t> begun_[kMostRanks] = {};
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

Work random_work(std::mt19937& random, int threads) {
  Work w;
  w.what = static_cast<Collective>(random() % 4);
  w.blocks = 1 + static_cast<int>(random() % 3);
  w.rows = 1 + random() % 3;
  w.cols = 1 + random() % 120;
  if (w.what == Collective::kNorm) {
    w.parts = random() % 2 == 0 ? 1 : 2;
    w.idle = threads * w.parts > 1 ? static_cast<int>(random() % 2) : 0;
    w.cols = 4 * (1 + random() % static_cast<uint32_t>(4 * (threads * w.parts - w.idle)));
    w.blocks = w.parts * (1 + static_cast<int>(random() % std::min<uint32_t>(2, static_cast<uint32_t>(w.rows))));
  } else {
    w.shift = random() % 4 == 0 ? 1 : 0;
  }
  return w;
}

// works: what the rounds take in turn; empty: random ones. `slow`: the rank that always comes last; -1: any, now and then.
void run_rounds(int ranks, int threads, uint32_t rounds, uint32_t seed, std::vector<Work> works = {}, int slow = -1) {
  std::mt19937 random(seed);
  if (works.empty())
    for (uint32_t i = 0; i < rounds; i++) works.push_back(random_work(random, threads));
  Group group(ranks, std::chrono::seconds(60));
  for (int64_t i = 0; i < kMost; i++) group.weight[i] = 1.0f + static_cast<float>(i % 7);
  std::vector<std::thread> host;
  std::vector<int64_t> wrong_of(static_cast<size_t>(ranks));  // not one counter for all, which would order what ranks do
  for (int rank = 0; rank < ranks; rank++)
    host.emplace_back([&, rank] {
      Group::Gpu& gpu = group.at(rank);
      int64_t wrong = 0;
      for (uint32_t round = 0; round < rounds; round++) {
        const Work& w = works[round % works.size()];
        const int64_t n = w.rows * w.cols;
        for (int64_t i = 0; i < n; i++) gpu.x[w.shift + i] = value_of(rank, round, i);
        for (int64_t i = 0; i < n; i++) gpu.residual[i] = static_cast<float>(i % 5);
        if (slow < 0 ? gpu.random() % 4 == 0 : slow == rank) std::this_thread::sleep_for(std::chrono::microseconds(gpu.random() % 300));
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
      wrong_of[static_cast<size_t>(rank)] = wrong;
    });
  for (std::thread& t : host) t.join();
  EXPECT_EQ(wrong_of, std::vector<int64_t>(static_cast<size_t>(ranks)));
  for (int rank = 0; rank < ranks; rank++) {
    for (uint64_t turn : group.at(rank).state.turn) EXPECT_EQ(turn, rounds);
    EXPECT_EQ(group.at(rank).report.code, 0u);
    for (float v : group.at(rank).slots) ASSERT_TRUE(Cpu::empty(v));  // every number was read and its place emptied
  }
}

TEST(Collective, TwoRanksOfSingleThreads) { run_rounds(2, 1, 400, 1); }
TEST(Collective, ThreeRanks) { run_rounds(3, 2, 120, 2); }
TEST(Collective, FourRanks) { run_rounds(4, 2, 80, 3); }
TEST(Collective, FiveRanks) { run_rounds(5, 1, 60, 8); }

// Nobody meets here: what keeps the halves apart is only that a rank hears of all others in each turn.
TEST(Collective, PushesBackToBack) { run_rounds(2, 1, 600, 4, {{.what = Collective::kPush, .cols = 8}}); }
TEST(Collective, PushesWithASlowRank) { run_rounds(3, 1, 150, 5, {{.what = Collective::kPush, .blocks = 2, .cols = 13}}, 1); }
TEST(Collective, NormsOfSeveralRowsWithASlowRank) {
  run_rounds(4, 2, 40, 6, {{.what = Collective::kNorm, .blocks = 2, .parts = 2, .rows = 3, .cols = 32}}, 0);
}
// The turn between two pushes, or two copies of one shot, into the same half is of another kind.
TEST(Collective, KindsTakeTurns) {
  const Work push{.what = Collective::kPush, .cols = 8}, one{.what = Collective::kOneShot, .cols = 8},
      two{.what = Collective::kTwoShot, .cols = 8};
  run_rounds(3, 1, 300, 7, {push, one, push, push, two, push, one, push, one});
}

TEST(Collective, NumberThatMeansEmptyArrives) {
  Group group(2, std::chrono::seconds(60));
  auto each = [&](int rank) {
    for (int64_t i = 0; i < 8; i++) group.at(rank).x[i] = i == 3 ? std::bit_cast<float>(kEmpty) : i == 5 ? -0.0f : 1.0f;
    group.run(rank, {.what = Collective::kPush, .cols = 8}, 2);
    for (int64_t i = 0; i < 8; i++) {
      const float v = group.at(rank).x[i];
      EXPECT_TRUE(i == 3 ? std::isnan(v) : i == 5 ? v == 0 && std::signbit(v) : v == 2.0f) << i << ": " << v;
    }
  };
  std::thread other(each, 1);
  each(0);
  other.join();
}

void expect_report_of_missing_rank(Collective what) {
  Group group(3, std::chrono::milliseconds(50));
  const Work work{.what = what, .blocks = 2, .rows = 4, .cols = what == Collective::kNorm ? 16 : 64};
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
      EXPECT_EQ(report.what, what);
      EXPECT_EQ(report.turn, 1u);
      EXPECT_EQ(report.elements, work.rows * work.cols);
    }
    EXPECT_EQ(group.at(rank).flags.failed, 1u);
  }
  EXPECT_GE(waited, 1);
  // Everything later ends at once, on all ranks and in every kernel.
  const auto begin = std::chrono::steady_clock::now();
  for (Collective later : {Collective::kOneShot, Collective::kTwoShot, Collective::kPush, Collective::kNorm})
    both({.what = later, .blocks = 2, .parts = later == Collective::kNorm ? 2 : 1, .rows = 1, .cols = 16});
  group.run(1, work, 2);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

TEST(Collective, RankThatNeverComesIsReported) {
  for (Collective what : {Collective::kOneShot, Collective::kTwoShot, Collective::kPush, Collective::kNorm}) {
    SCOPED_TRACE(static_cast<int>(what));
    expect_report_of_missing_rank(what);
  }
}

TEST(Collective, HostEndsAWait) {
  for (Collective what : {Collective::kOneShot, Collective::kPush}) {
    Group group(2, std::chrono::seconds(600));
    std::thread waiting([&] { group.run(0, {.what = what, .blocks = 2, .cols = 64}, 2); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    Cpu::set(&group.at(0).report.give_up, 1u);
    waiting.join();
    EXPECT_EQ(group.at(0).report.code, 0u);
    EXPECT_EQ(group.at(0).report.aborted, 1u);
    EXPECT_EQ(group.at(1).flags.failed, 1u);
  }
}

}  // namespace
}  // namespace dg::cuda
