// The sampler against a naive one in double precision that sorts everything: for given (seed, position) both must pick the
// same token, except where the uniform number or a filter's limit is so near to a step that rounding decides.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "engine/sampler.h"

namespace dg {
namespace {

constexpr double kNear = 2e-6;  // of the probability: float weights are exact to 3e-7 each

struct NaiveCase {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<int32_t> prompt, output, forbidden;
  std::vector<uint32_t> allowed;  // empty: all
};

struct NaiveResult {
  std::vector<double> logits, probability;  // after penalties, bias, mask; after all filters
  bool unclear = false;                     // a filter's limit is next to a step
};

NaiveResult naive(const NaiveCase& c) {
  NaiveResult r;
  size_t n = c.logits.size();
  std::vector<int> outputs(n), seen(n);
  for (int32_t id : c.prompt) seen[static_cast<size_t>(id)] = 1;
  for (int32_t id : c.output) seen[static_cast<size_t>(id)] = 1, outputs[static_cast<size_t>(id)]++;
  for (size_t i = 0; i < n; i++) {
    double x = c.logits[i];
    if (seen[i]) x = x > 0 ? x / c.params.repetition_penalty : x * c.params.repetition_penalty;
    if (outputs[i]) x -= c.params.presence_penalty + c.params.frequency_penalty * outputs[i];
    for (auto [id, bias] : c.params.logit_bias)
      if (static_cast<size_t>(id) == i) x += static_cast<double>(bias);
    if (std::isnan(x) || std::count(c.forbidden.begin(), c.forbidden.end(), static_cast<int32_t>(i)) ||
        (!c.allowed.empty() && !((c.allowed[i / 32] >> (i % 32)) & 1)))
      x = -INFINITY;
    r.logits.push_back(x);
  }
  double max = *std::max_element(r.logits.begin(), r.logits.end());
  std::vector<double>& p = r.probability;
  for (double x : r.logits) p.push_back(std::exp((x - max) / c.params.temperature));
  auto normalise = [&] {
    double sum = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= sum;
  };
  auto keep = [&](std::vector<size_t> order, double mass) {
    double sum = 0;
    for (size_t i : order) {
      r.unclear |= std::abs(sum - mass) < kNear;
      if (sum >= mass && sum > 0) p[i] = 0;
      else sum += p[i];
    }
    normalise();
  };
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return r.logits[a] > r.logits[b]; });
  for (double& x : p)
    if (x < c.params.min_p) x = 0;
  normalise();
  if (c.params.top_k > 0)
    for (size_t i = static_cast<size_t>(c.params.top_k); i < n; i++) p[order[i]] = 0;
  normalise();
  if (c.params.top_p < 1) keep(order, c.params.top_p);
  if (c.params.typical_p < 1) {
    double entropy = 0;
    for (double x : p) entropy -= x > 0 ? x * std::log(x) : 0;
    auto distance = [&](size_t i) { return p[i] > 0 ? std::abs(-std::log(p[i]) - entropy) : INFINITY; };
    std::vector<double> d(n);
    for (size_t i = 0; i < n; i++) d[i] = distance(i);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return d[a] < d[b]; });
    for (size_t i = 1; i < n; i++)  // equal logits are equally far: rounding must not order them
      r.unclear |= d[order[i]] - d[order[i - 1]] < 1e-9 && std::isfinite(d[order[i]]) && r.logits[order[i]] != r.logits[order[i - 1]];
    keep(order, c.params.typical_p);
  }
  return r;
}

std::vector<float> sampler_row(size_t n, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(random);
  return logits;
}

