// Ops over rows, the cache write, routing, and the choice of an instruction set.
#include <algorithm>
#include <cmath>

#include "ops_table.h"
#include "quant/convert.h"

namespace dg::ops_table {
namespace {

class RowsTest : public ::testing::TestWithParam<std::string> {
 protected:
  Backend& tested() const { return cpu(GetParam()); }
};

constexpr int64_t kWidths[] = {1, 5, 16, 31, 64, 200, 1027, 7168, 16500};

TEST_P(RowsTest, RmsNorm) {
  DG_TRACE_SEED();
  Random random(31);
  for (int64_t dim : kWidths)
    for (int64_t tokens : {1, 33}) {
      Buffer x({tokens, 3, dim}), weight({1, dim}), expected({tokens, 3, dim}), actual({tokens, 3, dim}, 11);
      x.randomise(random, 2);
      weight.randomise(random);
      Tensor w = Tensor::of(weight.view.data, Dtype::kF32, {dim});
      reference().rms_norm({.out = expected.view, .x = x.view, .weight = w, .eps = 1e-6f});
      tested().rms_norm({.out = actual.view, .x = x.view, .weight = w, .eps = 1e-6f});
      // The sum of squares has no cancellation: its relative error is at most dim eps, half of it after the root.
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t i = 0; i < 3 * dim; i++)
          ASSERT_NEAR(actual.at(t, i), expected.at(t, i), (static_cast<double>(dim) + 8) * kEps * std::fabs(expected.at(t, i)))
              << "dim " << dim;
      actual.expect_gaps_untouched();
      Buffer in_place = x;
      tested().rms_norm({.out = in_place.view, .x = in_place.view, .weight = w, .eps = 1e-6f});
      EXPECT_TRUE(same_rows(in_place, actual));
    }
}

TEST_P(RowsTest, AddRmsNorm) {
  DG_TRACE_SEED();
  Random random(32);
  for (int64_t dim : kWidths) {
    Buffer residual({4, dim}), delta({4, dim}), weight({1, dim}), expected({4, dim}), actual({4, dim});
    residual.randomise(random), delta.randomise(random), weight.randomise(random);
    Tensor w = Tensor::of(weight.view.data, Dtype::kF32, {dim});
    Buffer r1 = residual, r2 = residual;
    reference().add_rms_norm({.out = expected.view, .residual = r1.view, .delta = delta.view, .weight = w, .eps = 1e-5f});
    tested().add_rms_norm({.out = actual.view, .residual = r2.view, .delta = delta.view, .weight = w, .eps = 1e-5f});
    EXPECT_TRUE(same_rows(r1, r2)) << "one addition rounds alike everywhere";
    for (int64_t t = 0; t < 4; t++)
      for (int64_t i = 0; i < dim; i++)
        ASSERT_NEAR(actual.at(t, i), expected.at(t, i), (static_cast<double>(dim) + 8) * kEps * std::fabs(expected.at(t, i)));
    actual.expect_gaps_untouched();
    r2.expect_gaps_untouched();
  }
}

TEST_P(RowsTest, RopeAndHeadNorm) {
  DG_TRACE_SEED();
  Random random(33);
  for (int64_t dim : {2, 6, 64, 128})
    for (bool interleaved : {false, true})
      for (bool norm : {false, true}) {
        constexpr int64_t kTokens = 6, kHeads = 3;
        Buffer x({kTokens, kHeads, dim}), weight({1, dim});
        x.randomise(random), weight.randomise(random);
        Ints positions({0, 1, 4095, 163839, 1000000, 17});
        std::vector<float> inv_freq;
        for (int64_t i = 0; i < dim / 2; i++)
          inv_freq.push_back(std::pow(10000.0f, -2.0f * static_cast<float>(i) / static_cast<float>(dim)));
        HeadNormRope op{.x = {},
                        .weight = norm ? Tensor::of(weight.view.data, Dtype::kF32, {dim}) : Tensor{},
                        .eps = 1e-6f,
                        .positions = positions.view(),
                        .inv_freq = Tensor::of(inv_freq.data(), Dtype::kF32, {dim / 2}),
                        .interleaved = interleaved,
                        .magnitude = 1.25f};
        Buffer expected = x, actual = x;
        op.x = expected.view;
        reference().head_norm_rope(op);
        op.x = actual.view;
        tested().head_norm_rope(op);
        for (int64_t t = 0; t < kTokens; t++)
          for (int64_t i = 0; i < kHeads * dim; i++)  // a pair keeps its length: errors are relative to the row
            ASSERT_NEAR(actual.at(t, i), expected.at(t, i), (norm ? static_cast<double>(dim) + 16 : 8) * kEps * expected.row_norm(t))
                << "dim " << dim << " interleaved " << interleaved << " token " << t;
        actual.expect_gaps_untouched();
        // Other positions with the same frequencies must not find the old angles.
        Ints shifted({1, 2, 3, 4, 5, 6});
        op.positions = shifted.view();
        Buffer expected2 = x, actual2 = x;
        op.x = expected2.view;
        reference().head_norm_rope(op);
        op.x = actual2.view;
        tested().head_norm_rope(op);
        for (int64_t t = 0; t < kTokens; t++)
          for (int64_t i = 0; i < kHeads * dim; i++)
            ASSERT_NEAR(actual2.at(t, i), expected2.at(t, i), (norm ? static_cast<double>(dim) + 16 : 8) * kEps * expected2.row_norm(t));
      }
}

TEST_P(RowsTest, ActMulIsSiluWithinAFewUlps) {
  DG_TRACE_SEED();
  Random random(34);
  std::vector<float> gates = {0.0f, -0.0f, 1e-30f, -1e-30f, 88.0f, -86.0f, 100.0f, -100.0f, 3e38f, -3e38f, 16.7f, -16.7f};
  for (int i = 0; i < 4000; i++) gates.push_back(random.normal() * 20);
  const auto n = static_cast<int64_t>(gates.size());
  Buffer gate({1, n}), up({1, n}), out({1, n});
  for (int64_t i = 0; i < n; i++) gate.view.f32(0)[i] = gates[static_cast<size_t>(i)], up.view.f32(0)[i] = 1.0f;
  tested().act_mul({.out = out.view, .gate = gate.view, .up = up.view});
  for (int64_t i = 0; i < n; i++) {
    const double g = gate.at(0, i), exact = g / (1.0 + std::exp(-g));
    // e^-g within 2 ulp, then three roundings; below -87 the result is of the order of the smallest floats.
    ASSERT_NEAR(out.at(0, i), exact, 16 * kEps * std::fabs(exact) + 1e-35) << "gate " << g;
  }
  const float nan = std::nanf("");
  gate.view.f32(0)[3] = nan;
  tested().act_mul({.out = out.view, .gate = gate.view, .up = up.view});
  EXPECT_TRUE(std::isnan(out.at(0, 3))) << "a NaN must stay visible";
  out.expect_gaps_untouched();
}

TEST_P(RowsTest, AddGatherFill) {
  DG_TRACE_SEED();
  Random random(35);
  for (int64_t dim : kWidths) {
    Buffer a({40, dim}), b({40, dim}), expected({40, dim}), actual({40, dim});
    a.randomise(random), b.randomise(random);
    reference().add({.out = expected.view, .a = a.view, .b = b.view});
    tested().add({.out = actual.view, .a = a.view, .b = b.view});
    EXPECT_TRUE(same_rows(expected, actual));
    actual.expect_gaps_untouched();
    Ints rows({39, 0, 7, 7});
    Buffer gathered({4, dim});
    tested().gather_rows({.out = gathered.view, .x = a.view, .rows = rows.view()});
    for (int64_t i = 0; i < 4; i++) EXPECT_TRUE(same_row(gathered, i, a, rows.values[static_cast<size_t>(i)]));
    gathered.expect_gaps_untouched();
    tested().fill({.out = gathered.view, .value = -2.5f});
    for (int64_t i = 0; i < dim; i++) ASSERT_EQ(gathered.at(3, i), -2.5f);
    gathered.expect_gaps_untouched();
  }
}

// Conversions round to nearest even: bit for bit the reference's, whatever the vector width.
TEST_P(RowsTest, CopyConverts) {
  DG_TRACE_SEED();
  Random random(36);
  const Dtype types[] = {Dtype::kF32, Dtype::kBf16, Dtype::kF16};
  for (Dtype from : types)
    for (Dtype to : types) {
      constexpr int64_t kRows = 5, kCols = 77;
      std::vector<std::byte> source(kRows * (kCols + 3) * 4), expected(source.size(), std::byte{0x5a}), actual = expected;
      Tensor x = Tensor::of(source.data(), from, {kRows, kCols}), e = Tensor::of(expected.data(), to, {kRows, kCols}), a = e;
      x.stride[0] = e.stride[0] = a.stride[0] = kCols + 3;
      a.data = actual.data();
      for (int64_t t = 0; t < kRows; t++)
        for (int64_t i = 0; i < kCols; i++) {
          const float v = random.normal() * std::pow(10.0f, static_cast<float>(random.below(12) - 8));
          if (from == Dtype::kF32) *x.ptr<float>(t, i) = v;
          else *x.ptr<uint16_t>(t, i) = from == Dtype::kBf16 ? float_to_bf16(v) : float_to_f16(v);
        }
      reference().copy({.out = e, .x = x});
      tested().copy({.out = a, .x = x});
      EXPECT_EQ(expected, actual) << dtype_word(from) << " -> " << dtype_word(to);
    }
}

TEST_P(RowsTest, KvWrite) {
  DG_TRACE_SEED();
  Random random(37);
  for (Dtype type : {Dtype::kF32, Dtype::kBf16, Dtype::kF16}) {
    constexpr int64_t kBlocks = 6, kBlockTokens = 4, kWidth = 37;
    std::vector<std::byte> expected(kBlocks * kBlockTokens * (kWidth + 2) * 4, std::byte{0x33}), actual = expected;
    PagedCache e{Tensor::of(expected.data(), type, {kBlocks, kBlockTokens, kWidth})};
    e.data.stride[1] = kWidth + 2;
    e.data.stride[0] = kBlockTokens * (kWidth + 2);
    PagedCache a = e;
    a.data.data = actual.data();
    Buffer values({5, kWidth});
    values.randomise(random);
    Ints slots({0, 23, 9, 4, 15});
    reference().kv_write({.cache = e, .values = values.view, .slots = slots.view()});
    tested().kv_write({.cache = a, .values = values.view, .slots = slots.view()});
    EXPECT_EQ(expected, actual) << dtype_word(type);
  }
}

// Several positions and every cache type: queries and keys are rotated as by head_norm_rope, and the cache holds, byte for byte, what
// kv_write makes of the rows that the op leaves behind.
TEST_P(RowsTest, RopeKvWrite) {
  DG_TRACE_SEED();
  Random random(40);
  struct Case {
    int64_t heads, kv_heads, dim;
    bool norm;
  };
  for (const Case& c : {Case{4, 2, 64, false}, Case{7, 1, 128, true}, Case{3, 3, 80, true}, Case{2, 1, 96, false}, Case{4, 2, 192, true}})
    for (Dtype type : {Dtype::kF32, Dtype::kBf16, Dtype::kF16, Dtype::kF8E4m3, Dtype::kI8})
      for (int64_t tokens : {1, 3, 70}) {
        const int64_t width = c.kv_heads * c.dim, gap = c.dim == 64 ? 3 : 0, half = c.dim / 2;
        const double bound = (c.norm ? static_cast<double>(c.dim) + 16 : 8) * kEps;
        Buffer q({tokens, c.heads, c.dim}, c.dim == 64 ? 4 : 5), k({tokens, width}, 4), v({tokens, width}, 8), norms({2, c.dim});
        q.randomise(random), k.randomise(random), v.randomise(random, 3), norms.randomise(random);
        std::vector<float> inv_freq;
        for (int64_t i = 0; i < half; i++) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(half)));
        std::vector<int32_t> places, positions;
        for (int32_t t = 0; t < tokens; t++) places.push_back(t * 7 % 81), positions.push_back(t == 1 ? 163839 : t * 13);
        Ints slots(places), at(positions);
        Cache k_cache(type, 4, width, gap), v_cache(type, 4, width, gap);
        k_cache.add_sequence(90, random), v_cache.add_sequence(90, random);
        k_cache.finish(random), v_cache.finish_like(k_cache);
        Cache k_expected = k_cache, v_expected = v_cache;
        Buffer q_expected = q, k_rotated = k, v_was = v;
        RopeKvWrite op{.q = q_expected.view,
                       .k = k_rotated.view,
                       .v = v.view,
                       .q_weight = c.norm ? Tensor::of(norms.view.f32(0), Dtype::kF32, {c.dim}) : Tensor{},
                       .k_weight = c.norm ? Tensor::of(norms.view.f32(1), Dtype::kF32, {c.dim}) : Tensor{},
                       .eps = 1e-6f,
                       .positions = at.view(),
                       .inv_freq = Tensor::of(inv_freq.data(), Dtype::kF32, {half}),
                       .slots = slots.view(),
                       .magnitude = 1.25f,
                       .k_cache = k_expected.view(),
                       .v_cache = v_expected.view()};
        reference().rope_kv_write(op);
        op.q = q.view, op.k = k.view, op.k_cache = k_cache.view(), op.v_cache = v_cache.view();
        tested().rope_kv_write(op);
        SCOPED_TRACE(std::string(dtype_word(type)) + ", heads of " + std::to_string(c.dim) + ", tokens " + std::to_string(tokens));
        for (int64_t t = 0; t < tokens; t++) {
          for (int64_t i = 0; i < c.heads * c.dim; i++) ASSERT_NEAR(q.at(t, i), q_expected.at(t, i), bound * q_expected.row_norm(t));
          for (int64_t i = 0; i < width; i++) ASSERT_NEAR(k.at(t, i), k_rotated.at(t, i), bound * k_rotated.row_norm(t));
        }
        q.expect_gaps_untouched(), k.expect_gaps_untouched();
        reference().kv_write({.cache = k_expected.view(), .values = k.view, .slots = slots.view()});
        EXPECT_TRUE(k_cache.same_bytes(k_expected));
        EXPECT_TRUE(v_cache.same_bytes(v_expected));
        EXPECT_TRUE(same_rows(v, v_was));
      }
}

