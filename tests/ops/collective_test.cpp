// all_reduce and the partial add_rms_norm over several backends of one group, a thread each. DG_TEST_BACKEND=cuda takes the first GPUs.
#include <cmath>
#include <thread>

#include "backends/cpu/reference.h"
#include "ops_table.h"

namespace dg::ops_table {
namespace {

void on_ranks(const RankedBackends& ranks, const std::function<void(int)>& fn) {
  std::vector<std::thread> threads;
  for (size_t r = 0; r < ranks.backends.size(); r++) threads.emplace_back(fn, static_cast<int>(r));
  for (std::thread& t : threads) t.join();
}

// A tensor on the memory of a backend.
struct OnDevice {
  OnDevice(Backend& b, int64_t rows, int64_t cols) : backend(b) {
    auto made = b.allocate(static_cast<size_t>(rows * cols) * 4, "test");
    CHECK(made.ok()) << made.error().message;
    memory = std::move(made).value();
    view = Tensor::of(memory->data(), Dtype::kF32, {rows, cols});
  }
  void set(const std::vector<float>& values) { backend.upload(view.data, values.data(), values.size() * 4); }
  std::vector<float> get() {
    std::vector<float> values(static_cast<size_t>(view.elements()));
    backend.download(values.data(), view.data, values.size() * 4);
    return values;
  }
  Backend& backend;
  std::unique_ptr<DeviceMemory> memory;
  Tensor view;
};

std::vector<float> random_values(int64_t n, uint64_t salt) {
  Random random(salt);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& v : values) v = random.normal();
  return values;
}

struct Case {
  const char* backend;
  int ranks;
};

class CollectiveTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    ranks_ = backend_group(GetParam().backend, GetParam().ranks);
    if (ranks_.backends.empty()) GTEST_SKIP() << "fewer than " << GetParam().ranks << " devices";
  }
  RankedBackends ranks_;
};

TEST_P(CollectiveTest, SumsInOrderOfRankTheSameBitsEverywhere) {
  DG_TRACE_SEED();
  const auto n = static_cast<size_t>(GetParam().ranks);
  // A GPU takes all but the last by its way for small messages, with few and many threads, and by fours or one by one.
  for (auto [rows, cols] : {std::pair<int64_t, int64_t>{1, 1}, {1, 3584}, {1, 7168}, {3, 97}, {16, 7168}, {64, 512}, {513, 2048}}) {
    std::vector<std::vector<float>> results(n);
    std::vector<float> expected = random_values(rows * cols, 0);
    for (size_t r = 1; r < n; r++) {
      const std::vector<float> values = random_values(rows * cols, r);
      for (size_t i = 0; i < expected.size(); i++) expected[i] += values[i];
    }
    on_ranks(ranks_, [&](int rank) {
      Backend& b = *ranks_.backends[static_cast<size_t>(rank)];
      OnDevice x(b, rows, cols);
      // Again and again, without a wait between: nobody may overwrite what another still reads.
      for (int again = 0; again < 5; again++) {
        x.set(random_values(rows * cols, static_cast<uint64_t>(rank)));
        b.all_reduce({.x = x.view});
      }
      results[static_cast<size_t>(rank)] = x.get();
    });
    ASSERT_TRUE(ranks_.group->status().ok()) << ranks_.group->status().error().message;
    for (size_t r = 0; r < n; r++) EXPECT_EQ(results[r], expected) << rows << " x " << cols << ", rank " << r;
  }
}

// Many sums in a row that depend on each other, of all sizes in turn, also as a graph that is replayed; one rank comes late.
TEST_P(CollectiveTest, RepeatsInGraphs) {
  DG_TRACE_SEED();
  const auto n = static_cast<size_t>(GetParam().ranks);
  const int64_t sizes[] = {7, 3584, 40 * 1024, (accelerator() ? 1200 : 100) * 1024, 64};
  std::vector<int64_t> wrong(n);
  on_ranks(ranks_, [&](int rank) {
    Backend& b = *ranks_.backends[static_cast<size_t>(rank)];
    std::vector<std::unique_ptr<OnDevice>> x;
    for (int64_t size : sizes) x.push_back(std::make_unique<OnDevice>(b, 1, size));
    for (int again = 0; again < 6; again++) {
      const auto start = static_cast<float>(rank + again);
      for (auto& t : x) t->set(std::vector<float>(static_cast<size_t>(t->view.elements()), start));
      if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2 * (again % 3)));
      b.replay(1, [&] {
        for (int i = 0; i < 3; i++)
          for (auto& t : x) b.all_reduce({.x = t->view});
      });
      float sum = 0, total;
      for (size_t r = 0; r < n; r++) sum += static_cast<float>(r) + static_cast<float>(again);
      total = sum * static_cast<float>(n * n);  // whole numbers below 2^24
      for (auto& t : x)
        for (float v : t->get()) wrong[static_cast<size_t>(rank)] += v != total;
    }
  });
  ASSERT_TRUE(ranks_.group->status().ok()) << ranks_.group->status().error().message;
  EXPECT_EQ(wrong, std::vector<int64_t>(n));
}

