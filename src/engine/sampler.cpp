#include "engine/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"
#include "engine/sampler_kernels.h"

namespace dg {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit changes every output bit.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

const SamplerKernels& kernels() {
  static const SamplerKernels& best = sampler_kernels().back();
  return best;
}

// Chunk sums are relative to the chunk's own maximum: this makes them relative to the row's.
double chunk_weight(float chunk_sum, float chunk_max, float max, float scale) {
  return chunk_sum > 0 ? static_cast<double>(chunk_sum) * static_cast<double>(exp2_of_negative((chunk_max - max) * scale)) : 0;
}

}  // namespace

double uniform_draw(uint64_t seed, uint64_t position) { return static_cast<double>(mix(mix(seed) ^ mix(~position)) >> 11) * 0x1p-53; }

float scale_of(const SamplingParams& params) {
  return picks_largest(params) ? kLog2E : static_cast<float>(std::min(1 / params.temperature * M_LOG2E, 1e30));
}

float smallest_kept(const SamplingParams& params, float max, float scale) {
  float at_least = max - kNegligibleBits / scale;
  if (params.min_p > 0) {
    double floor = static_cast<double>(max) + params.temperature * std::log(std::min(params.min_p, 1.0));
    at_least = std::max(at_least, static_cast<float>(floor));
  }
  return at_least;
}

int32_t draw_from_chunk(const float* logits, float chunk_max, float max, float scale, double left, int32_t first) {
  int32_t last = -1;
  double factor = static_cast<double>(exp2_of_negative((chunk_max - max) * scale));
  for (size_t i = 0; i < kChunk; i++) {
    double weight = factor * static_cast<double>(exp2_of_negative((logits[i] - chunk_max) * scale));
    if (weight > 0) last = first + static_cast<int32_t>(i);
    if (left < weight) break;
    left -= weight;
  }
  return last;
}

TokenHistory::Entry& TokenHistory::entry(int32_t id) {
  auto [at, added] = index_.try_emplace(id, entries_.size());
  if (added) entries_.push_back({id, 0});
  return entries_[at->second];
}
void TokenHistory::add_prompt(std::span<const int32_t> ids) {
  for (int32_t id : ids) entry(id);
}
void TokenHistory::add_output(int32_t id) { entry(id).outputs++; }

int32_t argmax(std::span<const float> logits) {
  int32_t best = -1;
  float max = kMinusInfinity;
  for (size_t i = 0; i < logits.size(); i++)
    if (logits[i] > max) max = logits[i], best = static_cast<int32_t>(i);
  return best;
}

// A chunk that may be written; the last one is padded with what can never be picked.
float* Sampler::own_chunk(size_t chunk) {
  float* own = own_.data() + chunk * kChunk;
  if (chunks_[chunk] != own) {
    size_t count = std::min(kChunk, vocab_ - chunk * kChunk);
    std::copy_n(chunks_[chunk], count, own);
    std::fill(own + count, own + kChunk, kMinusInfinity);
    chunks_[chunk] = own;
  }
  return own;
}

// Where to change the logit of `id`; null outside the vocabulary.
float* Sampler::patch(int32_t id) {
  if (id < 0 || static_cast<size_t>(id) >= vocab_) return nullptr;
  return own_chunk(static_cast<size_t>(id) / kChunk) + static_cast<size_t>(id) % kChunk;
}

void Sampler::prepare(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  vocab_ = input.logits.size();
  size_t count = (vocab_ + kChunk - 1) / kChunk;
  chunks_.resize(count);
  chunk_max_.resize(count);
  chunk_sum_.resize(count);
  own_.resize(std::max(own_.size(), count * kChunk));
  for (size_t c = 0; c < count; c++) chunks_[c] = input.logits.data() + c * kChunk;
  if (vocab_ % kChunk) own_chunk(count - 1);

  if (input.adjusted) return;
  if (input.history && params.penalises()) {
    // Many tokens reach most chunks: copying them in order is faster than in the order of the tokens.
    if (input.history->entries_.size() > count)
      for (size_t c = 0; c < count; c++) own_chunk(c);
    for (auto [id, outputs] : input.history->entries_) {
      float* at = patch(id);
      if (!at) continue;
      double logit = *at;
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      if (outputs > 0) logit -= params.presence_penalty + params.frequency_penalty * outputs;
      *at = static_cast<float>(logit);
    }
  }
  for (auto [id, bias] : params.logit_bias)
    if (float* at = patch(id)) *at += bias;
  for (int32_t id : input.forbidden)
    if (float* at = patch(id)) *at = kMinusInfinity;

  if (!input.allowed) return;
  for (size_t c = 0; c < count; c++) {
    std::array<uint32_t, kChunk / 32> words{};
    size_t ids = std::min(kChunk, vocab_ - c * kChunk);
    std::copy_n(input.allowed + c * words.size(), (ids + 31) / 32, words.begin());
    if (std::all_of(words.begin(), words.end(), [](uint32_t w) { return w == ~uint32_t{0}; })) continue;
    if (std::all_of(words.begin(), words.end(), [](uint32_t w) { return w == 0; })) {
      chunks_[c] = nullptr;
      continue;
    }
    float* own = own_.data() + c * kChunk;
    kernels().mask(chunks_[c], words.data(), own);
    chunks_[c] = own;
  }
}