TEST_P(RowsTest, LatentKvWrite) {
  DG_TRACE_SEED();
  Random random(41);
  struct Case {
    int64_t lora, rope, q_lora, heads;  // q_lora or heads: 0
  };
  for (const Case& c : {Case{512, 64, 1536, 0}, Case{512, 64, 0, 16}, Case{512, 64, 0, 0}, Case{24, 8, 40, 0}, Case{30, 6, 0, 3}})
    for (Dtype type : {Dtype::kF32, Dtype::kBf16, Dtype::kF16, Dtype::kF8E4m3, Dtype::kI8})
      for (int64_t tokens : {1, 3, 70}) {
        const int64_t width = c.lora + c.rope, half = c.rope / 2, gap = tokens == 3 ? 2 : 0, q_dim = c.rope + 8;
        Buffer latent({tokens, width}, tokens == 1 ? 5 : 4), weight({1, c.lora}, 4), low({tokens, std::max<int64_t>(1, c.q_lora)}, 4);
        Buffer low_weight({1, std::max<int64_t>(1, c.q_lora)}, 4), queries({tokens, std::max<int64_t>(1, c.heads), q_dim}, 4);
        latent.randomise(random), weight.randomise(random), low.randomise(random), low_weight.randomise(random), queries.randomise(random);
        std::vector<float> inv_freq;
        for (int64_t i = 0; i < half; i++) inv_freq.push_back(std::pow(10000.0f, -static_cast<float>(i) / static_cast<float>(half)));
        std::vector<int32_t> places, positions;
        for (int32_t t = 0; t < tokens; t++) places.push_back(t * 7 % 81), positions.push_back(t == 1 ? 163839 : t * 13);
        Ints slots(places), at(positions);
        Cache cache(type, 4, width, gap);
        cache.add_sequence(90, random);
        cache.finish(random);
        Cache expected = cache;
        Buffer latent_expected = latent, low_expected = low, queries_expected = queries;
        const auto op_of = [&](Buffer& l, Buffer& q_low, Buffer& q, Cache& to) {
          return LatentKvWrite{.latent = l.view,
                               .weight = Tensor::of(weight.view.data, Dtype::kF32, {c.lora}),
                               .q_low = c.q_lora ? q_low.view : Tensor{},
                               .q_low_weight = c.q_lora ? Tensor::of(low_weight.view.data, Dtype::kF32, {c.q_lora}) : Tensor{},
                               .q_pe = c.heads ? q.view.slice(2, 8, c.rope) : Tensor{},
                               .eps = 1e-6f,
                               .positions = at.view(),
                               .inv_freq = Tensor::of(inv_freq.data(), Dtype::kF32, {half}),
                               .slots = slots.view(),
                               .magnitude = 1.25f,
                               .cache = to.view()};
        };
        reference().latent_kv_write(op_of(latent_expected, low_expected, queries_expected, expected));
        tested().latent_kv_write(op_of(latent, low, queries, cache));
        SCOPED_TRACE(std::string(dtype_word(type)) + ", width " + std::to_string(width) + ", tokens " + std::to_string(tokens));
        for (int64_t t = 0; t < tokens; t++) {
          for (int64_t i = 0; i < width; i++)  // the norm's error is relative to the element, the rotation's to its pair
            ASSERT_NEAR(latent.at(t, i), latent_expected.at(t, i),
                        i < c.lora ? (static_cast<double>(c.lora) + 8) * kEps * std::fabs(latent_expected.at(t, i))
                                   : 8 * kEps * latent_expected.row_norm(t));
          for (int64_t i = 0; i < c.q_lora; i++)
            ASSERT_NEAR(low.at(t, i), low_expected.at(t, i), (static_cast<double>(c.q_lora) + 8) * kEps * std::fabs(low_expected.at(t, i)));
          for (int64_t i = 0; i < c.heads * q_dim; i++)
            ASSERT_NEAR(queries.at(t, i), queries_expected.at(t, i), 8 * kEps * queries_expected.row_norm(t));
        }
        latent.expect_gaps_untouched(), low.expect_gaps_untouched(), queries.expect_gaps_untouched();
        reference().kv_write({.cache = expected.view(), .values = latent.view, .slots = slots.view()});
        EXPECT_TRUE(cache.same_bytes(expected));
      }
}

