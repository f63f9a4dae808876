// linear, linear_glu, embed and moe_experts with prepared weights (quant/panel.h): every format on every instruction set.
#include <algorithm>
#include <cmath>
#include <map>

#include "device/scratch.h"
#include "ops_table.h"
#include "quant/convert.h"
#include "quant/panel.h"

namespace dg::ops_table {
namespace {

class PreparedTest : public ::testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  std::string isa() const { return std::get<0>(GetParam()); }
  const Format& format() const { return *find_format(std::get<1>(GetParam())); }
  PanelKind kind() const { return panel_kind(format()); }
  bool bf16_products() const { return isa() == "amx" || isa() == "i8mm" || isa() == "sve2"; }  // of bf16 and FP8 weights
  bool fused() const {
#if defined(__aarch64__) || defined(__riscv)
    return true;
#else
    return isa() != "generic";  // the baseline of x86-64 has no fused multiply-add
#endif
  }
};

struct PanelShape {
  int64_t in, out;
};
// Around panels of 16 rows, groups of 4 and passes of 16 of them, chunks of 32, 64 and 128 columns and blocks of 128 and 512.
constexpr PanelShape kPanelShapes[] = {{1, 1},    {32, 16},  {33, 17},  {96, 40},   {127, 63},
                                       {129, 65}, {512, 80}, {530, 19}, {640, 272}, {1100, 130}};

// What the product multiplies with instead of x: the nearest of 255 steps per 512 columns, bf16, or x itself.
// `fused`: x * inverse is rounded once, together with the rounding to an integer.
std::vector<float> activation(PanelKind kind, bool bf16, bool fused, const float* x, int64_t in) {
  std::vector<float> out(x, x + in);
  if (is_integer(kind)) {
    for (int64_t k = 0; k < in; k += kPanelBlock) {
      float most = 0;
      const int64_t end = std::min(in, k + kPanelBlock);
      for (int64_t i = k; i < end; i++) most = std::max(most, std::fabs(x[i]));
      const float step = most / 127, inverse = most > 0 ? 127 / most : 0;
      for (int64_t i = k; i < end; i++) {
        const double scaled = fused ? static_cast<double>(x[i]) * static_cast<double>(inverse) : static_cast<double>(x[i] * inverse);
        out[static_cast<size_t>(i)] = static_cast<float>(std::nearbyint(scaled)) * step;
      }
    }
  } else if (bf16) {
    for (float& v : out) v = bf16_to_float(float_to_bf16(v));
  }
  return out;
}

// Element (row, k) of a 4-bit panel before the rounding to int8: scale * (nibble * m / 8 + z), or scale * table[nibble] * m / 128.
double exact_element(const Weight& w, int64_t row, int64_t k) {
  const PanelKind kind = panel_kind(*w.format);
  const int64_t o = row % kPanelRows, begin = k / kPanelBlock * kPanelBlock, at = k - begin;
  const int64_t width = std::min(kPanelBlock, panel_padded(kind, w.in) - begin);
  const std::byte* base =
      w.data + row / kPanelRows * panel_stride(kind, w.in) + begin / kPanelBlock * (panel_code_bytes(kind, kPanelBlock) + 64);
  const float scale = reinterpret_cast<const float*>(base + panel_code_bytes(kind, width))[o];
  const std::byte* chunk = base + at / kInt4Chunk * panel_code_bytes(kind, kInt4Chunk);
  const int code = panel_nibble(kind, chunk, o, at % kInt4Chunk);
  const int64_t group = at % kInt4Chunk / 32;
  const int m = static_cast<int8_t>(chunk[1024 + group * 16 + o]);
  if (kind == PanelKind::kInt4Table) return w.format->table4[code] * m / 128.0 * static_cast<double>(scale);
  const int z = kind == PanelKind::kInt4 ? -m : static_cast<int8_t>(chunk[1024 + 64 + group * 16 + o]);
  return (code * m / 8.0 + z) * static_cast<double>(scale);
}

// The panel holds the weight to within its grid: 1/254 of the largest of 512 for int8, and for 4-bit formats 1/254 of the group
// scale's reference (times 15 codes) on top.
TEST_P(PreparedTest, PanelsHoldTheWeight) {
  DG_TRACE_SEED();
  if (isa() != usable_cpu_isas().front()) return;  // packing does not depend on the instruction set
  Random random(11);
  for (PanelShape shape : kPanelShapes) {
    RandomWeight w(format(), shape.out, shape.in, random);
    Prepared p(cpu(isa()), w);
    std::vector<float> expected(static_cast<size_t>(shape.in)), actual(expected);
    for (int64_t row = 0; row < shape.out; row++) {
      w.weight.decode(row, 0, shape.in, expected.data());
      panel_decode(p.weight, row, 0, shape.in, actual.data());
      for (int64_t k = 0; k < shape.in; k++) {
        const int64_t begin = k / kPanelBlock * kPanelBlock, end = std::min(shape.in, begin + kPanelBlock);
        float most = 0;
        for (int64_t i = begin; i < end; i++) most = std::max(most, std::fabs(expected[static_cast<size_t>(i)]));
        const float exact = expected[static_cast<size_t>(k)];
        double bound = 1e-6 * std::fabs(exact);
        if (kind() == PanelKind::kBf16 && format().name == std::string("f16")) bound = std::fabs(exact) / 256 + 1e-30;
        if (kind() == PanelKind::kInt8) bound = most / 253;
        if (kind() == PanelKind::kInt4 || kind() == PanelKind::kInt4Offset) bound = most / 40;
        if (kind() == PanelKind::kInt4Table) bound = most / 90;
        ASSERT_NEAR(actual[static_cast<size_t>(k)], exact, bound) << shape.in << " x " << shape.out << " row " << row << " column " << k;
      }
    }
  }
}

TEST_P(PreparedTest, LinearMultipliesWhatThePanelsHold) {
  DG_TRACE_SEED();
  Random random(12);
  for (PanelShape shape : kPanelShapes)
    for (int64_t tokens : {1, 3, 16, 17, 50}) {
      RandomWeight w(format(), shape.out, shape.in, random);
      Prepared p(cpu(isa()), w);
      Buffer x({tokens, shape.in}, 3), bias({1, shape.out}), actual({tokens, shape.out}, 9);
      x.randomise(random);
      bias.randomise(random, 0.1f);
      cpu(isa()).linear({.out = actual.view,
                         .x = x.view,
                         .weight = p.weight,
                         .bias = tokens % 2 ? Tensor::of(bias.view.data, Dtype::kF32, {shape.out}) : Tensor{}});
      std::vector<float> row(static_cast<size_t>(shape.in));
      std::vector<std::vector<float>> xs;
      for (int64_t t = 0; t < tokens; t++) xs.push_back(activation(kind(), bf16_products(), fused(), x.view.f32(t), shape.in));
      for (int64_t o = 0; o < shape.out; o += 1 + shape.out / 20) {
        panel_decode(p.weight, o, 0, shape.in, row.data());
        for (int64_t t = 0; t < tokens; t++) {
          double sum = 0, size = 0;
          for (size_t k = 0; k < row.size(); k++) {
            const double product = static_cast<double>(row[k]) * static_cast<double>(xs[static_cast<size_t>(t)][k]);
            sum += product;
            size += std::fabs(product);
          }
          const double expected = sum + (tokens % 2 ? static_cast<double>(bias.at(0, o)) : 0);
          // Integer blocks are exact and a few float operations follow; float sums round once per product at most, at random.
          const double roundings = is_integer(kind()) ? 8 : 4 + std::sqrt(static_cast<double>(shape.in));
          ASSERT_NEAR(actual.at(t, o), expected, 2 * roundings * kEps * (size + std::fabs(expected)) + 1e-30)
              << "in " << shape.in << " out " << shape.out << " tokens " << tokens << " at " << t << ", " << o;
        }
      }
      actual.expect_gaps_untouched();
    }
}

// Few rows of 4-bit weights where batches need not agree: the codes and multipliers that the panel holds, not rounded to int8.
TEST_P(PreparedTest, FewRowsMultiplyTheCodesThemselves) {
  if (!has_nibbles(kind())) return;  // no other kind has such a path
  DG_TRACE_SEED();
  Random random(20);
  auto made = make_cpu_backend({.threads = 2, .isa = isa(), .pin = false, .batch_invariant = false});
  ASSERT_TRUE(made.ok());
  const bool exact = isa() == "amx" || isa() == "avx512_vnni";
  for (PanelShape shape : kPanelShapes)
    for (int64_t tokens : {1, 2, 3, 4, 5}) {
      RandomWeight w(format(), shape.out, shape.in, random);
      Prepared p(cpu(isa()), w);
      Buffer x({tokens, shape.in}, 3), actual({tokens, shape.out}, 9), rounded({tokens, shape.out}), one({1, shape.out});
      x.randomise(random);
      (*made)->linear({.out = actual.view, .x = x.view, .weight = p.weight});
      if (!exact || tokens > 4) {  // nothing better there
        cpu(isa()).linear({.out = rounded.view, .x = x.view, .weight = p.weight});
        ASSERT_TRUE(same_rows(actual, rounded));
        continue;
      }
      // A row is still the same in all such batches.
      (*made)->linear({.out = one.view, .x = x.rows(tokens - 1, 1), .weight = p.weight});
      ASSERT_TRUE(same_row(actual, tokens - 1, one, 0)) << tokens;
      std::vector<double> row(static_cast<size_t>(shape.in));
      for (int64_t o = 0; o < shape.out; o += 1 + shape.out / 20) {
        for (int64_t k = 0; k < shape.in; k++) row[static_cast<size_t>(k)] = exact_element(p.weight, o, k);
        for (int64_t t = 0; t < tokens; t++) {
          const std::vector<float> xs = activation(kind(), false, true, x.view.f32(t), shape.in);
          double sum = 0, size = 0;
          for (size_t k = 0; k < row.size(); k++) sum += row[k] * static_cast<double>(xs[k]), size += std::fabs(row[k] * xs[k]);
          ASSERT_NEAR(actual.at(t, o), sum, 16 * kEps * (size + std::fabs(sum)) + 1e-30)
              << "in " << shape.in << " out " << shape.out << " tokens " << tokens << " at " << t << ", " << o;
        }
      }
      actual.expect_gaps_untouched();
    }
}

// The contract of Linear: a row is a function of its own row of x alone, bit for bit, for any batch and thread count.
TEST_P(PreparedTest, RowsDoNotDependOnTheBatchOrTheThreads) {
  DG_TRACE_SEED();
  Random random(13);
  for (PanelShape shape : {PanelShape{64, 24}, PanelShape{530, 291}, PanelShape{1100, 75}}) {
    constexpr int64_t kTokens = 37;
    RandomWeight w(format(), shape.out, shape.in, random), g(format(), shape.out, shape.in, random);
    Prepared up(cpu(isa()), w), gate(cpu(isa()), g);
    Buffer x({kTokens, shape.in}), alone({kTokens, shape.out}), alone_glu({kTokens, shape.out});
    x.randomise(random);
    for (int64_t t = 0; t < kTokens; t++) {
      cpu(isa(), 1).linear({.out = alone.rows(t, 1), .x = x.rows(t, 1), .weight = up.weight});
      cpu(isa(), 1).linear_glu({.out = alone_glu.rows(t, 1), .x = x.rows(t, 1), .gate = gate.weight, .up = up.weight, .scratch = nullptr});
    }
    for (int64_t tokens : {2, 5, 15, 16, 17, 32, 33, 37}) {
      Buffer batch({tokens, shape.out}), batch_glu({tokens, shape.out});
      const int64_t first = kTokens - tokens;
      const int threads = 1 + static_cast<int>(tokens % 5);
      cpu(isa(), threads).linear({.out = batch.view, .x = x.rows(first, tokens), .weight = up.weight});
      cpu(isa(), threads)
          .linear_glu({.out = batch_glu.view, .x = x.rows(first, tokens), .gate = gate.weight, .up = up.weight, .scratch = nullptr});
      for (int64_t t = 0; t < tokens; t++) {
        ASSERT_TRUE(same_row(batch, t, alone, first + t)) << "linear, " << tokens << " tokens, in " << shape.in;
        ASSERT_TRUE(same_row(batch_glu, t, alone_glu, first + t)) << "linear_glu, " << tokens << " tokens, in " << shape.in;
      }
    }
  }
}

TEST_P(PreparedTest, LinearGluGatesTwoProducts) {
  DG_TRACE_SEED();
  Random random(14);
  for (int64_t tokens : {1, 20}) {
    RandomWeight w(format(), 90, 200, random), g(format(), 90, 200, random);
    Prepared up(cpu(isa()), w), gate(cpu(isa()), g);
    Buffer x({tokens, 200}), actual({tokens, 90}), u({tokens, 90}), v({tokens, 90});
    x.randomise(random, 2);
    cpu(isa()).linear_glu({.out = actual.view, .x = x.view, .gate = gate.weight, .up = up.weight, .scratch = nullptr});
    cpu(isa()).linear({.out = u.view, .x = x.view, .weight = up.weight});
    cpu(isa()).linear({.out = v.view, .x = x.view, .weight = gate.weight});
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t o = 0; o < 90; o++) {
        const double z = v.at(t, o), expected = z / (1 + std::exp(-z)) * u.at(t, o);
        ASSERT_NEAR(actual.at(t, o), expected, 16 * kEps * std::fabs(expected) + 1e-30);
      }
  }
}

