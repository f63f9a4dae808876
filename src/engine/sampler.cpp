#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dg {
namespace {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes every output bit.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

double uniform_draw(uint64_t seed, uint64_t position) { return static_cast<double>(mix(mix(seed) ^ mix(~position)) >> 11) * 0x1p-53; }

void TokenHistory::add_prompt(std::span<const int32_t> ids) {
  for (int32_t id : ids) output_count_.try_emplace(id, 0);
}
void TokenHistory::add_output(int32_t id) { output_count_[id]++; }

int32_t argmax(std::span<const float> logits) {
  int32_t best = -1;
  float max = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); i++)
    if (logits[i] > max) max = logits[i], best = static_cast<int32_t>(i);
  return best;
}

void Sampler::penalise(std::span<float> logits, const SamplingParams& params, const TokenHistory& history) const {
  for (auto [id, count] : history.output_count_) {
    if (id < 0 || static_cast<size_t>(id) >= logits.size()) continue;
    double logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count > 0) logit -= params.presence_penalty + params.frequency_penalty * static_cast<double>(count);
    logits[static_cast<size_t>(id)] = static_cast<float>(logit);
  }
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history, uint64_t position) {
  if (params.penalises()) {
    adjusted_.assign(logits.begin(), logits.end());
    penalise(adjusted_, params, history);
    logits = adjusted_;
  }
  int32_t best = argmax(logits);
  if (best < 0 || params.greedy() || params.top_k == 1) return best;
  float max = logits[static_cast<size_t>(best)];
  if (std::isinf(max)) return best;
  return draw(logits, max, params, uniform_draw(params.seed, position));
}

int32_t Sampler::draw(std::span<const float> logits, float max, const SamplingParams& params, double uniform) {
  // Tokens whose weight is below min_p times the largest (which is 1) are out; without min_p only those that round to 0 are.
  double scale = 1 / params.temperature;
  double floor = params.min_p > 0 ? std::log(params.min_p) : -700.0;
  candidates_.clear();
  double total = 0;
  for (size_t i = 0; i < logits.size(); i++) {
    double x = (static_cast<double>(logits[i]) - static_cast<double>(max)) * scale;
    if (!(x >= floor)) continue;  // NaN too
    double weight = std::exp(x);
    candidates_.push_back({weight, static_cast<int32_t>(i)});
    total += weight;
  }
  auto better = [](const Candidate& a, const Candidate& b) { return a.weight > b.weight || (a.weight == b.weight && a.id < b.id); };

  size_t kept = candidates_.size();
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < kept) {
    kept = static_cast<size_t>(params.top_k);
    std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(kept), candidates_.end(), better);
    candidates_.resize(kept);
    std::sort(candidates_.begin(), candidates_.end(), better);  // a fixed order: nth_element's is the library's own
    total = 0;
    for (const Candidate& c : candidates_) total += c.weight;
  }
  if (params.top_p < 1) {
    // Sorts only as far as the nucleus reaches: in growing pieces, each selected from the rest.
    double wanted = params.top_p * total, sum = 0;
    size_t sorted = 0, count = 0;
    while (count < kept && (sum < wanted || count == 0)) {
      if (count == sorted) {
        size_t next = std::min(kept, std::max<size_t>(64, sorted * 4));
        auto begin = candidates_.begin() + static_cast<std::ptrdiff_t>(sorted),
             end = candidates_.begin() + static_cast<std::ptrdiff_t>(next);
        if (next < kept) std::nth_element(begin, end, candidates_.end(), better);
        std::sort(begin, end, better);
        sorted = next;
      }
      sum += candidates_[count++].weight;
    }
    candidates_.resize(count);
    total = sum;
  }

  double left = uniform * total;
  for (const Candidate& c : candidates_) {
    if (left < c.weight) return c.id;
    left -= c.weight;
  }
  // Rounding may leave a crumb: it belongs to the last token that can be drawn at all.
  for (size_t i = candidates_.size(); i-- > 0;)
    if (candidates_[i].weight > 0) return candidates_[i].id;
  return -1;
}

}  // namespace dg