// Draws many times; how many of them could be compared.
int compare_with_naive(const NaiveCase& c, int draws) {
  NaiveResult expected = naive(c);
  if (expected.unclear) return 0;
  Sampler sampler;
  TokenHistory history;
  history.add_prompt(c.prompt);
  for (int32_t id : c.output) history.add_output(id);
  int compared = 0;
  for (int i = 0; i < draws; i++) {
    auto position = static_cast<uint64_t>(i);
    double u = uniform_draw(99, position), sum = 0;
    int32_t wanted = -1;
    bool near = false;
    for (size_t id = 0; id < c.logits.size(); id++) {
      if (expected.probability[id] == 0) continue;
      near |= std::abs(sum - u) < kNear;
      if (sum <= u) wanted = static_cast<int32_t>(id);
      sum += expected.probability[id];
    }
    SampleOutput output;
    sampler.sample({.logits = c.logits,
                    .params = &c.params,
                    .history = &history,
                    .position = position,
                    .seed = 99,
                    .allowed = c.allowed.empty() ? nullptr : c.allowed.data(),
                    .forbidden = c.forbidden},
                   output);
    EXPECT_GT(expected.probability[static_cast<size_t>(output.id)], 0) << "token " << output.id << " is filtered out";
    if (near) continue;
    EXPECT_EQ(output.id, wanted) << "position " << i;
    compared++;
  }
  return compared;
}

TEST(SamplerFilters, EveryFilterAgreesWithTheNaiveSampler) {
  const std::vector<SamplingParams> settings = {{.temperature = 1},
                                                {.temperature = 0.6},
                                                {.temperature = 3},
                                                {.temperature = 0.6, .top_p = 0.95},
                                                {.temperature = 1, .top_p = 0.5},
                                                {.temperature = 2, .top_p = 0.999},
                                                {.temperature = 1, .top_p = 0.01},
                                                {.temperature = 1, .top_k = 2},
                                                {.temperature = 1, .top_k = 50},
                                                {.temperature = 2, .top_k = 700},
                                                {.temperature = 1, .min_p = 0.01},
                                                {.temperature = 0.7, .min_p = 0.3},
                                                {.temperature = 2, .min_p = 1e-7},
                                                {.temperature = 1, .typical_p = 0.9},
                                                {.temperature = 2, .typical_p = 0.2},
                                                {.temperature = 1, .top_p = 0.9, .typical_p = 0.5},
                                                {.temperature = 1.3, .top_k = 40, .top_p = 0.8, .min_p = 0.02},
                                                {.temperature = 1, .top_k = 100, .min_p = 0.001, .typical_p = 0.7}};
  for (size_t n : {5u, 255u, 256u, 257u, 1000u, 5000u}) {
    int compared = 0, draws = 0;
    for (const SamplingParams& params : settings) {
      for (float spread : {0.5f, 4.0f}) {
        if (params.top_k >= static_cast<int64_t>(n)) continue;
        SCOPED_TRACE(testing::Message() << n << " logits, T " << params.temperature << " top_k " << params.top_k << " top_p "
                                        << params.top_p << " min_p " << params.min_p << " typical_p " << params.typical_p << " spread "
                                        << spread);
        compared += compare_with_naive({.logits = sampler_row(n, static_cast<uint32_t>(n), spread), .params = params}, 100);
        draws += 100;
      }
    }
    EXPECT_GT(compared, draws * 3 / 4) << n << " logits: too many draws are too near to call";
  }
}

TEST(SamplerFilters, PenaltiesBiasMaskAndForbiddenIdsInThatOrder) {
  std::mt19937 random(3);
  int compared = 0;
  for (uint32_t round = 0; round < 20; round++) {
    NaiveCase c{.logits = sampler_row(1500, round, 3)};
    auto id = [&] { return static_cast<int32_t>(random() % 1500); };
    for (int i = 0; i < 300; i++) c.prompt.push_back(id());
    for (int i = 0; i < 300; i++) c.output.push_back(id());
    for (int i = 0; i < 40; i++) c.params.logit_bias.emplace_back(id(), static_cast<float>(static_cast<int>(random() % 20) - 10));
    for (int i = 0; i < 40; i++) c.forbidden.push_back(id());
    if (round % 2) {
      c.allowed.resize((1500 + 31) / 32);
      for (uint32_t& word : c.allowed) word = static_cast<uint32_t>(random() & random());
      std::fill(c.allowed.begin() + 8, c.allowed.begin() + 16, 0u);
      std::fill(c.allowed.begin() + 16, c.allowed.begin() + 24, ~0u);
    }
    for (float& x : c.logits)
      if (random() % 100 == 0) x = std::numeric_limits<float>::quiet_NaN();
    c.params.temperature = 1;
    c.params.repetition_penalty = 1.3;
    c.params.presence_penalty = 0.4;
    c.params.frequency_penalty = 0.2;
    c.params.top_p = round % 3 ? 1 : 0.9;
    SCOPED_TRACE(round);
    compared += compare_with_naive(c, 50);
  }
  EXPECT_GT(compared, 700);
}