// More tokens than share one unpacking (512), with and without a last partial tile.
TEST_P(PreparedTest, LongBatches) {
  DG_TRACE_SEED();
  Random random(15);
  constexpr int64_t kTokens = 1029, kIn = 96, kOut = 40;
  RandomWeight w(format(), kOut, kIn, random);
  Prepared p(cpu(isa()), w);
  Buffer x({kTokens, kIn}), all({kTokens, kOut}), alone({1, kOut});
  x.randomise(random);
  cpu(isa()).linear({.out = all.view, .x = x.view, .weight = p.weight});
  for (int64_t t : {0, 15, 16, 511, 512, 1023, 1024, 1028}) {
    cpu(isa()).linear({.out = alone.view, .x = x.rows(t, 1), .weight = p.weight});
    ASSERT_TRUE(same_row(all, t, alone, 0)) << t;
  }
}

TEST_P(PreparedTest, EmbedDecodesTiedRows) {
  Random random(16);
  RandomWeight w(format(), 50, 200, random);
  Prepared p(cpu(isa()), w);
  Ints ids({0, 49, 7, 7, 31});
  Buffer actual({5, 200});
  cpu(isa()).embed({.out = actual.view, .ids = ids.view(), .table = p.weight});
  std::vector<float> row(200);
  for (int64_t t = 0; t < 5; t++) {
    panel_decode(p.weight, ids.values[static_cast<size_t>(t)], 0, 200, row.data());
    for (int64_t k = 0; k < 200; k++) ASSERT_EQ(actual.at(t, k), row[static_cast<size_t>(k)]);
  }
  actual.expect_gaps_untouched();
}

