// linear, linear_glu, embed and moe_experts: every format on every instruction set of this machine.
#include <algorithm>
#include <cmath>

#include "device/scratch.h"
#include "ops_table.h"

namespace dg::ops_table {
namespace {

class MatmulTest : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  const Format& format() const { return *find_format(std::get<1>(GetParam())); }
};

struct Shape {
  int64_t in, out;
};
// Around the 16 lanes, the blocks of 32 and 128 elements, the 8 rows of a block and the 512 elements decoded at a time.
constexpr Shape kShapes[] = {{1, 1}, {7, 3}, {16, 8}, {33, 17}, {64, 1}, {127, 9}, {128, 16}, {129, 65}, {512, 40}, {530, 19}, {1100, 130}};

// Both sides sum `in` products, each rounding at most about once per addition, in different orders; errors add up like
// sqrt(in) and |w| . |x| <= ||w|| ||x||.
// An accelerator rounds both operands to bf16: the sum of independent errors is eps |w_i x_i| each, eight standard deviations.
double sum_tolerance(int64_t in, double w_norm, double x_norm, const Format& format) {
  const double length = std::sqrt(static_cast<double>(in));
  const double rounding = accelerator() && format.name != std::string("f32") ? 12 * kBf16Eps / length : 0;
  return (4 * kEps * length + rounding) * w_norm * x_norm + 1e-30;
}

TEST_P(MatmulTest, LinearIsTheReference) {
  DG_TRACE_SEED();
  Random random(1);
  for (Shape shape : kShapes)
    for (int64_t tokens : {1, 2, 3, 5, 33}) {
      RandomWeight w(format(), shape.out, shape.in, random);
      Buffer x({tokens, shape.in}, 3), bias({1, shape.out}), expected({tokens, shape.out}), actual({tokens, shape.out}, 9);
      x.randomise(random);
      bias.randomise(random, 0.1f);
      Tensor bias_view = tokens % 2 ? Tensor::of(bias.view.data, Dtype::kF32, {shape.out}) : Tensor{};
      reference().linear({.out = expected.view, .x = x.view, .weight = w.weight, .bias = bias_view});
      cpu(isa()).linear({.out = actual.view, .x = x.view, .weight = w.weight, .bias = bias_view});
      for (int64_t o = 0; o < shape.out; o++) {
        const double w_norm = w.row_norm(o);
        for (int64_t t = 0; t < tokens; t++)
          ASSERT_NEAR(actual.at(t, o), expected.at(t, o),
                      sum_tolerance(shape.in, w_norm, x.row_norm(t), format()) + 2 * kEps * std::fabs(bias.at(0, o)))
              << "in " << shape.in << " out " << shape.out << " tokens " << tokens << " at " << t << ", " << o;
      }
      actual.expect_gaps_untouched();
    }
}

// The contract of Linear: a row is a function of its own row of x alone, bit for bit.
TEST_P(MatmulTest, RowsDoNotDependOnTheBatchOrTheThreads) {
  DG_TRACE_SEED();
  Random random(2);
  for (Shape shape : {Shape{64, 24}, Shape{530, 37}, Shape{1100, 11}}) {
    constexpr int64_t kTokens = 33;
    RandomWeight w(format(), shape.out, shape.in, random), gate(format(), shape.out, shape.in, random);
    Buffer x({kTokens, shape.in}), alone({kTokens, shape.out}), alone_glu({kTokens, shape.out});
    x.randomise(random);
    Scratch scratch(1 << 20);
    for (int64_t t = 0; t < kTokens; t++) {
      cpu(isa(), 1).linear({.out = alone.rows(t, 1), .x = x.rows(t, 1), .weight = w.weight});
      cpu(isa(), 1).linear_glu(
          {.out = alone_glu.rows(t, 1), .x = x.rows(t, 1), .gate = gate.weight, .up = w.weight, .scratch = &scratch.arena});
    }
    for (int64_t tokens = 2; tokens <= kTokens; tokens++) {
      Buffer batch({tokens, shape.out}), batch_glu({tokens, shape.out});
      const int64_t first = kTokens - tokens;
      const int threads = 1 + static_cast<int>(tokens % 5);
      cpu(isa(), threads).linear({.out = batch.view, .x = x.rows(first, tokens), .weight = w.weight});
      cpu(isa(), threads)
          .linear_glu({.out = batch_glu.view, .x = x.rows(first, tokens), .gate = gate.weight, .up = w.weight, .scratch = &scratch.arena});
      for (int64_t t = 0; t < tokens; t++) {
        ASSERT_TRUE(same_row(batch, t, alone, first + t)) << "linear, " << tokens << " tokens, in " << shape.in;
        ASSERT_TRUE(same_row(batch_glu, t, alone_glu, first + t)) << "linear_glu, " << tokens << " tokens, in " << shape.in;
      }
    }
  }
}

TEST_P(MatmulTest, BatchesLongerThanATokenBlock) {
  DG_TRACE_SEED();
  Random random(3);
  constexpr int64_t kTokens = 403, kIn = 96, kOut = 20;  // blocks of 192 tokens
  RandomWeight w(format(), kOut, kIn, random);
  Buffer x({kTokens, kIn}), all({kTokens, kOut}), alone({1, kOut});
  x.randomise(random);
  cpu(isa()).linear({.out = all.view, .x = x.view, .weight = w.weight});
  for (int64_t t : {0, 191, 192, 193, 383, 384, 402}) {
    cpu(isa()).linear({.out = alone.view, .x = x.rows(t, 1), .weight = w.weight});
    ASSERT_TRUE(same_row(all, t, alone, 0));
  }
}

TEST_P(MatmulTest, LinearGluIsTheReference) {
  DG_TRACE_SEED();
  Random random(4);
  for (Shape shape : {Shape{33, 17}, Shape{128, 8}, Shape{600, 45}})
    for (int64_t tokens : {1, 4, 33}) {
      RandomWeight gate(format(), shape.out, shape.in, random), up(format(), shape.out, shape.in, random);
      Buffer x({tokens, shape.in}), expected({tokens, shape.out}), actual({tokens, shape.out}), g({tokens, shape.out}),
          u({tokens, shape.out});
      x.randomise(random, 3);
      LinearGlu op{.out = expected.view, .x = x.view, .gate = gate.weight, .up = up.weight, .scratch = nullptr};
      Scratch scratch(linear_glu_scratch_bytes(op));
      op.scratch = &scratch.arena;
      reference().linear_glu(op);
      op.out = actual.view;
      cpu(isa()).linear_glu(op);
      reference().linear({.out = g.view, .x = x.view, .weight = gate.weight});
      reference().linear({.out = u.view, .x = x.view, .weight = up.weight});
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t o = 0; o < shape.out; o++) {
          // d silu <= 1.1, |silu(g)| <= |g|; the product and silu round a few times.
          const double dg = sum_tolerance(shape.in, gate.row_norm(o), x.row_norm(t), format()),
                       du = sum_tolerance(shape.in, up.row_norm(o), x.row_norm(t), format());
          const double gv = std::fabs(g.at(t, o)), uv = std::fabs(u.at(t, o));
          ASSERT_NEAR(actual.at(t, o), expected.at(t, o), 1.1 * dg * uv + gv * du + 16 * kEps * gv * uv) << "token " << t << " out " << o;
        }
      actual.expect_gaps_untouched();
    }
}