float Sampler::logit(int32_t id) const {
  const float* chunk = chunks_[static_cast<size_t>(id) / kChunk];
  return chunk ? chunk[static_cast<size_t>(id) % kChunk] : kMinusInfinity;
}

int32_t Sampler::first_with(float max) const {
  for (size_t c = 0; c < chunks_.size(); c++)
    if (chunk_max_[c] == max && chunks_[c])
      for (size_t i = 0; i < kChunk; i++)
        if (chunks_[c][i] == max) return static_cast<int32_t>(c * kChunk + i);
  return -1;
}

// At least `count` logits are this large: the count-th largest chunk maximum, or the lowest number where chunks are too few.
float Sampler::bound_of_largest(size_t count) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  if (count == 0 || count > chunk_max_.size()) return kLowest;
  scratch_ = chunk_max_;
  auto nth = scratch_.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(scratch_.begin(), nth, scratch_.end(), std::greater<>());
  return std::max(*nth, kLowest);
}

void Sampler::gather(float at_least, float scale) {
  at_least = std::max(at_least, std::numeric_limits<float>::lowest());  // never -inf: that is what must not be picked
  candidates_.clear();
  for (size_t c = 0; c < chunks_.size(); c++) {
    if (!(chunk_max_[c] >= at_least)) continue;
    const float* logits = chunks_[c];
    std::array<int32_t, kChunk + 1> hits;
    size_t found = 0;
    for (size_t i = 0; i < kChunk; i++) {  // without a branch: in a chunk with candidates they are anywhere
      hits[found] = static_cast<int32_t>(i);
      found += logits[i] >= at_least;
    }
    for (size_t k = 0; k < found; k++) {
      float logit = logits[hits[k]], bits = (logit - max_) * scale;
      candidates_.push_back({logit, static_cast<int32_t>(c * kChunk) + hits[k], bits > -125 ? static_cast<double>(bits) : -125.0,
                             static_cast<double>(exp2_of_negative(bits))});
    }
  }
}

int32_t Sampler::draw_from_all(double uniform, float scale) const {
  double total = 0;
  for (size_t c = 0; c < chunks_.size(); c++) total += chunk_weight(chunk_sum_[c], chunk_max_[c], max_, scale);
  double left = uniform * total;
  size_t last_chunk = chunks_.size();  // rounding may leave a crumb: it belongs to the last token that can be drawn at all
  for (size_t c = 0; c < chunks_.size(); c++) {
    double weight = chunk_weight(chunk_sum_[c], chunk_max_[c], max_, scale);
    if (weight > 0) last_chunk = c;
    if (left < weight) break;
    left -= weight;
  }
  CHECK(last_chunk < chunks_.size()) << "the chunk of the maximum weighs at least 1";
  return draw_from_chunk(chunks_[last_chunk], chunk_max_[last_chunk], max_, scale, left, static_cast<int32_t>(last_chunk * kChunk));
}

int32_t Sampler::draw_from_candidates(double uniform) const {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  double left = uniform * total;
  int32_t last = -1;
  for (const Candidate& c : candidates_) {
    if (c.weight > 0) last = c.id;
    if (left < c.weight) break;
    left -= c.weight;
  }
  return last;
}

void Sampler::keep_top_k(size_t count) {
  if (count >= candidates_.size()) return;
  sorted_ = candidates_;
  auto nth = sorted_.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(sorted_.begin(), nth, sorted_.end(), better);
  std::erase_if(candidates_, [last = *nth](const Candidate& c) { return better(last, c); });
}

// Keeps candidates in the order of `distance`, the smallest first, then of `before`, until they hold `wanted` of the mass; at
// least one. The end is found without sorting: masses by classes of 1/32 of the distance, only the class with the end is sorted.
template <class Distance, class Before>
void Sampler::keep_mass(double wanted, Distance distance, Before before) {
  constexpr size_t kClasses = 126 * 32;
  auto class_of = [&](const Candidate& c) { return std::min(static_cast<size_t>(distance(c) * 32), kClasses - 1); };
  bucket_mass_.assign(kClasses, 0);
  for (const Candidate& c : candidates_) bucket_mass_[class_of(c)] += c.weight;
  double sum = 0;
  size_t end = 0;
  while (end < kClasses && !(bucket_mass_[end] > 0 && sum + bucket_mass_[end] >= wanted)) sum += bucket_mass_[end++];
  if (end == kClasses) return;
  sorted_.clear();
  for (const Candidate& c : candidates_)
    if (class_of(c) == end) sorted_.push_back(c);
  std::sort(sorted_.begin(), sorted_.end(), before);
  size_t kept = 1;
  for (sum += sorted_[0].weight; kept < sorted_.size() && sum < wanted; kept++) sum += sorted_[kept].weight;
  size_t size = 0;
  for (const Candidate& c : candidates_) {
    size_t group = class_of(c);
    if (group < end || (group == end && !before(sorted_[kept - 1], c))) candidates_[size++] = c;
  }
  candidates_.resize(size);
}