// x[columns[k]] meets column k.
TEST_P(PreparedTest, ColumnsPermuteTheInput) {
  DG_TRACE_SEED();
  Random random(17);
  constexpr int64_t kIn = 160, kOut = 33, kTokens = 18;
  RandomWeight w(format(), kOut, kIn, random);
  Prepared p(cpu(isa()), w);
  Buffer x({kTokens, kIn}), permuted({kTokens, kIn}), actual({kTokens, kOut}), expected({kTokens, kOut});
  x.randomise(random);
  std::vector<int32_t> columns(kIn);
  for (int64_t k = 0; k < kIn; k++) columns[static_cast<size_t>(k)] = static_cast<int32_t>((k * 7 + 3) % kIn);
  for (int64_t t = 0; t < kTokens; t++)
    for (int64_t k = 0; k < kIn; k++) permuted.view.f32(t)[k] = x.at(t, columns[static_cast<size_t>(k)]);
  cpu(isa()).linear({.out = expected.view, .x = permuted.view, .weight = p.weight});
  p.weight.columns = columns.data();
  cpu(isa()).linear({.out = actual.view, .x = x.view, .weight = p.weight});
  EXPECT_TRUE(same_rows(actual, expected));
}

// Experts: every pair is a gated product and a product with its expert's weights, whatever else is routed.
TEST_P(PreparedTest, MoeExpertsIsTheSumOfItsPairs) {
  DG_TRACE_SEED();
  Random random(18);
  constexpr int64_t kTopK = 2, kDim = 130, kInner = 72;
  constexpr int kLocal = 4, kFirst = 3;
  std::vector<Prepared> weights;
  weights.reserve(kLocal * 3);
  std::vector<Expert> experts;
  for (int e = 0; e < kLocal; e++) {
    for (auto [out, in] : {std::pair{kInner, kDim}, {kInner, kDim}, {kDim, kInner}}) {
      RandomWeight w(format(), out, in, random);
      weights.emplace_back(cpu(isa()), w);
    }
    const size_t last = weights.size();
    experts.push_back({.gate = weights[last - 3].weight, .up = weights[last - 2].weight, .down = weights[last - 1].weight});
  }
  for (int64_t tokens : {1, 40}) {
    Buffer x({tokens, kDim}), route({tokens, kTopK}), before({tokens, kDim});
    x.randomise(random);
    route.randomise(random);
    before.randomise(random);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < tokens; t++) {
      const int id = random.below(kLocal + 2 * kFirst);
      ids.push_back(id);
      ids.push_back((id + 1) % (kLocal + 2 * kFirst));
    }
    Buffer expected = before, actual = before, hidden({1, kInner}), result({1, kDim});
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t k = 0; k < kTopK; k++) {
        const int e = ids[static_cast<size_t>(t * kTopK + k)] - kFirst;
        if (e < 0 || e >= kLocal) continue;
        const Expert& expert = experts[static_cast<size_t>(e)];
        cpu(isa()).linear_glu({.out = hidden.view, .x = x.rows(t, 1), .gate = expert.gate, .up = expert.up, .scratch = nullptr});
        cpu(isa()).linear({.out = result.view, .x = hidden.view, .weight = expert.down});
        for (int64_t i = 0; i < kDim; i++) expected.view.f32(t)[i] += route.at(t, k) * result.at(0, i);
      }
    MoeExperts op{.out = actual.view,
                  .x = x.view,
                  .ids = Tensor::of(ids.data(), Dtype::kI32, {tokens, kTopK}),
                  .weights = route.view,
                  .experts = experts,
                  .first = kFirst,
                  .scratch = nullptr};
    Scratch scratch(moe_experts_scratch_bytes(op));
    op.scratch = &scratch.arena;
    cpu(isa()).moe_experts(op);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t i = 0; i < kDim; i++) ASSERT_NEAR(actual.at(t, i), expected.at(t, i), 8 * kEps * (std::fabs(expected.at(t, i)) + 8));
    actual.expect_gaps_untouched();
    Buffer again = before;
    op.out = again.view;
    cpu(isa(), 3).moe_experts(op);
    EXPECT_TRUE(same_rows(again, actual));
  }
}