TEST_P(MatmulTest, EmbedDecodesRows) {
  DG_TRACE_SEED();
  Random random(5);
  for (int64_t dim : {31, 64, 200}) {
    RandomWeight table(format(), 50, dim, random);
    Ints ids({0, 49, 7, 7, 31});
    Buffer expected({5, dim}), actual({5, dim});
    reference().embed({.out = expected.view, .ids = ids.view(), .table = table.weight});
    cpu(isa()).embed({.out = actual.view, .ids = ids.view(), .table = table.weight});
    EXPECT_TRUE(same_rows(expected, actual)) << "dim " << dim;
    actual.expect_gaps_untouched();
  }
}

struct ExpertSet {
  ExpertSet(const Format& format, int64_t count, int64_t dim, int64_t inner, Random& random) {
    weights.reserve(static_cast<size_t>(count) * 3);
    for (int64_t e = 0; e < count; e++) {
      weights.emplace_back(format, inner, dim, random);
      weights.emplace_back(format, inner, dim, random);
      weights.emplace_back(format, dim, inner, random);
      const size_t last = weights.size();
      experts.push_back({.gate = weights[last - 3].weight, .up = weights[last - 2].weight, .down = weights[last - 1].weight});
    }
  }
  std::vector<RandomWeight> weights;
  std::vector<Expert> experts;
};

// Random distinct experts per token among `count`.
Tensor random_route(std::vector<int32_t>& ids, Buffer& weights, int64_t tokens, int64_t top_k, int count, Random& random) {
  ids.clear();
  for (int64_t t = 0; t < tokens; t++)
    for (int64_t k = 0; k < top_k; k++) {
      int32_t id;
      do {
        id = random.below(count);
      } while (std::find(ids.end() - k, ids.end(), id) != ids.end());
      ids.push_back(id);
      weights.view.f32(t)[k] = std::fabs(random.normal());
    }
  return Tensor::of(ids.data(), Dtype::kI32, {tokens, top_k});
}