// Each part is the product by itself.
TEST_P(RowsTest, LinearSeveral) {
  DG_TRACE_SEED();
  Random random(42);
  for (const char* name : {"bf16", "fp8_block"})
    for (int64_t tokens : {1, 5, 70}) {
      const Format& format = *find_format(name);
      RandomWeight a(format, 256, 128, random), b(format, 64, 128, random), d(format, 128, 128, random);
      Buffer x({tokens, 128}, 8), bias({1, 256}), y1({tokens, 256}), y2({tokens, 64}), y3({tokens, 128}), e1 = y1, e2 = y2, e3 = y3;
      x.randomise(random), bias.randomise(random);
      const Tensor added = Tensor::of(bias.view.data, Dtype::kF32, {256});
      tested().linear({.out = e1.view, .x = x.view, .weight = a.weight, .bias = added});
      tested().linear({.out = e2.view, .x = x.view, .weight = b.weight});
      tested().linear({.out = e3.view, .x = x.view, .weight = d.weight});
      for (int count : {2, 3}) {
        tested().linear_several({.x = x.view,
                                 .parts = {{y1.view, a.weight, added},
                                           {y2.view, b.weight},
                                           {count == 3 ? y3.view : Tensor{}, count == 3 ? d.weight : Weight{}}},
                                 .count = count});
        EXPECT_TRUE(same_rows(y1, e1) && same_rows(y2, e2) && (count == 2 || same_rows(y3, e3))) << name << ", tokens " << tokens;
      }
      y1.expect_gaps_untouched(), y2.expect_gaps_untouched(), y3.expect_gaps_untouched();
    }
}