TEST(SamplerFilters, LogprobsAreTheLogSoftmaxBeforeTemperature) {
  for (double temperature : {0.0, 0.6, 1.0}) {
    NaiveCase c{.logits = sampler_row(700, 8, 2),
                .params = {.temperature = temperature, .top_p = 0.8, .logit_bias = {{3, 5.0f}, {9000, 1.0f}, {-1, 1.0f}}}};
    c.allowed.assign((700 + 31) / 32, 0xfffffff0u);
    NaiveCase plain = c;
    plain.params.temperature = 1;
    plain.params.top_p = 1;
    std::vector<double> p = naive(plain).probability;
    Sampler sampler;
    SampleOutput output;
    sampler.sample({.logits = c.logits, .params = &c.params, .position = 4, .allowed = c.allowed.data(), .logprobs = 700}, output);
    EXPECT_NEAR(output.logprob, std::log(p[static_cast<size_t>(output.id)]), 2e-6);
    ASSERT_EQ(output.top.size(), 700u - 22 * 4) << "what is not allowed has no logprob";
    double sum = 0;
    for (size_t i = 0; i < output.top.size(); i++) {
      auto [id, logprob] = output.top[i];
      EXPECT_NEAR(logprob, std::log(p[static_cast<size_t>(id)]), 4e-6) << id;
      if (i > 0) {
        EXPECT_LE(logprob, output.top[i - 1].second);
      }
      sum += std::exp(static_cast<double>(logprob));
    }
    EXPECT_NEAR(sum, 1, 1e-5);
    std::vector<std::pair<int32_t, float>> all = output.top;
    int32_t id = output.id;
    sampler.sample({.logits = c.logits, .params = &c.params, .position = 4, .allowed = c.allowed.data(), .logprobs = 5}, output);
    EXPECT_EQ(output.id, id) << "asking for logprobs changes nothing";
    ASSERT_EQ(output.top.size(), 5u);
    EXPECT_TRUE(std::equal(output.top.begin(), output.top.end(), all.begin()));
    sampler.sample({.logits = c.logits, .params = &c.params, .position = 4, .allowed = c.allowed.data(), .logprobs = 0}, output);
    EXPECT_TRUE(output.top.empty());
    EXPECT_NE(output.logprob, 0);
  }
}

TEST(SamplerFilters, TiesGoToLowerIds) {
  std::vector<float> flat(600, 1.0f);
  Sampler sampler;
  SampleOutput output;
  SamplingParams greedy, top_k{.temperature = 1, .top_k = 7}, typical{.temperature = 1, .typical_p = 0.25};
  sampler.sample({.logits = flat, .params = &greedy, .logprobs = 3}, output);
  EXPECT_EQ(output.id, 0);
  ASSERT_EQ(output.top.size(), 3u);
  EXPECT_EQ(output.top[2].first, 2);
  EXPECT_NEAR(output.logprob, -std::log(600.0), 1e-6);
  for (uint64_t i = 0; i < 300; i++) {
    sampler.sample({.logits = flat, .params = &top_k, .position = i}, output);
    ASSERT_LT(output.id, 7);
    sampler.sample({.logits = flat, .params = &typical, .position = i}, output);
    ASSERT_LT(output.id, 150);
  }
}

TEST(SamplerFilters, NothingLeftIsMinusOne) {
  std::vector<float> logits = sampler_row(300, 1, 1);
  std::vector<uint32_t> none((300 + 31) / 32), one = none;
  one[9] = 1u << 11;
  one[1] = 1u << 3;
  std::vector<int32_t> forbidden = {35};
  Sampler sampler;
  SampleOutput output;
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.temperature = 1}, SamplingParams{.temperature = 1, .top_p = 0.5}}) {
    sampler.sample({.logits = logits, .params = &params, .allowed = none.data(), .logprobs = 2}, output);
    EXPECT_EQ(output.id, -1);
    EXPECT_TRUE(output.top.empty());
    sampler.sample({.logits = logits, .params = &params, .allowed = one.data(), .forbidden = forbidden, .logprobs = 2}, output);
    EXPECT_EQ(output.id, 299);
    EXPECT_EQ(output.logprob, 0);
    ASSERT_EQ(output.top.size(), 1u);
    sampler.sample({.logits = {}, .params = &params}, output);
    EXPECT_EQ(output.id, -1);
  }
}

