// Sampler: picks the next token from one row of logits.
//
// Order of the filters, as vLLM: penalties, bias, mask (grammar and forbidden ids), temperature, min_p, top_k, top_p (of what is
// left, renormalised), typical_p (the same). Of equal logits the lower id stays. A greedy pick takes the lowest id of equals.
//
// A draw goes along the cumulative distribution in ascending order of ids, with one uniform number that is a function of (seed,
// position) alone: a request reproduces bit for bit whatever else ran before or beside it and on every instruction set, and two
// similar distributions (a draft and its target) mostly pick the same token.
//
// Cost: one pass over the row (sampler_kernels.h) keeps the maximum and sum of every 256 logits; filters then look only into
// chunks that hold a candidate. Logits are never copied as a whole: only chunks that penalties, bias or mask change are.
#pragma once
#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device/row_picks.h"

namespace dg {

struct SamplingParams {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0 or less: off
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;           // locally typical sampling (arXiv 2202.00666); 1: off
  double repetition_penalty = 1;  // prompt and output; divides positive logits, multiplies negative ones (CTRL, arXiv 1909.05858)
  double presence_penalty = 0;    // output only, once per distinct token
  double frequency_penalty = 0;   // output only, per occurrence
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias{};  // (id, what is added); ids outside the vocabulary are ignored

  bool greedy() const { return !(temperature > 0); }
  bool penalises() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

// Which tokens a sequence has, for the penalties.
class TokenHistory {
 public:
  struct Entry {
    int32_t id;
    int32_t outputs;  // 0: in the prompt only
  };
  void add_prompt(std::span<const int32_t> ids);
  void add_output(int32_t id);
  std::span<const Entry> entries() const { return entries_; }  // every id once
  // Where in entries() the id is, or -1.
  int64_t find(int32_t id) const {
    auto at = index_.find(id);
    return at == index_.end() ? -1 : static_cast<int64_t>(at->second);
  }

 private:
  friend class Sampler;
  Entry& entry(int32_t id);

  std::vector<Entry> entries_;  // distinct ids, read in whole for every token
  std::unordered_map<int32_t, size_t> index_;
};

// Uniform in [0, 1), 53 bits, from a counter: no state, so no draw depends on another.
double uniform_draw(uint64_t seed, uint64_t position);

// The figures that pick_rows (device/ops.h) gave for one row.
struct PickedRow {
  PickHeader header;
  std::span<const float> logits;  // (header.count)
  std::span<const int32_t> ids;   // (header.count)
  const float* chunk = nullptr;   // (kChunk), where a draw was asked for
  int64_t vocab = 0;
};

// What to ask for, for a row of these parameters; candidates 0: nothing, the row itself is needed.
PickSpec picks_for(const SamplingParams& params, int logprobs, int64_t vocab);

struct SampleInput {
  std::span<const float> logits;           // (vocab)
  const SamplingParams* params = nullptr;  // its seed is not looked at
  const TokenHistory* history = nullptr;   // null: no penalties
  uint64_t position = 0;                   // tokens of the sequence so far
  uint64_t seed = 0;
  const uint32_t* allowed = nullptr;     // bit mask of (vocab + 31) / 32 words, null: all
  std::span<const int32_t> forbidden{};  // ids that must not be picked
  int logprobs = -1;                     // -1: none; 0: of the chosen token; n: and the n likeliest
  // In place of `logits`: what picks_for() asked for, after penalties, bias, mask and forbidden ids.
  const PickedRow* picked = nullptr;
  bool adjusted = false;  // `logits` is after penalties, bias, mask and forbidden ids
};

struct SampleOutput {
  int32_t id = -1;
  float logprob = 0;                             // log-softmax after penalties, bias and mask, before temperature and filters
  std::vector<std::pair<int32_t, float>> top{};  // likeliest first, the lower id first of equals
};

constexpr int32_t kNeedsRow = -2;  // SampleOutput::id: `picked` does not tell which token; nothing was sampled

// Owns scratch for one row; one thread.
class Sampler {
 public:
  // NaN never wins. Id -1 when every logit is NaN or -inf, or nothing is allowed: the model is broken, and the caller says so.
  // A token (and its logprobs) that comes from `picked` is the one that comes from the row, bit for bit.
  void sample(const SampleInput& input, SampleOutput& output);
  int32_t sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history, uint64_t position);

 private:
  struct Candidate {
    float logit;
    int32_t id;
    double bits;    // (logit - max) * log2(e) / temperature, so that weight = 2^bits; 0 for the likeliest
    double weight;  // 1 for the likeliest
  };
  static bool better(const Candidate& a, const Candidate& b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

  void prepare(const SampleInput& input);
  float* own_chunk(size_t chunk);
  float* patch(int32_t id);
  float logit(int32_t id) const;
  int32_t first_with(float max) const;
  float bound_of_largest(size_t count);
  void gather(float at_least, float scale);
  int32_t draw_from_all(double uniform, float scale) const;
  // sampler_picked.cpp: the same from the figures of a row.
  void sample_picked(const SampleInput& input, SampleOutput& output);
  int32_t pick_listed(const SampleInput& input, float scale);
  bool list(const PickedRow& picked, size_t count, float at_least, float scale);
  int32_t draw_from_candidates(double uniform) const;
  void gather_nucleus(double top_p, float scale);
  bool list_nucleus(const PickedRow& picked, double top_p, float scale);
  void keep_top_k(size_t count);
  template <class Distance, class Before>
  void keep_mass(double wanted, Distance distance, Before before);
  void keep_top_p(double wanted);
  void keep_typical(double typical_p);
  int32_t pick(const SampleInput& input, float scale);
  void add_logprobs(const SampleInput& input, SampleOutput& output);

  static bool limits_count(const SamplingParams& params, size_t vocab) {
    return params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab;
  }

  size_t vocab_ = 0;
  float max_ = 0;
  std::vector<const float*> chunks_;  // of the row after penalties, bias and mask; null: nothing in it is allowed
  std::vector<float> own_;            // those chunks that differ from the input, in their places
  std::vector<float> chunk_max_, chunk_sum_, scratch_;
  std::vector<double> bucket_mass_;    // scratch of keep_mass
  std::vector<Candidate> candidates_;  // in ascending order of ids
  std::vector<Candidate> sorted_;
};

// What sampler.cpp and sampler_picked.cpp share.
inline bool picks_largest(const SamplingParams& params) { return params.greedy() || params.top_k == 1; }
float scale_of(const SamplingParams& params);  // log2(e) / temperature; log2(e) where the largest is picked
// The smallest logit that min_p leaves and that is not negligible.
float smallest_kept(const SamplingParams& params, float max, float scale);
// Where `left` of the mass ends among the kChunk logits from token `first` on; masses relative to a logit of `max`.
int32_t draw_from_chunk(const float* logits, float chunk_max, float max, float scale, double left, int32_t first);
constexpr float kNucleusBits[] = {6.0f, 9.0f, 12.0f, 16.0f, 20.0f, kNegligibleBits};  // how far down top_p looks, step by step

// The likeliest token, the lowest id of equals, or -1.
int32_t argmax(std::span<const float> logits);

}  // namespace dg