TEST_P(RowsTest, MoeRoute) {
  DG_TRACE_SEED();
  Random random(38);
  struct Case {
    int experts, top_k, groups, top_groups;
    RouterScore score;
    GroupScore group_score;
    bool bias, normalise, ties;
    int64_t tokens = 40;
  };
  const Case cases[] = {
      {64, 6, 1, 1, RouterScore::kSoftmax, GroupScore::kMax, false, false, false},       // V2-Lite
      {160, 6, 8, 3, RouterScore::kSoftmax, GroupScore::kMax, false, false, false},      // V2
      {256, 8, 8, 4, RouterScore::kSigmoid, GroupScore::kTopTwoSum, true, true, false},  // V3
      {16, 4, 4, 2, RouterScore::kSigmoid, GroupScore::kTopTwoSum, true, true, true},
      {12, 12, 3, 2, RouterScore::kSoftmax, GroupScore::kMax, false, true, true},      // more asked than the groups hold
      {8, 2, 8, 4, RouterScore::kSigmoid, GroupScore::kTopTwoSum, false, true, true},  // groups of one
      {1, 1, 1, 1, RouterScore::kSoftmax, GroupScore::kMax, false, true, false},
      {100, 7, 5, 3, RouterScore::kSigmoid, GroupScore::kMax, true, true, true},              // groups and experts of no power of two
      {512, 10, 1, 1, RouterScore::kSoftmax, GroupScore::kMax, false, true, false},           // more experts than models have today
      {1024, 40, 64, 9, RouterScore::kSigmoid, GroupScore::kTopTwoSum, true, true, false},    // more groups than lanes of a warp
      {256, 8, 8, 4, RouterScore::kSigmoid, GroupScore::kTopTwoSum, true, true, false, 1},    // one token
      {256, 8, 8, 4, RouterScore::kSigmoid, GroupScore::kTopTwoSum, true, true, false, 140},  // many
      {128, 8, 1, 1, RouterScore::kSoftmax, GroupScore::kMax, false, true, true, 140},
  };
  for (const Case& c : cases) {
    const int64_t tokens = c.tokens;
    Buffer logits({tokens, c.experts}), bias({1, c.experts}), w1({tokens, c.top_k}), w2({tokens, c.top_k});
    logits.randomise(random, 2);
    bias.randomise(random, 0.1f);
    if (c.ties)  // few distinct values: many equal scores
      for (int64_t t = 0; t < tokens; t++)
        for (int64_t e = 0; e < c.experts; e++) logits.view.f32(t)[e] = static_cast<float>(random.below(3)), bias.view.f32(0)[e] = 0.25f;
    std::vector<int32_t> i1(static_cast<size_t>(tokens * c.top_k), -7), i2 = i1;
    MoeRoute op{.ids = Tensor::of(i1.data(), Dtype::kI32, {tokens, c.top_k}),
                .weights = w1.view,
                .logits = logits.view,
                .bias = c.bias ? Tensor::of(bias.view.data, Dtype::kF32, {c.experts}) : Tensor{},
                .score = c.score,
                .group_score = c.group_score,
                .groups = c.groups,
                .top_groups = c.top_groups,
                .normalise = c.normalise,
                .routed_scale = 2.5f};
    reference().moe_route(op);
    op.ids = Tensor::of(i2.data(), Dtype::kI32, {tokens, c.top_k}), op.weights = w2.view;
    tested().moe_route(op);
    EXPECT_EQ(i1, i2) << c.experts << " experts";
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t k = 0; k < c.top_k; k++) ASSERT_NEAR(w1.at(t, k), w2.at(t, k), 8 * kEps * w1.at(t, k));
    w2.expect_gaps_untouched();
  }
}