TEST_P(MatmulTest, MoeExpertsIsTheReference) {
  DG_TRACE_SEED();
  Random random(6);
  constexpr int64_t kTopK = 3;
  constexpr int kExperts = 9, kFirst = 2, kLocal = 5;  // experts 2..6 are here, the others on another device
  for (auto [dim, inner] : {std::pair<int64_t, int64_t>{64, 24}, {40, 72}, {130, 65}}) {
    ExpertSet set(format(), kLocal, dim, inner, random);
    for (int64_t tokens : {1, 2, 7, 33}) {
      Buffer x({tokens, dim}), before({tokens, dim}), weights({tokens, kTopK});
      x.randomise(random);
      before.randomise(random);
      std::vector<int32_t> ids;
      Tensor id_view = random_route(ids, weights, tokens, kTopK, kExperts, random);
      Buffer expected = before, actual = before;
      MoeExperts op{.out = expected.view,
                    .x = x.view,
                    .ids = id_view,
                    .weights = weights.view,
                    .experts = set.experts,
                    .first = kFirst,
                    .scratch = nullptr};
      Scratch scratch(moe_experts_scratch_bytes(op));  // exactly what the dry run would reserve
      op.scratch = &scratch.arena;
      reference().moe_experts(op);
      op.out = actual.view;
      cpu(isa()).moe_experts(op);
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < dim; i++) {
          // Weights are of norm about 1, so hidden values and results have the size of x; two products in a row.
          const double size = x.row_norm(t) * x.row_norm(t) / std::sqrt(static_cast<double>(dim)) + std::fabs(before.at(t, i)) + 1;
          ASSERT_NEAR(actual.at(t, i), expected.at(t, i),
                      (32 * kEps * std::sqrt(static_cast<double>(dim + inner)) + (accelerator() ? 4 * kBf16Eps : 0)) * size)
              << "dim " << dim << " tokens " << tokens << " at " << t << ", " << i;
        }
      actual.expect_gaps_untouched();
      // A token alone, and another thread count: the same bits.
      Buffer again = before;
      op.out = again.view;
      cpu(isa(), 3).moe_experts(op);
      EXPECT_TRUE(same_rows(again, actual));
      for (int64_t t = 0; t < tokens; t += 5) {
        Buffer one = before;
        cpu(isa()).moe_experts({.out = one.rows(t, 1),
                                .x = x.rows(t, 1),
                                .ids = id_view.slice(0, t, 1),
                                .weights = weights.rows(t, 1),
                                .experts = set.experts,
                                .first = kFirst,
                                .scratch = &scratch.arena});
        ASSERT_TRUE(same_row(one, t, actual, t)) << tokens << " tokens";
      }
    }
  }
}

TEST(MoeExperts, CallsLongerThanAChunk) {
  DG_TRACE_SEED();
  Random random(7);
  constexpr int64_t kTopK = 8, kDim = 32, kInner = 32;
  ExpertSet set(*find_format("bf16"), 1, kDim, kInner, random);
  MoeExperts op{};
  op.experts = set.experts;
  constexpr int64_t kTokens = 140000;
  Buffer x({kTokens, kDim}, 0), weights({kTokens, kTopK}, 0), expected({kTokens, kDim}, 0);
  x.randomise(random);
  for (int64_t t = 0; t < kTokens; t++) std::fill_n(expected.view.f32(t), kDim, 0.5f);
  std::vector<int32_t> ids;
  op.ids = random_route(ids, weights, kTokens, kTopK, 100, random);
  op.x = x.view, op.weights = weights.view, op.first = 41;
  ASSERT_LT(moe_experts_chunk(op), kTokens) << "the call must be longer than a chunk to test anything";
  Buffer actual = expected;
  Scratch scratch(moe_experts_scratch_bytes(op));
  op.scratch = &scratch.arena, op.out = expected.view;
  reference().moe_experts(op);
  op.out = actual.view;
  cpu(tested_isas().front()).moe_experts(op);
  int64_t changed = 0;
  for (int64_t t = 0; t < kTokens; t++)
    for (int64_t i = 0; i < kDim; i++) {
      ASSERT_NEAR(actual.at(t, i), expected.at(t, i), accelerator() ? 16 * kBf16Eps * (1 + std::fabs(expected.at(t, i))) : 1e-4)
          << "token " << t;
      changed += expected.at(t, i) != 0.5f;
    }
  EXPECT_GT(changed, kTokens) << "about 8 % of the tokens meet the expert";
}

INSTANTIATE_TEST_SUITE_P(Table, MatmulTest, ::testing::Combine(::testing::ValuesIn(tested_isas()), ::testing::ValuesIn(all_format_names())),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

}  // namespace
}  // namespace dg::ops_table
