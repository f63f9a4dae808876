// Prepared weights on an accelerator (DG_TEST_BACKEND=cuda): every format and the batch sizes at which kernels change, against the
// reference with the published weights. Without the variable there is nothing to test here: the CPU's are in prepared_test.cpp.
#include <fmt/core.h>

#include <cmath>

#include "device/scratch.h"
#include "ops_table.h"

namespace dg::ops_table {
namespace {

class AcceleratorTest : public ::testing::TestWithParam<std::string> {
 protected:
  static Backend& tested() { return cpu(tested_isas().front()); }
  const Format& format() const { return *find_format(GetParam()); }
  // Where many rows meet FP8 weights x is quantised to e4m3 by 128 columns: an element is off by 0.026 of itself, root mean square (3
  // bits of mantissa), or by 2^-10 / 448 of the largest; eight standard deviations of the sum.
  bool quantises(int64_t in, int64_t rows) const { return GetParam() == "fp8_block" && in % 128 == 0 && rows > 128; }
  double tolerance(int64_t in, int64_t rows, double w_norm, double x_norm) const {
    const double length = std::sqrt(static_cast<double>(in));
    return tolerance(in, w_norm, x_norm) + (quantises(in, rows) ? 8 * 0.026 / length * w_norm * x_norm : 0);
  }
  // Both operands rounded to bf16: eight standard deviations of a sum of independent errors, and as many roundings of f32 sums.
  double tolerance(int64_t in, double w_norm, double x_norm) const {
    const double length = std::sqrt(static_cast<double>(in));
    const double rounding = GetParam() == "f32" ? 0 : 12 * kBf16Eps / length;
    return (rounding + 8 * kEps * length) * w_norm * x_norm + 1e-30;
  }
};

struct PreparedShape {
  int64_t in, out;
};
constexpr PreparedShape kPreparedShapes[] = {{32, 16}, {64, 1}, {96, 40}, {130, 65}, {512, 80}, {640, 272}, {1536, 129}, {4096, 33}};

TEST_P(AcceleratorTest, Linear) {
  DG_TRACE_SEED();
  Random random(41);
  for (PreparedShape shape : kPreparedShapes) {
    RandomWeight w(format(), shape.out, shape.in, random);
    Prepared resident(tested(), w);
    for (int64_t tokens : {1, 2, 5, 8, 9, 16, 17, 31, 64, 65, 130, 300}) {
      Buffer x({tokens, shape.in}, 4), bias({1, shape.out}), expected({tokens, shape.out}), actual({tokens, shape.out}, 12);
      x.randomise(random);
      bias.randomise(random, 0.1f);
      const Tensor bias_view = tokens % 2 ? Tensor::of(bias.view.data, Dtype::kF32, {shape.out}) : Tensor{};
      reference().linear({.out = expected.view, .x = x.view, .weight = w.weight, .bias = bias_view});
      tested().linear({.out = actual.view, .x = x.view, .weight = resident.weight, .bias = bias_view});
      for (int64_t o = 0; o < shape.out; o++) {
        const double w_norm = w.row_norm(o);
        for (int64_t t = 0; t < tokens; t++)
          ASSERT_NEAR(actual.at(t, o), expected.at(t, o), tolerance(shape.in, tokens, w_norm, x.row_norm(t)) + 1e-6)
              << "in " << shape.in << " out " << shape.out << " tokens " << tokens << " at " << t << ", " << o;
      }
      actual.expect_gaps_untouched();
    }
  }
}

// Long rows of a few tiles: many CTAs share a tile, and must add up the same way every time and leave nothing behind for the next call.
TEST_P(AcceleratorTest, FewRowsAreTheSameEveryTime) {
  DG_TRACE_SEED();
  Random random(44);
  for (PreparedShape shape : {PreparedShape{9000, 40}, PreparedShape{2100, 700}}) {
    RandomWeight w(format(), shape.out, shape.in, random);
    Prepared resident(tested(), w);
    for (int64_t tokens : {1, 3, 8}) {
      Buffer x({tokens, shape.in}), expected({tokens, shape.out}), first({tokens, shape.out}, 3);
      x.randomise(random);
      reference().linear({.out = expected.view, .x = x.view, .weight = w.weight});
      tested().linear({.out = first.view, .x = x.view, .weight = resident.weight});
      for (int64_t o = 0; o < shape.out; o++)
        for (int64_t t = 0; t < tokens; t++)
          ASSERT_NEAR(first.at(t, o), expected.at(t, o), tolerance(shape.in, w.row_norm(o), x.row_norm(t)) + 1e-6)
              << "in " << shape.in << " tokens " << tokens << " at " << t << ", " << o;
      for (int again = 0; again < 4; again++) {
        Buffer actual({tokens, shape.out}, 3);
        tested().linear({.out = actual.view, .x = x.view, .weight = resident.weight});
        for (int64_t t = 0; t < tokens; t++)
          for (int64_t o = 0; o < shape.out; o++) ASSERT_EQ(actual.at(t, o), first.at(t, o)) << shape.in << " tokens " << tokens;
      }
    }
  }
}

TEST_P(AcceleratorTest, LinearGlu) {
  DG_TRACE_SEED();
  Random random(42);
  for (PreparedShape shape : {PreparedShape{64, 17}, PreparedShape{512, 80}, PreparedShape{1536, 129}})
    for (int64_t tokens : {1, 4, 33, 64, 100}) {
      RandomWeight gate(format(), shape.out, shape.in, random), up(format(), shape.out, shape.in, random);
      Prepared g(tested(), gate), u(tested(), up);
      Buffer x({tokens, shape.in}), expected({tokens, shape.out}), actual({tokens, shape.out}, 5);
      x.randomise(random);
      LinearGlu op{.out = expected.view, .x = x.view, .gate = gate.weight, .up = up.weight, .scratch = nullptr};
      Scratch scratch(linear_glu_scratch_bytes(op));
      op.scratch = &scratch.arena;
      reference().linear_glu(op);
      op.out = actual.view, op.gate = g.weight, op.up = u.weight;
      tested().linear_glu(op);
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t o = 0; o < shape.out; o++) {
          const double dg = tolerance(shape.in, gate.row_norm(o), x.row_norm(t)), du = tolerance(shape.in, up.row_norm(o), x.row_norm(t));
          // |gate|, |up| are below four standard deviations of about 1.
          const double size = 4 * x.row_norm(t) / std::sqrt(static_cast<double>(shape.in));
          ASSERT_NEAR(actual.at(t, o), expected.at(t, o), 1.1 * size * (dg + du) + 32 * kEps * size * size) << tokens << " tokens, " << o;
        }
      actual.expect_gaps_untouched();
    }
}

TEST_P(AcceleratorTest, MoeExperts) {
  DG_TRACE_SEED();
  Random random(43);
  constexpr int64_t kTopK = 3, kDim = 256, kInner = 96;
  constexpr int kExperts = 12, kFirst = 2, kLocal = 8;
  std::vector<RandomWeight> published;
  std::vector<Prepared> resident;
  published.reserve(kLocal * 3), resident.reserve(kLocal * 3);
  std::vector<Expert> wanted, experts;
  for (int e = 0; e < kLocal; e++) {
    for (auto [out, in] : {std::pair{kInner, kDim}, {kInner, kDim}, {kDim, kInner}}) {
      published.emplace_back(format(), out, in, random);
      resident.emplace_back(tested(), published.back());
    }
    const size_t last = published.size();
    wanted.push_back({published[last - 3].weight, published[last - 2].weight, published[last - 1].weight});
    experts.push_back({resident[last - 3].weight, resident[last - 2].weight, resident[last - 1].weight});
  }
  for (int64_t tokens : {1, 2, 4, 7, 64, 500}) {
    Buffer x({tokens, kDim}), before({tokens, kDim}), weights({tokens, kTopK});
    x.randomise(random), before.randomise(random), weights.randomise(random);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; t++) {
      const int base = random.below(kExperts);
      for (int k = 0; k < kTopK; k++) ids.push_back((base + 5 * k) % kExperts);
    }
    Buffer expected = before, actual = before;
    MoeExperts op{.out = expected.view,
                  .x = x.view,
                  .ids = Tensor::of(ids.data(), Dtype::kI32, {tokens, kTopK}),
                  .weights = weights.view,
                  .experts = wanted,
                  .first = kFirst,
                  .scratch = nullptr};
    Scratch scratch(moe_experts_scratch_bytes(op));
    op.scratch = &scratch.arena;
    reference().moe_experts(op);
    op.out = actual.view, op.experts = experts;
    tested().moe_experts(op);
    double error = 0, size = 0;
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t i = 0; i < kDim; i++) {
        const double d = double{actual.at(t, i)} - expected.at(t, i), change = double{expected.at(t, i)} - before.at(t, i);
        error += d * d, size += change * change;
        ASSERT_NEAR(actual.at(t, i), expected.at(t, i), 0.1) << tokens << " tokens at " << t << ", " << i;
      }
    EXPECT_LE(std::sqrt(error), (GetParam() == "f32" ? 1e-4 : 8 * kBf16Eps) * std::sqrt(size) + 1e-6) << tokens << " tokens";
    actual.expect_gaps_untouched();
  }
}