TEST(SamplerFilters, ExtremeParametersStillPick) {
  std::vector<float> logits = sampler_row(2000, 6, 3);
  logits[5] = 3e38f;
  logits[6] = -3e38f;
  logits[7] = std::numeric_limits<float>::quiet_NaN();
  logits[8] = -std::numeric_limits<float>::infinity();
  Sampler sampler;
  SampleOutput output;
  for (double temperature : {5e-324, 1e-30, 1.0, 1e30, 1.7e308, static_cast<double>(INFINITY)})
    for (double value : {-1.0, 0.0, 1e-300, 0.5, 1.0, 7.0})
      for (int64_t top_k : {int64_t{-1}, int64_t{3}, int64_t{1} << 60}) {
        for (const SamplingParams& params : {SamplingParams{.temperature = temperature, .top_k = top_k, .top_p = value},
                                             SamplingParams{.temperature = temperature, .top_k = top_k, .min_p = value},
                                             SamplingParams{.temperature = temperature, .top_k = top_k, .typical_p = value}}) {
          sampler.sample({.logits = logits, .params = &params, .position = 3, .logprobs = 4}, output);
          ASSERT_TRUE(output.id >= 0 && output.id != 7 && output.id != 8) << output.id;
        }
      }
}

// Pearson's statistic of many draws with all that changes the row at once: the mean + 5 deviations bound it.
TEST(SamplerFilters, FrequenciesFollowBiasAndMask) {
  NaiveCase c{.logits = sampler_row(300, 12, 1.5f),
              .params = {.temperature = 1.2, .min_p = 0.02, .logit_bias = {{7, 4.0f}, {290, -100.0f}}}};
  c.forbidden = {8};
  c.allowed.assign((300 + 31) / 32, 0x7fffdfffu);
  std::vector<double> p = naive(c).probability;
  ASSERT_GT(p[7], 0.05);
  EXPECT_EQ(p[8] + p[13] + p[290], 0);
  constexpr int kDraws = 100000;
  std::vector<int> counts(300);
  Sampler sampler;
  SampleOutput output;
  for (uint64_t i = 0; i < kDraws; i++) {
    sampler.sample(
        {.logits = c.logits, .params = &c.params, .position = i, .seed = 21, .allowed = c.allowed.data(), .forbidden = c.forbidden},
        output);
    counts[static_cast<size_t>(output.id)]++;
  }
  double statistic = 0, freedom = -1;
  for (size_t i = 0; i < p.size(); i++) {
    if (p[i] == 0) {
      EXPECT_EQ(counts[i], 0) << i;
      continue;
    }
    statistic += (counts[i] - p[i] * kDraws) * (counts[i] - p[i] * kDraws) / (p[i] * kDraws);
    freedom++;
  }
  EXPECT_GT(freedom, 20);
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom));
}

TEST(SamplerFilters, CommonRandomNumbersMakeADraftAgree) {
  std::vector<float> target = sampler_row(20000, 2, 3), draft = target;
  for (size_t i = 0; i < 8; i++) target[i * 2017] = draft[i * 2017] = 16 - static_cast<float>(i) / 2;  // few likely tokens, as usual
  std::mt19937 random(1);
  std::normal_distribution<float> noise(0, 0.1f);
  for (float& x : draft) x += noise(random);
  Sampler sampler;
  SamplingParams params{.temperature = 0.8};
  SampleOutput a, b;
  int same = 0, independent = 0;
  for (uint64_t i = 0; i < 2000; i++) {
    sampler.sample({.logits = target, .params = &params, .position = i, .seed = 1}, a);
    sampler.sample({.logits = draft, .params = &params, .position = i, .seed = 1}, b);
    same += a.id == b.id;
    sampler.sample({.logits = draft, .params = &params, .position = i, .seed = 2}, b);
    independent += a.id == b.id;
  }
  EXPECT_GT(same, 1600) << "of 2000; independent draws: " << independent;
  EXPECT_LT(independent, 800);
}

}  // namespace
}  // namespace dg