std::vector<std::string> prepared_format_names() {
  std::vector<std::string> names;
  if (accelerator()) return names;  // accelerator_test.cpp
  for (const std::string& name : all_format_names())
    if (panel_kind(*find_format(name)) != PanelKind::kNone) names.push_back(name);
  return names;
}

// Integer products are exact, and what follows is the same arithmetic: families with fused multiply-add agree bit for bit.
TEST(Prepared, FamiliesAgreeOnIntegerProducts) {
  if (accelerator()) return;  // the CPU's layouts
  DG_TRACE_SEED();
  Random random(19);
  for (const std::string& name : prepared_format_names()) {
    if (!is_integer(panel_kind(*find_format(name)))) continue;
    RandomWeight w(*find_format(name), 70, 1100, random);
    Buffer x({20, 1100}), first({20, 70});
    x.randomise(random);
    bool have_first = false;
    for (const std::string& isa : usable_cpu_isas()) {
      if (isa == "generic") continue;  // without fused multiply-add
      Prepared p(cpu(isa), w);
      Buffer out({20, 70});
      cpu(isa).linear({.out = out.view, .x = x.view, .weight = p.weight});
      if (have_first) EXPECT_TRUE(same_rows(out, first)) << isa << " " << name;
      else
        for (int64_t t = 0; t < 20; t++) std::copy_n(out.view.f32(t), 70, first.view.f32(t));
      have_first = true;
    }
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PreparedTest);
INSTANTIATE_TEST_SUITE_P(Table, PreparedTest,
                         ::testing::Combine(::testing::ValuesIn(usable_cpu_isas()), ::testing::ValuesIn(prepared_format_names())),
                         [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

}  // namespace
}  // namespace dg::ops_table
