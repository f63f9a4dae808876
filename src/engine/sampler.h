// Sampler: picks the next token from one row of logits.
//
// Order of the filters, as vLLM: penalties, temperature, min_p, top_k, top_p (of what is left, renormalised). A greedy pick
// takes the lowest id of equal logits. The random number of a draw is a function of (seed, position) alone: a request
// reproduces bit for bit whatever else ran before or beside it.
#pragma once
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace dg {

struct SamplingParams {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0 or less: off
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;  // prompt and output; divides positive logits, multiplies negative ones (CTRL, arXiv 1909.05858)
  double presence_penalty = 0;    // output only, once per distinct token
  double frequency_penalty = 0;   // output only, per occurrence
  uint64_t seed = 0;

  bool greedy() const { return temperature <= 0; }
  bool penalises() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

// Which tokens a sequence has, for the penalties.
class TokenHistory {
 public:
  void add_prompt(std::span<const int32_t> ids);
  void add_output(int32_t id);

 private:
  friend class Sampler;
  std::unordered_map<int32_t, int64_t> output_count_;  // 0: in the prompt only
};

// Uniform in [0, 1), 53 bits, from a counter: no state, so no draw depends on another.
double uniform_draw(uint64_t seed, uint64_t position);

// Owns scratch for one row; one thread.
class Sampler {
 public:
  // `position` counts the tokens of the sequence so far. NaN never wins; -1 when every logit is NaN or -inf: the model is
  // broken, and the caller reports it.
  int32_t sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history, uint64_t position);

 private:
  struct Candidate {
    double weight;  // exp((logit - max) / temperature)
    int32_t id;
  };
  void penalise(std::span<float> logits, const SamplingParams& params, const TokenHistory& history) const;
  int32_t draw(std::span<const float> logits, float max, const SamplingParams& params, double uniform);

  std::vector<float> adjusted_;
  std::vector<Candidate> candidates_;
};

// The likeliest token, the lowest id of equals, or -1.
int32_t argmax(std::span<const float> logits);

}  // namespace dg