TEST_P(RowsTest, MoeRouteSurvivesNan) {
  Buffer logits({1, 8}), weights({1, 4});
  for (int64_t e = 0; e < 8; e++) logits.view.f32(0)[e] = e % 2 ? std::nanf("") : static_cast<float>(e);
  std::vector<int32_t> ids(4, -1);
  tested().moe_route({.ids = Tensor::of(ids.data(), Dtype::kI32, {1, 4}),
                      .weights = weights.view,
                      .logits = logits.view,
                      .score = RouterScore::kSigmoid,
                      .group_score = GroupScore::kTopTwoSum,
                      .groups = 2,
                      .top_groups = 1,
                      .normalise = true,
                      .routed_scale = 1});
  std::sort(ids.begin(), ids.end());
  EXPECT_TRUE(std::adjacent_find(ids.begin(), ids.end()) == ids.end() && ids[0] >= 0 && ids[3] < 8) << "valid, distinct ids";
  for (int32_t number : {4, 6}) EXPECT_TRUE(std::count(ids.begin(), ids.end(), number)) << "numbers of the better group come before NaN";
}

TEST_P(RowsTest, NoTokens) {
  Random random(39);
  RandomWeight w(*find_format("q8_0"), 8, 64, random);
  Buffer x({0, 64}), out({0, 8});
  tested().linear({.out = out.view, .x = x.view, .weight = w.weight});
  tested().add({.out = out.view, .a = out.view, .b = out.view});
  out.expect_gaps_untouched();
}