void Sampler::keep_top_p(double wanted) {
  keep_mass(
      wanted, [](const Candidate& c) { return -c.bits; }, better);
}

// Top-p alone: candidates down to where they hold enough of the whole row's mass. Few steps: each looks at the row again.
void Sampler::gather_nucleus(double top_p, float scale) {
  double total = 0;
  for (size_t c = 0; c < chunks_.size(); c++) total += chunk_weight(chunk_sum_[c], chunk_max_[c], max_, scale);
  for (float bits : kNucleusBits) {
    gather(max_ - bits / scale, scale);
    double mass = 0;
    for (const Candidate& c : candidates_) mass += c.weight;
    if (mass >= top_p * total) break;
  }
  keep_top_p(top_p * total);
}

// -log p of a token less the entropy is (mean bits - its bits) * ln 2: no logarithm is needed.
void Sampler::keep_typical(double typical_p) {
  double total = 0, mean = 0;
  for (const Candidate& c : candidates_) total += c.weight, mean += c.weight * c.bits;
  mean /= total;
  auto distance = [mean](const Candidate& c) { return std::abs(c.bits - mean); };
  keep_mass(typical_p * total, distance, [&](const Candidate& a, const Candidate& b) {
    double x = distance(a), y = distance(b);
    return x < y || (x == y && a.id < b.id);
  });
}

int32_t Sampler::pick(const SampleInput& input, float scale) {
  const SamplingParams& params = *input.params;
  double uniform = uniform_draw(input.seed, input.position);
  bool top_k = limits_count(params, vocab_);
  if (!top_k && !(params.min_p > 0) && params.top_p < 1) {
    gather_nucleus(params.top_p, scale);
  } else if (top_k || params.min_p > 0 || params.typical_p < 1) {
    float at_least = smallest_kept(params, max_, scale);
    if (top_k) at_least = std::max(at_least, bound_of_largest(static_cast<size_t>(params.top_k)));
    gather(at_least, scale);
    if (top_k) keep_top_k(static_cast<size_t>(params.top_k));
    if (params.top_p < 1) {
      double total = 0;
      for (const Candidate& c : candidates_) total += c.weight;
      keep_top_p(params.top_p * total);
    }
  } else {
    return draw_from_all(uniform, scale);
  }
  if (params.typical_p < 1) keep_typical(params.typical_p);
  return draw_from_candidates(uniform);
}

// Wants the sums of exp(logit - max), at temperature 1, in chunk_sum_.
void Sampler::add_logprobs(const SampleInput& input, SampleOutput& output) {
  if (std::isinf(max_)) {  // one token has everything
    if (input.logprobs > 0) output.top.emplace_back(output.id, 0.0f);
    return;
  }
  double total = 0;
  for (size_t c = 0; c < chunks_.size(); c++) total += chunk_weight(chunk_sum_[c], chunk_max_[c], max_, kLog2E);
  double normaliser = static_cast<double>(max_) + std::log(total);
  output.logprob = static_cast<float>(static_cast<double>(logit(output.id)) - normaliser);
  auto count = static_cast<size_t>(input.logprobs);
  if (count == 0) return;
  gather(bound_of_largest(count), kLog2E);
  count = std::min(count, candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count), candidates_.end(), better);
  for (size_t i = 0; i < count; i++)
    output.top.emplace_back(candidates_[i].id, static_cast<float>(static_cast<double>(candidates_[i].logit) - normaliser));
}

void Sampler::sample(const SampleInput& input, SampleOutput& output) {
  CHECK(input.params);
  const SamplingParams& params = *input.params;
  output.id = -1;
  output.logprob = 0;
  output.top.clear();
  if (input.picked) {
    sample_picked(input, output);
    return;
  }
  prepare(input);

  const bool greedy = picks_largest(params);
  const float scale = scale_of(params);
  bool sums = !greedy && !(params.min_p > 0) && !limits_count(params, vocab_);
  bool logprobs = input.logprobs >= 0;
  if (sums || (logprobs && scale == kLog2E)) {
    kernels().max_sum(chunks_.data(), chunks_.size(), scale, chunk_max_.data(), chunk_sum_.data());
  } else {
    kernels().max(chunks_.data(), chunks_.size(), chunk_max_.data());
  }
  max_ = kMinusInfinity;
  for (float max : chunk_max_) max_ = std::max(max_, max);
  if (max_ == kMinusInfinity) return;
  output.id = greedy || std::isinf(max_) ? first_with(max_) : pick(input, scale);
  if (!logprobs) return;
  if (scale != kLog2E) kernels().max_sum(chunks_.data(), chunks_.size(), kLog2E, chunk_max_.data(), chunk_sum_.data());
  add_logprobs(input, output);
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history, uint64_t position) {
  SampleOutput output;
  sample({.logits = logits, .params = &params, .history = &history, .position = position, .seed = params.seed}, output);
  return output.id;
}

}  // namespace dg