TEST_P(CollectiveTest, AddRmsNormOfParts) {
  DG_TRACE_SEED();
  const auto n = static_cast<size_t>(GetParam().ranks);
  for (auto [rows, cols] :
       {std::pair<int64_t, int64_t>{1, 384}, {1, 3584}, {5, 7168}, {accelerator() ? 70 : 6, 7168}, {2, 12288}, {3, 100}, {130, 512}}) {
    const std::vector<float> residual = random_values(rows * cols, 100), weight = random_values(cols, 101);
    std::vector<float> delta = random_values(rows * cols, 0);
    for (size_t r = 1; r < n; r++) {
      const std::vector<float> values = random_values(rows * cols, r);
      for (size_t i = 0; i < delta.size(); i++) delta[i] += values[i];
    }
    std::vector<std::vector<float>> out(n), sums(n), out_of_two(n), sums_of_two(n);
    on_ranks(ranks_, [&](int rank) {
      Backend& b = *ranks_.backends[static_cast<size_t>(rank)];
      OnDevice x(b, rows, cols), d(b, rows, cols), y(b, rows, cols), w(b, 1, cols);
      x.set(residual), w.set(weight), d.set(random_values(rows * cols, static_cast<uint64_t>(rank)));
      Tensor norm = w.view.reshaped({cols});
      b.add_rms_norm({.out = y.view, .residual = x.view, .delta = d.view, .weight = norm, .eps = 1e-6f, .partial = true});
      out[static_cast<size_t>(rank)] = y.get();
      sums[static_cast<size_t>(rank)] = x.get();
      x.set(residual), d.set(random_values(rows * cols, static_cast<uint64_t>(rank)));
      b.all_reduce({.x = d.view});
      b.add_rms_norm({.out = y.view, .residual = x.view, .delta = d.view, .weight = norm, .eps = 1e-6f});
      out_of_two[static_cast<size_t>(rank)] = y.get();
      sums_of_two[static_cast<size_t>(rank)] = x.get();
    });
    ASSERT_TRUE(ranks_.group->status().ok()) << ranks_.group->status().error().message;
    for (size_t i = 0; i < delta.size(); i++) ASSERT_EQ(sums[0][i], residual[i] + delta[i]) << i;
    for (size_t r = 1; r < n; r++) EXPECT_TRUE(sums[r] == sums[0] && out[r] == out[0]) << "rank " << r;
    for (size_t r = 0; r < n; r++) EXPECT_TRUE(sums_of_two[r] == sums[0] && out_of_two[r] == out[0]) << "one op and two, rank " << r;
    for (int64_t t = 0; t < rows; t++) {
      double square = 0;
      for (int64_t i = 0; i < cols; i++) square += std::pow(sums[0][static_cast<size_t>(t * cols + i)], 2);
      const double scale = 1 / std::sqrt(square / static_cast<double>(cols) + 1e-6);
      for (int64_t i = 0; i < cols; i++) {
        const auto at = static_cast<size_t>(t * cols + i);
        const double want = sums[0][at] * scale * weight[static_cast<size_t>(i)];
        ASSERT_NEAR(out[0][at], want, 1e-5 * (1 + std::fabs(want))) << t << " " << i;
      }
    }
  }
}

std::vector<Case> cases() {
  if (accelerator()) return {{"cpu", 2}, {"cpu", 4}, {"cpu", 8}};
  return {{"cpu", 1}, {"cpu", 2}, {"cpu", 4}, {"reference", 2}};
}
INSTANTIATE_TEST_SUITE_P(Ranks, CollectiveTest, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return std::string(info.param.backend) + std::to_string(info.param.ranks); });

}  // namespace
}  // namespace dg::ops_table
