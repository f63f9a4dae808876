#include "engine/sampler_kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace dg {
namespace {

std::vector<float> kernel_rows(size_t chunks, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 5);
  std::vector<float> logits(chunks * kChunk);
  for (float& x : logits) {
    x = normal(random);
    if (random() % 50 == 0) x = std::numeric_limits<float>::quiet_NaN();
    if (random() % 50 == 0) x = -std::numeric_limits<float>::infinity();
    if (random() % 500 == 0) x = 3e38f * (random() % 2 ? 1.0f : -1.0f);
  }
  return logits;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(SamplerKernels, Exp2IsWithinThreeTenMillionths) {
  double worst = 0;
  for (float y = 0; y > -124.9f; y -= 0.00037f) {
    double exact = std::exp2(static_cast<double>(y));
    worst = std::max(worst, std::abs(exp2_of_negative(y) - exact) / exact);
  }
  EXPECT_LT(worst, 3e-7);
  EXPECT_EQ(exp2_of_negative(0), 1);
  EXPECT_EQ(exp2_of_negative(-20), 0x1p-20f);
  EXPECT_EQ(exp2_of_negative(-126), 0);
  EXPECT_EQ(exp2_of_negative(-std::numeric_limits<float>::infinity()), 0);
  EXPECT_EQ(exp2_of_negative(std::numeric_limits<float>::quiet_NaN()), 0);
}

TEST(SamplerKernels, SumsAreThoseOfDoublePrecision) {
  for (float scale : {0.3f, 1.44269504f, 9.0f}) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> logits(kChunk);
    for (float& x : logits) x = normal(random);
    logits[17] = std::numeric_limits<float>::quiet_NaN();
    logits[200] = -std::numeric_limits<float>::infinity();
    const float* chunks[] = {logits.data(), nullptr};
    for (const SamplerKernels& k : sampler_kernels()) {
      float max[2], sum[2];
      k.max_sum(chunks, 2, scale, max, sum);
      double expected_max = -1e9, expected = 0;
      for (float x : logits)
        if (!std::isnan(x)) expected_max = std::max(expected_max, static_cast<double>(x));
      for (float x : logits)
        if (!std::isnan(x)) expected += std::exp2((static_cast<double>(x) - expected_max) * static_cast<double>(scale));
      EXPECT_EQ(max[0], static_cast<float>(expected_max)) << k.name;
      // Of every term: its exponent's rounding (up to 40 bits x 2^-24 x ln 2) for what is small, 3e-7 for what is large.
      EXPECT_NEAR(sum[0], expected, 1e-6 * expected) << k.name;
      EXPECT_EQ(max[1], -std::numeric_limits<float>::infinity());
      EXPECT_EQ(sum[1], 0);
    }
  }
}

TEST(SamplerKernels, EveryVariantGivesTheSameBits) {
  for (uint32_t seed = 0; seed < 20; seed++) {
    constexpr size_t kChunks = 40;
    std::vector<float> logits = kernel_rows(kChunks, seed);
    std::vector<const float*> chunks;
    for (size_t c = 0; c < kChunks; c++) chunks.push_back(c % 7 == 6 ? nullptr : logits.data() + c * kChunk);
    std::vector<uint32_t> bits(kChunk / 32);
    std::mt19937 random(seed);
    for (uint32_t& word : bits) word = static_cast<uint32_t>(random());
    std::vector<float> first_max, first_sum, first_masked;
    for (const SamplerKernels& k : sampler_kernels()) {
      std::vector<float> max(kChunks), sum(kChunks), max_alone(kChunks), masked(kChunk);
      k.max_sum(chunks.data(), kChunks, 0.1f + static_cast<float>(seed), max.data(), sum.data());
      k.max(chunks.data(), kChunks, max_alone.data());
      k.mask(logits.data() + 3, bits.data(), masked.data());
      EXPECT_TRUE(same_bits(max, max_alone)) << k.name;
      if (first_max.empty()) {
        first_max = max, first_sum = sum, first_masked = masked;
        for (size_t i = 0; i < kChunk; i++) {
          float expected = (bits[i / 32] >> (i % 32)) & 1 ? logits[i + 3] : -std::numeric_limits<float>::infinity();
          EXPECT_EQ(std::memcmp(&masked[i], &expected, sizeof expected), 0) << i;
        }
      }
      EXPECT_TRUE(same_bits(max, first_max)) << k.name;
      EXPECT_TRUE(same_bits(sum, first_sum)) << k.name;
      EXPECT_TRUE(same_bits(masked, first_masked)) << k.name;
    }
  }
}

TEST(SamplerKernels, NegligibleChunksAreLeftOut) {
  std::vector<float> high(kChunk, 50), low(kChunk, 0), middle(kChunk, 30);
  const float* chunks[] = {low.data(), high.data(), low.data(), middle.data()};
  for (const SamplerKernels& k : sampler_kernels()) {
    float max[4], sum[4];
    k.max_sum(chunks, 4, 1, max, sum);
    EXPECT_EQ(sum[0], kChunk) << "nothing larger came before";
    EXPECT_EQ(sum[1], kChunk);
    EXPECT_EQ(sum[2], 0) << "50 bits below";
    EXPECT_EQ(sum[3], kChunk) << "20 bits below";
  }
}

}  // namespace
}  // namespace dg