// What decode steps ask: tokens that share experts, or have none here; columns and rows that are not whole tiles. The same bits every time.
TEST_P(AcceleratorTest, ExpertsOfFewTokens) {
  DG_TRACE_SEED();
  Random random(46);
  constexpr int kExperts = 14, kFirst = 4, kLocal = 6;
  enum Ids { kSpread, kSame, kRandom, kElsewhere };
  for (auto [dim, inner] : {std::pair<int64_t, int64_t>{512, 288}, {1152, 200}, {130, 65}}) {
    std::vector<RandomWeight> published;
    std::vector<Prepared> resident;
    published.reserve(kLocal * 3), resident.reserve(kLocal * 3);
    std::vector<Expert> wanted, experts;
    for (int e = 0; e < kLocal; e++) {
      for (auto [out, in] : {std::pair{inner, dim}, {inner, dim}, {dim, inner}}) {
        published.emplace_back(format(), out, in, random);
        resident.emplace_back(tested(), published.back());
      }
      const size_t last = published.size();
      wanted.push_back({published[last - 3].weight, published[last - 2].weight, published[last - 1].weight});
      experts.push_back({resident[last - 3].weight, resident[last - 2].weight, resident[last - 1].weight});
    }
    for (int64_t top_k : {1, 6, 8})
      for (int64_t tokens : {1, 2, 5, 8, 9, 16})
        for (Ids how : {kSpread, kSame, kRandom, kElsewhere}) {
          if (tokens > 8 && how != kRandom) continue;
          Buffer x({tokens, dim}, 4), before({tokens, dim}, 5), weights({tokens, top_k}, 3);
          x.randomise(random), before.randomise(random), weights.randomise(random);
          std::vector<int32_t> ids;
          for (int64_t t = 0; t < tokens; t++) {
            std::vector<int32_t> left(kExperts);
            for (int e = 0; e < kExperts; e++) left[static_cast<size_t>(e)] = how == kSame ? (e + kFirst) % kExperts : e;
            for (int64_t k = 0; k < top_k; k++) {
              const auto at = how == kSpread   ? static_cast<size_t>((t * 5) % static_cast<int64_t>(left.size()))
                              : how == kRandom ? static_cast<size_t>(random.below(static_cast<int>(left.size())))
                                               : 0;
              ids.push_back(how == kElsewhere ? static_cast<int32_t>(k % 2 ? k % kFirst : kFirst + kLocal) : left[at]);
              left.erase(left.begin() + static_cast<std::ptrdiff_t>(at));
            }
          }
          Buffer expected = before, actual = before, again = before;
          MoeExperts op{.out = expected.view,
                        .x = x.view,
                        .ids = Tensor::of(ids.data(), Dtype::kI32, {tokens, top_k}),
                        .weights = weights.view,
                        .experts = wanted,
                        .first = kFirst,
                        .scratch = nullptr};
          Scratch scratch(moe_experts_scratch_bytes(op));
          op.scratch = &scratch.arena;
          reference().moe_experts(op);
          op.out = actual.view, op.experts = experts;
          tested().moe_experts(op);
          op.out = again.view;
          tested().moe_experts(op);
          const std::string at = fmt::format("{} x {}, {} tokens, top {}, ids {}", dim, inner, tokens, top_k, static_cast<int>(how));
          for (int64_t t = 0; t < tokens; t++) {
            double error = 0, size = 0;
            for (int64_t i = 0; i < dim; i++) {
              const double d = double{actual.at(t, i)} - expected.at(t, i), change = double{expected.at(t, i)} - before.at(t, i);
              error += d * d, size += change * change;
              ASSERT_TRUE(tokens > 8 || actual.at(t, i) == again.at(t, i)) << at << ", token " << t << ", " << i;
            }
            ASSERT_LE(std::sqrt(error), (GetParam() == "f32" ? 1e-4 : 8 * kBf16Eps) * std::sqrt(size) + 1e-5) << at << ", token " << t;
          }
          actual.expect_gaps_untouched();
        }
  }
}

