// adjust_logits and pick_rows against the default bodies, bit for bit: what the sampler promises rests on it.
#include <cmath>
#include <limits>

#include "device/row_picks.h"
#include "ops_table.h"

namespace dg::ops_table {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr int64_t kSpecWords = sizeof(PickSpec) / 4;

class SampleTest : public ::testing::TestWithParam<std::string> {
 protected:
  Backend& tested() const { return cpu(GetParam()); }
};

struct Specs {
  explicit Specs(int64_t rows) : all(static_cast<size_t>(rows)) {}
  PickSpec& operator[](int64_t row) { return all[static_cast<size_t>(row)]; }
  Tensor view() { return Tensor::of(all.data(), Dtype::kI32, {static_cast<int64_t>(all.size()), kSpecWords}); }
  std::vector<PickSpec> all;
};

struct Picked {
  Picked(Backend& backend, const Tensor& logits, Specs& specs, int most, bool draw, int32_t first_id) : most(most), draw(draw) {
    const int64_t rows = logits.rows(), chunks = (logits.cols() + static_cast<int64_t>(kChunk) - 1) / static_cast<int64_t>(kChunk);
    words.assign(static_cast<size_t>(rows * pick_words(most, draw)), static_cast<int32_t>(kPoisonBits));
    scratch.assign(static_cast<size_t>(3 * rows * chunks), std::nanf(""));
    backend.pick_rows({.out = Tensor::of(words.data(), Dtype::kI32, {rows, pick_words(most, draw)}),
                       .logits = logits,
                       .specs = specs.view(),
                       .most = most,
                       .draw = draw,
                       .scratch = Tensor::of(scratch.data(), Dtype::kF32, {3, rows, chunks}),
                       .first_id = first_id});
    backend.synchronise();
  }
  const int32_t* row(int64_t i) const { return words.data() + i * pick_words(most, draw); }
  int most;
  bool draw;
  std::vector<int32_t> words;
  std::vector<float> scratch;
};

void expect_same(const Picked& expected, const Picked& actual, Specs& specs) {
  const int most = expected.most;
  for (size_t i = 0; i < specs.all.size(); i++) {
    SCOPED_TRACE(testing::Message() << "row " << i);
    const auto row = static_cast<int64_t>(i);
    const int32_t *e = expected.row(row), *a = actual.row(row);
    if (specs.all[i].candidates == 0) {
      for (int64_t k = 0; k < pick_words(most, actual.draw); k++) ASSERT_EQ(a[k], static_cast<int32_t>(kPoisonBits)) << "left alone";
      continue;
    }
    PickHeader want, have;
    std::memcpy(&want, e, sizeof want), std::memcpy(&have, a, sizeof have);
    ASSERT_EQ(have.max, want.max);
    ASSERT_EQ(have.count, want.count);
    ASSERT_EQ(have.complete, want.complete);
    ASSERT_EQ(have.chunk, want.chunk);
    if (specs.all[i].flags & kPickSums) {
      ASSERT_EQ(have.total, want.total);
    }
    if (specs.all[i].flags & kPickSumsAtOne) {
      ASSERT_EQ(have.total_at_one, want.total_at_one);
    }
    const int32_t header = sizeof(PickHeader) / 4;
    for (int32_t k = 0; k < want.count; k++) {
      ASSERT_EQ(a[header + k], e[header + k]) << "logit of candidate " << k;
      ASSERT_EQ(a[header + most + k], e[header + most + k]) << "id of candidate " << k;
    }
    if (!(specs.all[i].flags & kPickDraw)) continue;
    ASSERT_EQ(have.left, want.left);
    for (int32_t k = 0; k < static_cast<int32_t>(kChunk); k++) {
      float x, y;
      std::memcpy(&x, a + header + 2 * most + k, 4), std::memcpy(&y, e + header + 2 * most + k, 4);
      ASSERT_TRUE(x == y || (std::isnan(x) && std::isnan(y))) << "logit " << k << " of the chunk";
    }
  }
}

// What a row of logits can look like.
constexpr int kKinds = 9;
void fill_row(float* row, int64_t n, int kind, Random& random) {
  for (int64_t i = 0; i < n; i++) {
    const float x = random.normal();
    switch (kind) {
      case 0: row[i] = 3 * x; break;
      case 1: row[i] = std::round(2 * x); break;       // many ties, -0 and 0
      case 2: row[i] = 1.5f; break;                    // one tie
      case 3: row[i] = i == n / 2 ? x : -kInf; break;  // one token is allowed
      case 4: row[i] = -kInf; break;                   // none
      case 5: row[i] = random.below(4) ? (random.below(2) ? -kInf : std::nanf("")) : x; break;
      case 6: row[i] = random.below(50) ? x : kInf; break;
      case 7: row[i] = i / static_cast<int64_t>(kChunk) == 1 ? 20 + x : x - 20; break;  // the largest ones in one chunk
      default: row[i] = 1e-3f * x + (i % 3 ? 10 : -200); break;                         // nearly equal: few bits differ
    }
  }
}

TEST_P(SampleTest, PickRows) {
  DG_TRACE_SEED();
  Random random(61);
  for (int64_t columns : {1, 7, 255, 256, 257, 1000, 5000, 32000, 152064, 262144}) {
    const int64_t rows = columns > 5000 ? kKinds : 2 * kKinds;
    for (int most : {1, 20, 256}) {
      SCOPED_TRACE(testing::Message() << columns << " columns, at most " << most);
      Buffer logits({rows, columns}, 3);
      Specs specs(rows);
      for (int64_t i = 0; i < rows; i++) {
        fill_row(logits.view.f32(i), columns, static_cast<int>(i % kKinds), random);
        PickSpec& spec = specs[i];
        spec.candidates = most == 1 ? 1 : 1 + random.below(most);
        if (i == 1 && most == 20) spec.candidates = 0;
        spec.scale = kLog2E / (0.3f + 0.2f * static_cast<float>(random.below(8)));
        spec.uniform = static_cast<double>(random.below(1 << 20)) / (1 << 20);
        spec.flags = random.below(8);
        if (spec.flags & kPickDraw) spec.flags |= kPickSums;
      }
      specs[0].candidates = most;
      Buffer before = logits;
      const int32_t first_id = most == 20 ? 19008 : 0;
      const Picked expected(reference(), logits.view, specs, most, true, first_id),
          actual(tested(), logits.view, specs, most, true, first_id);
      expect_same(expected, actual, specs);
      if (HasFatalFailure()) return;
      for (int64_t i = 0; i < rows; i++)
        ASSERT_EQ(std::memcmp(before.view.f32(i), logits.view.f32(i), static_cast<size_t>(columns) * 4), 0) << "logits are not written";
      logits.expect_gaps_untouched();
      for (PickSpec& spec : specs.all) spec.flags &= ~kPickDraw;  // without room for a chunk
      expect_same(Picked(reference(), logits.view, specs, most, false, 0), Picked(tested(), logits.view, specs, most, false, 0), specs);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(SampleTest, AdjustLogits) {
  DG_TRACE_SEED();
  Random random(62);
  for (int64_t columns : {1, 31, 64, 1000, 19008}) {
    for (int32_t first_id : {0, 640}) {
      SCOPED_TRACE(testing::Message() << columns << " columns from " << first_id);
      constexpr int64_t kRows = 7;
      const int64_t vocab = columns + first_id + 5, mask_words = (vocab + 31) / 32;
      Buffer expected({kRows, columns}, 2);
      std::vector<LogitChange> changes;
      std::vector<int32_t> masks;
      Specs specs(kRows);
      for (int64_t i = 0; i < kRows; i++) {
        fill_row(expected.view.f32(i), columns, static_cast<int>(i), random);
        PickSpec& spec = specs[i];
        spec.candidates = i == 2 ? 0 : 1;
        spec.repetition = i % 2 ? 1.3 : 1, spec.presence = 0.1 * static_cast<double>(i), spec.frequency = i % 3 ? 0.7 : -0.2;
        spec.first_change = static_cast<int32_t>(changes.size());
        const int step = 1 + random.below(5);
        if (i != 5)
          for (int32_t id = random.below(3); id < vocab; id += step)
            changes.push_back({id, random.below(5) - 1, random.below(3) ? 0 : random.below(4) ? random.normal() : -kInf});
        spec.change_count = static_cast<int32_t>(changes.size()) - spec.first_change;
        if (i % 2) continue;
        spec.mask = static_cast<int32_t>(static_cast<int64_t>(masks.size()) / mask_words);
        for (int64_t w = 0; w < mask_words; w++)
          masks.push_back(i == 4 ? 0 : i == 6 ? -1 : static_cast<int32_t>(static_cast<uint32_t>(random.below(1 << 30)) * 5));
      }
      Buffer actual = expected;
      const Tensor change_view = Tensor::of(changes.data(), Dtype::kI32, {static_cast<int64_t>(changes.size()), 3});
      const Tensor mask_view = Tensor::of(masks.data(), Dtype::kI32, {static_cast<int64_t>(masks.size()) / mask_words, mask_words});
      for (auto [backend, logits] : {std::pair{&reference(), expected.view}, {&tested(), actual.view}}) {
        backend->adjust_logits({.logits = logits, .specs = specs.view(), .changes = change_view, .masks = mask_view, .first_id = first_id});
        backend->synchronise();
      }
      for (int64_t i = 0; i < kRows; i++)
        for (int64_t k = 0; k < columns; k++)
          ASSERT_TRUE(actual.at(i, k) == expected.at(i, k) || (std::isnan(actual.at(i, k)) && std::isnan(expected.at(i, k))))
              << "row " << i << " column " << k << ": " << actual.at(i, k) << ", expected " << expected.at(i, k);
      actual.expect_gaps_untouched();
    }
  }
}

// The default bodies themselves, against figures that are plain to see.
TEST(SampleReference, AdjustsAndPicks) {
  std::vector<float> logits = {1, 2, -2, 4, 4, 0};
  const Tensor view = Tensor::of(logits.data(), Dtype::kF32, {1, 6});
  Specs specs(1);
  specs[0] = {.repetition = 2,
              .presence = 0.5,
              .frequency = 0.25,
              .scale = kLog2E,
              .change_count = 4,
              .mask = 0,
              .candidates = 3,
              .flags = kPickSums};
  std::vector<LogitChange> changes = {{1, 0, 0}, {2, 2, 0}, {5, -1, 7}, {0, -1, -kInf}};
  std::vector<int32_t> mask = {0b101111};
  reference().adjust_logits({.logits = view,
                             .specs = specs.view(),
                             .changes = Tensor::of(changes.data(), Dtype::kI32, {4, 3}),
                             .masks = Tensor::of(mask.data(), Dtype::kI32, {1, 1})});
  EXPECT_EQ(logits, (std::vector<float>{-kInf, 1, -5, 4, -kInf, 7}));
  const Picked picked(reference(), view, specs, 3, false, 100);
  PickHeader header;
  std::memcpy(&header, picked.row(0), sizeof header);
  EXPECT_EQ(header.max, 7);
  EXPECT_EQ(header.count, 3);
  EXPECT_EQ(header.complete, 0);
  EXPECT_NEAR(header.total, 1 + std::exp(-3.0) + std::exp(-6.0) + std::exp(-12.0), 1e-6);
  const int32_t* ids = picked.row(0) + sizeof(PickHeader) / 4 + 3;
  EXPECT_EQ(std::vector<int32_t>(ids, ids + 3), (std::vector<int32_t>{105, 103, 101}));
}

INSTANTIATE_TEST_SUITE_P(Table, SampleTest, ::testing::ValuesIn(tested_isas()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace dg::ops_table