INSTANTIATE_TEST_SUITE_P(Table, RowsTest, ::testing::ValuesIn(tested_isas()), [](const auto& info) { return info.param; });

TEST(CpuBackend, NamesTheUsableInstructionSets) {
  ASSERT_FALSE(usable_cpu_isas().empty());
  EXPECT_EQ(usable_cpu_isas().back(), "generic");
  auto unknown = make_cpu_backend({.isa = "avx1024"});
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().kind, ErrorKind::kInput);
  EXPECT_NE(unknown.error().message.find("--isa avx1024"), std::string::npos) << unknown.error().message;
  for (const std::string& isa : usable_cpu_isas()) {
    EXPECT_NE(unknown.error().message.find(isa), std::string::npos) << unknown.error().message;
    auto made = make_cpu_backend({.threads = 2, .isa = isa});
    ASSERT_TRUE(made.ok()) << made.error().message;
    EXPECT_NE((*made)->description().find(isa + ", 2 threads"), std::string::npos) << (*made)->description();
    for (const Format* f : all_formats()) EXPECT_TRUE((*made)->supports(*f)) << f->name;
  }
  EXPECT_FALSE(make_cpu_backend({.threads = -1}).ok());
  EXPECT_FALSE(make_cpu_backend({.threads = 1 << 20}).ok());
}

TEST(CpuBackend, AllocatesOrSaysWhyNot) {
  auto backend = make_cpu_backend({.threads = 1});
  ASSERT_TRUE(backend.ok());
  auto memory = (*backend)->allocate(3 << 20, "test");
  ASSERT_TRUE(memory.ok()) << memory.error().message;
  auto* bytes = static_cast<unsigned char*>((*memory)->data());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 64, 0u);
  EXPECT_TRUE(std::all_of(bytes, bytes + (*memory)->bytes(), [](unsigned char b) { return b == 0; }));
  auto refused = (*backend)->allocate(size_t{1} << 50, "the KV cache");
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kResource);
  EXPECT_NE(refused.error().message.find("the KV cache"), std::string::npos) << refused.error().message;
}

}  // namespace
}  // namespace dg::ops_table
