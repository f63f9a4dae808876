#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

namespace dg {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_logits(int n, uint64_t seed, float spread = 3) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> logits(static_cast<size_t>(n));
  for (float& x : logits) x = normal(random);
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  double max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (float x : logits) p.push_back(std::exp((x - max) / temperature));
  double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

std::vector<int> draw_counts(const std::vector<float>& logits, SamplingParams params, int draws) {
  Sampler sampler;
  TokenHistory history;
  std::vector<int> counts(logits.size());
  for (int i = 0; i < draws; i++) counts[static_cast<size_t>(sampler.sample(logits, params, history, static_cast<uint64_t>(i)))]++;
  return counts;
}

// Pearson's statistic over the cells with probability > 0; the bound is mean + 5 standard deviations of chi-square.
void expect_distribution(const std::vector<int>& counts, const std::vector<double>& p) {
  double total = std::accumulate(counts.begin(), counts.end(), 0.0), statistic = 0;
  int cells = 0;
  for (size_t i = 0; i < p.size(); i++) {
    if (p[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is filtered out";
      continue;
    }
    double expected = p[i] * total;
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    cells++;
  }
  double freedom = cells - 1;
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom) + 1);
}

TEST(Sampler, GreedyTakesTheLowestOfEquals) {
  Sampler sampler;
  TokenHistory history;
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3}, {}, history, 0), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{kNan, -kInf, -5, kNan}, {}, history, 0), 2);
  EXPECT_EQ(sampler.sample(std::vector<float>{kNan, kNan}, {}, history, 0), -1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInf, -kInf}, {.temperature = 1}, history, 0), -1);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, kInf, 1}, {.temperature = 1}, history, 0), 1);
}

TEST(Sampler, MatchesSoftmaxAtEveryTemperature) {
  auto logits = random_logits(50, 1, 1);
  for (double temperature : {0.5, 1.0, 2.0})
    expect_distribution(draw_counts(logits, {.temperature = temperature, .seed = 7}, 200000), softmax(logits, temperature));
}

TEST(Sampler, TopKTopPMinPKeepTheRenormalisedDistribution) {
  auto logits = random_logits(200, 2, 2);
  auto p = softmax(logits, 1);
  std::vector<size_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  auto keep = [&](auto&& wanted) {
    std::vector<double> q(p.size());
    double sum = 0, before = 0;
    for (size_t rank = 0; rank < order.size(); before += p[order[rank++]])
      if (wanted(rank, before, p[order[rank]])) q[order[rank]] = p[order[rank]], sum += p[order[rank]];
    for (double& x : q) x /= sum;
    return q;
  };
  expect_distribution(draw_counts(logits, {.temperature = 1, .top_k = 10, .seed = 1}, 50000),
                      keep([](size_t r, double, double) { return r < 10; }));
  expect_distribution(draw_counts(logits, {.temperature = 1, .top_p = 0.7, .seed = 2}, 50000),
                      keep([](size_t, double before, double) { return before < 0.7; }));
  double floor = 0.1 * p[order[0]];
  expect_distribution(draw_counts(logits, {.temperature = 1, .min_p = 0.1, .seed = 3}, 50000),
                      keep([&](size_t, double, double q) { return q >= floor; }));
  // top_p counts within what top_k left: here the ten, renormalised.
  double ten = 0;
  for (size_t i = 0; i < 10; i++) ten += p[order[i]];
  expect_distribution(draw_counts(logits, {.temperature = 1, .top_k = 10, .top_p = 0.5, .seed = 4}, 50000),
                      keep([&](size_t r, double before, double) { return r < 10 && before < 0.5 * ten; }));
}

TEST(Sampler, Invariants) {
  Sampler sampler;
  TokenHistory history;
  for (uint64_t i = 0; i < 200; i++) {
    auto logits = random_logits(5000, i);
    int32_t greedy = sampler.sample(logits, {}, history, i);
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1.5, .top_k = 1, .seed = i}, history, i), greedy);
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1.5, .top_p = 0, .seed = i}, history, i), greedy);
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1.5, .min_p = 1, .seed = i}, history, i), greedy);
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1e-4, .seed = i}, history, i), greedy);
    int32_t free = sampler.sample(logits, {.temperature = 1, .seed = i}, history, i);
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1, .top_k = 5000, .seed = i}, history, i), free) << "top_k of everything is off";
    EXPECT_EQ(sampler.sample(logits, {.temperature = 1, .seed = i}, history, i), free) << "seed and position decide";
  }
}

TEST(Sampler, FlatNucleusNeedsManyTokens) {
  std::vector<float> flat(512, 0.5f);
  auto counts = draw_counts(flat, {.temperature = 1, .top_p = 0.5, .seed = 9}, 12000);
  EXPECT_NEAR(static_cast<double>(std::count_if(counts.begin(), counts.end(), [](int c) { return c > 0; })), 256, 0);
  EXPECT_TRUE(std::all_of(counts.begin() + 256, counts.end(), [](int c) { return c == 0; })) << "equal weights: low ids first";
}

TEST(Sampler, Penalties) {
  Sampler sampler;
  TokenHistory history;
  std::vector<int32_t> prompt = {1};
  history.add_prompt(prompt);
  std::vector<float> logits = {1.0f, 2.0f, 1.5f};
  EXPECT_EQ(sampler.sample(logits, {.repetition_penalty = 1.2}, history, 0), 1) << "2 / 1.2 = 1.67 is still the largest";
  EXPECT_EQ(sampler.sample(logits, {.repetition_penalty = 1.5}, history, 0), 2);
  EXPECT_EQ(sampler.sample(logits, {.presence_penalty = 5}, history, 0), 1) << "the prompt does not count";
  history.add_output(1);
  EXPECT_EQ(sampler.sample(logits, {.presence_penalty = 0.6}, history, 0), 2);
  EXPECT_EQ(sampler.sample(logits, {.frequency_penalty = 0.3}, history, 0), 1);
  history.add_output(1);
  EXPECT_EQ(sampler.sample(logits, {.frequency_penalty = 0.3}, history, 0), 2) << "2 - 2 x 0.3 < 1.5";
  std::vector<float> negative = {-1.0f, -1.1f};
  history.add_output(0);
  EXPECT_EQ(sampler.sample(negative, {.repetition_penalty = 1.05}, history, 0), 0) << "-1.05 against -1.155";
  history.add_output(77);  // outside the row: nothing happens
  EXPECT_EQ(sampler.sample(negative, {.repetition_penalty = 1.05}, history, 0), 0);
}

TEST(UniformDraw, IsUniformAndIndependentOfNeighbours) {
  for (uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{42}, ~uint64_t{0}}) {
    std::vector<int> cells(64);
    double product = 0;
    constexpr int kDraws = 64000;
    for (int i = 0; i < kDraws; i++) {
      double u = uniform_draw(seed, static_cast<uint64_t>(i)), v = uniform_draw(seed, static_cast<uint64_t>(i) + 1);
      ASSERT_TRUE(u >= 0 && u < 1);
      cells[static_cast<size_t>(u * 64)]++;
      product += (u - 0.5) * (v - 0.5);
    }
    expect_distribution(cells, std::vector<double>(64, 1.0 / 64));
    EXPECT_LT(std::abs(product / kDraws), 5.0 / 12 / std::sqrt(kDraws)) << "neighbouring positions are uncorrelated";
  }
  std::set<double> first;
  for (uint64_t seed = 0; seed < 1000; seed++) first.insert(uniform_draw(seed, 0));
  EXPECT_EQ(first.size(), 1000u);
}

}  // namespace
}  // namespace dg
