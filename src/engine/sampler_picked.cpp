// Sampling from the figures of a row that stayed on its device (device/row_picks.h). Every filter keeps the tokens, in the order of
// ids, and with the weights that Sampler finds in the row itself, so the same token is drawn; where the candidates do not reach far
// enough to know them, the answer is kNeedsRow.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/sampler.h"

namespace dg {

PickSpec picks_for(const SamplingParams& params, int logprobs, int64_t vocab) {
  PickSpec spec;
  if (vocab > kMostPickColumns) return spec;
  spec.repetition = params.repetition_penalty;
  spec.presence = params.presence_penalty;
  spec.frequency = params.frequency_penalty;
  spec.scale = scale_of(params);
  int64_t wanted = std::max(1, logprobs);
  if (logprobs >= 0) spec.flags |= spec.scale == kLog2E ? kPickSums : kPickSumsAtOne;
  if (!picks_largest(params)) {
    const bool top_k = params.top_k > 0 && params.top_k < vocab;
    if (top_k) {
      wanted = std::max(wanted, params.top_k);
    } else if (params.min_p > 0) {
      wanted = kMostCandidates;
    } else if (params.top_p < 1) {
      spec.flags |= kPickSums;
      wanted = kMostCandidates;
    } else if (params.typical_p < 1) {
      return spec;  // looks at all that is not negligible
    } else {
      spec.flags |= kPickSums | kPickDraw;
    }
  }
  if (wanted <= kMostCandidates) spec.candidates = static_cast<int32_t>(wanted);
  return spec;
}

// Candidates among the `count` largest logits that are `at_least`. False: others may be that large and are not among them.
bool Sampler::list(const PickedRow& picked, size_t count, float at_least, float scale) {
  at_least = std::max(at_least, std::numeric_limits<float>::lowest());
  candidates_.clear();
  for (size_t i = 0; i < std::min(count, picked.logits.size()); i++) {
    const float logit = picked.logits[i], bits = (logit - max_) * scale;
    if (!(logit >= at_least)) break;
    candidates_.push_back(
        {logit, picked.ids[i], bits > -125 ? static_cast<double>(bits) : -125.0, static_cast<double>(exp2_of_negative(bits))});
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  return picked.header.complete || count <= picked.logits.size() || candidates_.size() < picked.logits.size();
}

// The end of the nucleus is certain where it lies in a class of keep_mass() before that of the last candidate: classes are filled from
// the likeliest on, and what is not listed is not likelier than that one.
bool Sampler::list_nucleus(const PickedRow& picked, double top_p, float scale) {
  const double wanted = top_p * picked.header.total;
  bool certain = true;
  for (float bits : kNucleusBits) {
    certain = list(picked, std::numeric_limits<size_t>::max(), max_ - bits / scale, scale);
    double mass = 0;
    for (const Candidate& c : candidates_) mass += c.weight;
    if (!certain || mass >= wanted) break;
  }
  auto furthest_class = [&] {
    double bits = 0;
    for (const Candidate& c : candidates_) bits = std::max(bits, -c.bits);
    return static_cast<int64_t>(bits * 32);
  };
  const int64_t listed = furthest_class();
  keep_top_p(wanted);
  return certain || furthest_class() < listed;
}

int32_t Sampler::pick_listed(const SampleInput& input, float scale) {
  const SamplingParams& params = *input.params;
  const PickedRow& picked = *input.picked;
  const double uniform = uniform_draw(input.seed, input.position);
  const bool top_k = limits_count(params, vocab_);
  constexpr size_t kAll = std::numeric_limits<size_t>::max();
  if (!top_k && !(params.min_p > 0) && params.top_p < 1) {
    if (!list_nucleus(picked, params.top_p, scale)) return kNeedsRow;
  } else if (top_k || params.min_p > 0) {
    if (!list(picked, top_k ? static_cast<size_t>(params.top_k) : kAll, smallest_kept(params, max_, scale), scale)) return kNeedsRow;
    if (params.top_p < 1) {
      double total = 0;
      for (const Candidate& c : candidates_) total += c.weight;
      keep_top_p(params.top_p * total);
    }
  } else {
    if (!picked.chunk || picked.header.chunk < 0) return kNeedsRow;
    float chunk_max = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < kChunk; i++) chunk_max = picked.chunk[i] > chunk_max ? picked.chunk[i] : chunk_max;
    return draw_from_chunk(picked.chunk, chunk_max, max_, scale, picked.header.left, picked.header.chunk * static_cast<int32_t>(kChunk));
  }
  if (params.typical_p < 1) keep_typical(params.typical_p);
  return draw_from_candidates(uniform);
}

void Sampler::sample_picked(const SampleInput& input, SampleOutput& output) {
  const PickedRow& picked = *input.picked;
  vocab_ = static_cast<size_t>(picked.vocab);
  max_ = picked.header.max;
  if (picked.logits.empty()) return;
  const float scale = scale_of(*input.params);
  output.id = picks_largest(*input.params) || std::isinf(max_) ? picked.ids[0] : pick_listed(input, scale);
  if (input.logprobs < 0 || output.id < 0) return;
  const auto wanted = static_cast<size_t>(input.logprobs);
  if (std::isinf(max_)) {  // one token has everything
    if (wanted > 0) output.top.emplace_back(output.id, 0.0f);
    return;
  }
  const double total = scale == kLog2E ? picked.header.total : picked.header.total_at_one;
  const double normaliser = static_cast<double>(max_) + std::log(total);
  auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - normaliser); };
  const auto at = std::find(picked.ids.begin(), picked.ids.end(), output.id);
  output.logprob = logprob(at != picked.ids.end() ? picked.logits[static_cast<size_t>(at - picked.ids.begin())]
                                                  : picked.chunk[output.id % static_cast<int32_t>(kChunk)]);
  for (size_t i = 0; i < std::min(wanted, picked.logits.size()); i++) output.top.emplace_back(picked.ids[i], logprob(picked.logits[i]));
}

}  // namespace dg
