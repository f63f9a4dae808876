// A token picked from the figures of a row is the one picked from the row: every parameter, with ties, infinities and masks.
#include <gtest/gtest.h>

#include <random>

#include "device/memory_backend_for_tests.h"
#include "engine/device_picks.h"

namespace dg {
namespace {

constexpr float kMinusInf = std::numeric_limits<float>::infinity();

class PickingBackend : public MemoryBackend {
 public:
  bool host_memory() const override { return false; }
  bool picks_rows() const override { return true; }
  void adjust_logits(const AdjustLogits& op) override { Backend::adjust_logits(op); }
  void pick_rows(const PickRows& op) override { Backend::pick_rows(op); }
};

struct PickOutcome {
  int same = 0, needed = 0, whole = 0;
};

// Each row as one step with the others; those that the picks leave open, from the adjusted row.
void compare(std::vector<std::vector<float>> rows, std::vector<SampleInput> inputs, PickOutcome& outcome) {
  PickingBackend backend;
  const auto vocab = static_cast<int64_t>(rows[0].size()), count = static_cast<int64_t>(rows.size());
  auto made = DevicePicks::create(backend, vocab, count);
  ASSERT_TRUE(made.ok());
  DevicePicks& picks = **made;
  std::vector<float> device;
  for (const auto& row : rows) device.insert(device.end(), row.begin(), row.end());
  picks.begin(count);
  for (int64_t i = 0; i < count; i++) picks.add(i, inputs[static_cast<size_t>(i)]);
  picks.run(Tensor::of(device.data(), Dtype::kF32, {count, vocab}));
  Sampler sampler;
  for (int64_t i = 0; i < count; i++) {
    SCOPED_TRACE(testing::Message() << "row " << i);
    SampleInput input = inputs[static_cast<size_t>(i)];
    SampleOutput expected, actual;
    input.logits = rows[static_cast<size_t>(i)];
    sampler.sample(input, expected);
    const std::span<const float> adjusted(device.data() + i * vocab, static_cast<size_t>(vocab));
    if (picks.wanted_whole(i)) {
      outcome.whole++;
      for (size_t k = 0; k < adjusted.size(); k++)
        ASSERT_TRUE(adjusted[k] == input.logits[k] || std::isnan(adjusted[k])) << "a row that is wanted whole stays as it is";
      continue;
    }
    ASSERT_NE(picks.picked(i), nullptr);
    input.picked = picks.picked(i);
    sampler.sample(input, actual);
    if (actual.id == kNeedsRow) {
      outcome.needed++;
      input.picked = nullptr;
      input.adjusted = true;
      input.logits = adjusted;
      sampler.sample(input, actual);
    } else {
      outcome.same++;
    }
    ASSERT_EQ(actual.id, expected.id);
    ASSERT_EQ(actual.logprob, expected.logprob);
    ASSERT_EQ(actual.top, expected.top);
  }
}

std::vector<float> normal_row(std::mt19937& random, size_t n, float spread) {
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> row(n);
  for (float& x : row) x = normal(random);
  return row;
}

const std::vector<SamplingParams>& settings() {
  static const std::vector<SamplingParams> all = {{},
                                                  {.temperature = 1},
                                                  {.temperature = 0.6},
                                                  {.temperature = 3},
                                                  {.temperature = 5e-324},
                                                  {.temperature = 1e30},
                                                  {.temperature = 0.6, .top_p = 0.95},
                                                  {.temperature = 1, .top_p = 0.5},
                                                  {.temperature = 2, .top_p = 0.999},
                                                  {.temperature = 1, .top_p = 0},
                                                  {.temperature = 1, .top_k = 1},
                                                  {.temperature = 1, .top_k = 2},
                                                  {.temperature = 1, .top_k = 50},
                                                  {.temperature = 2, .top_k = 256},
                                                  {.temperature = 2, .top_k = 257},
                                                  {.temperature = 1, .min_p = 0.01},
                                                  {.temperature = 0.7, .min_p = 0.3},
                                                  {.temperature = 2, .min_p = 1e-7},
                                                  {.temperature = 1, .typical_p = 0.9},
                                                  {.temperature = 1, .top_p = 0.9, .typical_p = 0.5},
                                                  {.temperature = 1.3, .top_k = 40, .top_p = 0.8, .min_p = 0.02},
                                                  {.temperature = 1, .top_k = 100, .min_p = 0.001, .typical_p = 0.7}};
  return all;
}

TEST(SamplerPicked, EveryFilterPicksTheSameToken) {
  std::mt19937 random(5);
  PickOutcome outcome;
  for (size_t n : {1u, 5u, 255u, 256u, 257u, 1000u, 20000u})
    for (float spread : {0.0f, 0.5f, 2.0f, 6.0f})
      for (uint64_t round = 0; round < 6; round++) {
        SCOPED_TRACE(testing::Message() << n << " logits, spread " << spread << ", round " << round);
        std::vector<std::vector<float>> rows;
        std::vector<SampleInput> inputs;
        for (const SamplingParams& params : settings()) {
          rows.push_back(normal_row(random, n, spread));
          if (round % 2)
            for (float& x : rows.back()) x = std::round(x);  // ties, -0 among them
          inputs.push_back({.params = &params, .position = round, .seed = 7 + n, .logprobs = static_cast<int>(round % 4) - 1});
        }
        compare(rows, inputs, outcome);
        if (HasFatalFailure()) return;
      }
  EXPECT_GT(outcome.same, 2500);
  EXPECT_GT(outcome.needed, 50);
  EXPECT_LT(outcome.needed, 500);
  EXPECT_GT(outcome.whole, 100) << "typical_p alone, top_k beyond the candidates";
}

TEST(SamplerPicked, PenaltiesBiasMaskAndForbiddenIds) {
  std::mt19937 random(6);
  PickOutcome outcome;
  for (uint64_t round = 0; round < 40; round++) {
    SCOPED_TRACE(round);
    const size_t n = round % 2 ? 1500 : 3001;
    auto id = [&] { return static_cast<int32_t>(random() % (n + 3)) - 1; };  // some are no tokens
    std::vector<SamplingParams> params = settings();
    std::vector<TokenHistory> histories(params.size());
    std::vector<std::vector<uint32_t>> masks(params.size());
    std::vector<std::vector<int32_t>> forbidden(params.size());
    std::vector<std::vector<float>> rows;
    std::vector<SampleInput> inputs;
    for (size_t i = 0; i < params.size(); i++) {
      rows.push_back(normal_row(random, n, 3));
      for (float& x : rows.back()) {
        if (random() % 50 == 0) x = std::numeric_limits<float>::quiet_NaN();
        if (random() % 50 == 0) x = -kMinusInf;
      }
      if (round % 8 == 7) rows.back()[n / 3] = kMinusInf;
      for (int k = 0; k < 200; k++) histories[i].add_prompt(std::vector<int32_t>{id()});
      for (int k = 0; k < 200; k++) histories[i].add_output(id());
      std::vector<int32_t> biased;
      for (int k = 0; k < 40; k++) {
        const int32_t token = id();
        if (std::find(biased.begin(), biased.end(), token) == biased.end())
          params[i].logit_bias.emplace_back(token, static_cast<float>(static_cast<int>(random() % 20) - 10));
        biased.push_back(token);
      }
      for (int k = 0; k < 40; k++) forbidden[i].push_back(id());
      if (round % 3) params[i].repetition_penalty = 1.3, params[i].presence_penalty = 0.4, params[i].frequency_penalty = 0.2;
      if (round % 4 == 1) {  // one token, or none
        masks[i].assign((n + 31) / 32, 0);
        if (i % 3) masks[i][n / 64] = 1u << (random() % 32);
      } else if (round % 4 > 1) {
        for (size_t k = 0; k < (n + 31) / 32; k++) masks[i].push_back(static_cast<uint32_t>(random() & random()));
      }
    }
    for (size_t i = 0; i < params.size(); i++)
      inputs.push_back({.params = &params[i],
                        .history = &histories[i],
                        .position = round,
                        .seed = 3,
                        .allowed = masks[i].empty() ? nullptr : masks[i].data(),
                        .forbidden = forbidden[i],
                        .logprobs = static_cast<int>(i % 4) - 1});
    compare(rows, inputs, outcome);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(outcome.same, 500);
}

// Drafts behind the sequence count as its output.
TEST(SamplerPicked, DraftsArePenalised) {
  PickingBackend backend;
  auto picks = DevicePicks::create(backend, 100, 1);
  ASSERT_TRUE(picks.ok());
  std::vector<float> row(100, 0.0f);
  SamplingParams params{.repetition_penalty = 2, .presence_penalty = 0.5, .frequency_penalty = 0.25, .logit_bias = {{9, 3.0f}}};
  TokenHistory history, after;
  for (TokenHistory* h : {&history, &after}) h->add_prompt(std::vector<int32_t>{4, 5}), h->add_output(5), h->add_output(6);
  const std::vector<int32_t> drafts = {5, 9, 9, 4};
  for (int32_t id : drafts) after.add_output(id);
  for (int i = 0; i < 100; i++) row[static_cast<size_t>(i)] = static_cast<float>(i % 7) - 1.5f;
  std::vector<float> one = row, two = row;
  for (bool given : {false, true}) {
    (*picks)->begin(1);
    (*picks)->add(0, {.params = &params, .history = given ? &history : &after},
                  given ? std::span<const int32_t>(drafts) : std::span<const int32_t>());
    (*picks)->run(Tensor::of((given ? two : one).data(), Dtype::kF32, {1, 100}));
  }
  EXPECT_EQ(one, two);
  EXPECT_NE(one, row);
}

TEST(SamplerPicked, TwoBiasesForOneTokenGoTheLongWay) {
  PickingBackend backend;
  auto picks = DevicePicks::create(backend, 100, 2);
  ASSERT_TRUE(picks.ok());
  SamplingParams twice{.logit_bias = {{3, 1.0f}, {4, 1.0f}, {3, 0.5f}}};
  (*picks)->begin(2);
  (*picks)->add(0, {.params = &twice});
  EXPECT_TRUE((*picks)->wanted_whole(0));
  (*picks)->skip(1);
  EXPECT_FALSE((*picks)->wanted_whole(1));
}

}  // namespace
}  // namespace dg