// x that e4m3 holds exactly, with scales that are powers of two: products of many rows agree as closely as those in bf16, so that a
// wrong scale or a column out of its place shows.
TEST_P(AcceleratorTest, QuantisedRowsThatLoseNothing) {
  if (GetParam() != "fp8_block") GTEST_SKIP() << "only FP8 weights quantise rows";
  DG_TRACE_SEED();
  Random random(44);
  for (PreparedShape shape : {PreparedShape{128, 16}, PreparedShape{256, 576}, PreparedShape{640, 130}, PreparedShape{1536, 256}}) {
    RandomWeight w(format(), shape.out, shape.in, random), up(format(), shape.out, shape.in, random);
    Prepared resident(tested(), w), resident_up(tested(), up);
    for (int64_t tokens : {129, 192, 200, 321}) {
      Buffer x({tokens, shape.in}, 4), expected({tokens, shape.out}), actual({tokens, shape.out}, 12), glu({tokens, shape.out}),
          actual_glu({tokens, shape.out}, 4);
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < shape.in; i++) {
          // 4 bits of a number and its sign; a place in each 128 columns has the largest number of e4m3.
          const float size = static_cast<float>(8 + random.below(8)) * (random.below(2) ? 16.0f : -2.0f);
          x.view.f32(t)[i] = (i % 128 == t % 128 ? 448.0f : size) * (i / 128 % 2 ? 0x1p-8f : 0x1p-10f);
        }
      Scratch scratch(1 << 22);
      LinearGlu op{.out = glu.view, .x = x.view, .gate = w.weight, .up = up.weight, .scratch = &scratch.arena};
      reference().linear({.out = expected.view, .x = x.view, .weight = w.weight});
      reference().linear_glu(op);
      tested().linear({.out = actual.view, .x = x.view, .weight = resident.weight});
      op.out = actual_glu.view, op.gate = resident.weight, op.up = resident_up.weight;
      tested().linear_glu(op);
      for (int64_t o = 0; o < shape.out; o++)
        for (int64_t t = 0; t < tokens; t++) {
          const double near = tolerance(shape.in, w.row_norm(o), x.row_norm(t)),
                       near_up = tolerance(shape.in, up.row_norm(o), x.row_norm(t));
          ASSERT_NEAR(actual.at(t, o), expected.at(t, o), near + 1e-6)
              << "in " << shape.in << " out " << shape.out << " at " << t << ", " << o;
          const double size = 5 * x.row_norm(t) / std::sqrt(static_cast<double>(shape.in));
          ASSERT_NEAR(actual_glu.at(t, o), glu.at(t, o), 1.1 * size * (near + near_up) + 1e-5) << "glu at " << t << ", " << o;
        }
      actual.expect_gaps_untouched();
      actual_glu.expect_gaps_untouched();
    }
  }
}

