#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"

namespace dg {

double yarn_mscale(double factor, double k) { return factor > 1 ? 0.1 * k * std::log(factor) + 1 : 1; }

RopeTable make_rope_table(const RopeConfig& config, int64_t dim) {
  RopeTable table;
  auto half = static_cast<size_t>(dim / 2);
  std::vector<double> inv(half);
  for (size_t i = 0; i < half; i++) inv[i] = std::pow(config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  auto original = static_cast<double>(config.original_max_position);
  switch (config.type) {
    case RopeType::kDefault: break;
    case RopeType::kLinear:
      for (double& f : inv) f /= config.factor;
      break;
    case RopeType::kLlama3:
      for (double& f : inv) {
        double wavelength = 2 * std::numbers::pi / f;
        if (wavelength < original / config.high_freq_factor) continue;
        if (wavelength > original / config.low_freq_factor) {
          f /= config.factor;
          continue;
        }
        double s = (original / wavelength - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
        f = (1 - s) * f / config.factor + s * f;
      }
      break;
    case RopeType::kYarn: {
      auto correction = [&](double rotations) {
        return static_cast<double>(dim) * std::log(original / (2 * std::numbers::pi * rotations)) / (2 * std::log(config.theta));
      };
      double low = correction(config.beta_fast), high = correction(config.beta_slow);
      if (config.truncate) low = std::floor(low), high = std::ceil(high);
      low = std::max(low, 0.0);
      high = std::min(high, static_cast<double>(dim - 1));
      if (low == high) high += 0.001;
      for (size_t i = 0; i < half; i++) {
        double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        inv[i] = inv[i] / config.factor * ramp + inv[i] * (1 - ramp);
      }
      // attention_factor is transformers' key; R1-0528-Qwen3-8B ships attn_factor, a multiplier of m(factor, 1) as vLLM
      // reads it (their product is 1 there). DeepSeek's configs give mscale and mscale_all_dim instead.
      if (config.attention_factor) table.magnitude = static_cast<float>(*config.attention_factor);
      else if (config.mscale.value_or(0) != 0 && config.mscale_all_dim.value_or(0) != 0)
        table.magnitude =
            static_cast<float>(yarn_mscale(config.factor, *config.mscale) / yarn_mscale(config.factor, *config.mscale_all_dim));
      else table.magnitude = static_cast<float>(yarn_mscale(config.factor, 1) * config.attn_factor.value_or(1));
      break;
    }
  }
  if (!config.divisors.empty()) {
    CHECK(config.divisors.size() == half);
    for (size_t i = 0; i < half; i++) inv[i] /= static_cast<double>(config.divisors[i]);
  }
  table.inv_freq.assign(inv.begin(), inv.end());
  return table;
}

float mla_softmax_scale(const RopeConfig& config, int64_t q_dim) {
  double scale = 1 / std::sqrt(static_cast<double>(q_dim));
  if (config.type == RopeType::kYarn && config.mscale_all_dim.value_or(0) != 0) {
    double m = yarn_mscale(config.factor, *config.mscale_all_dim);
    scale *= m * m;
  }
  return static_cast<float>(scale);
}

}  // namespace dg