// Experts of many rows each: 0, 1, 63, 64, 65 and 300 of them, and rows of experts elsewhere.
TEST_P(AcceleratorTest, ExpertsOfManyRows) {
  DG_TRACE_SEED();
  Random random(45);
  constexpr int64_t kDim = 384, kInner = 256;
  constexpr int kCounts[] = {0, 1, 63, 64, 65, 300, 40}, kLocal = 6, kFirst = 3;  // the last one is elsewhere
  std::vector<RandomWeight> published;
  std::vector<Prepared> resident;
  published.reserve(kLocal * 3), resident.reserve(kLocal * 3);
  std::vector<Expert> wanted, experts;
  for (int e = 0; e < kLocal; e++) {
    for (auto [out, in] : {std::pair{kInner, kDim}, {kInner, kDim}, {kDim, kInner}}) {
      published.emplace_back(format(), out, in, random);
      resident.emplace_back(tested(), published.back());
    }
    const size_t last = published.size();
    wanted.push_back({published[last - 3].weight, published[last - 2].weight, published[last - 1].weight});
    experts.push_back({resident[last - 3].weight, resident[last - 2].weight, resident[last - 1].weight});
  }
  std::vector<int32_t> ids;
  for (int e = 0; e < static_cast<int>(std::size(kCounts)); e++) ids.insert(ids.end(), static_cast<size_t>(kCounts[e]), kFirst + e);
  ids.push_back(0);  // 534 pairs: two of each token
  ASSERT_EQ(ids.size() % 2, 0u);
  for (size_t i = ids.size() - 1; i > 0; i--) std::swap(ids[i], ids[static_cast<size_t>(random.below(static_cast<int>(i) + 1))]);
  const auto tokens = static_cast<int64_t>(ids.size() / 2);
  Buffer x({tokens, kDim}), before({tokens, kDim}), weights({tokens, 2});
  x.randomise(random), before.randomise(random), weights.randomise(random);
  Buffer expected = before, actual = before;
  MoeExperts op{.out = expected.view,
                .x = x.view,
                .ids = Tensor::of(ids.data(), Dtype::kI32, {tokens, 2}),
                .weights = weights.view,
                .experts = wanted,
                .first = kFirst,
                .scratch = nullptr};
  Scratch scratch(moe_experts_scratch_bytes(op));
  op.scratch = &scratch.arena;
  reference().moe_experts(op);
  op.out = actual.view, op.experts = experts;
  tested().moe_experts(op);
  // Gate, up and the hidden values are each off by the 0.026 of quantising: 0.045, and few large hidden values decide a token's error.
  const double allowed = GetParam() == "f32" ? 1e-4 : GetParam() == "fp8_block" ? 4 * 0.026 : 8 * kBf16Eps;
  for (int64_t t = 0; t < tokens; t++) {
    double error = 0, size = 0;
    for (int64_t i = 0; i < kDim; i++) {
      const double d = double{actual.at(t, i)} - expected.at(t, i), change = double{expected.at(t, i)} - before.at(t, i);
      error += d * d, size += change * change;
    }
    ASSERT_LE(std::sqrt(error), allowed * std::sqrt(size) + 1e-6) << "token " << t;
  }
  actual.expect_gaps_untouched();
}

std::vector<std::string> formats_under_test() {
  if (!accelerator()) return {};
  return all_format_names();
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AcceleratorTest);
INSTANTIATE_TEST_SUITE_P(Table, AcceleratorTest, ::testing::ValuesIn(formats_under_test()), [](const auto& info) { return info.param; });

}  // namespace
}  // namespace dg::ops_table
