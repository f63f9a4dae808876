// Speculative decoding without a change of the text: every token is drawn from the model's own distribution with the random
// number of its position, and a draft is accepted when it equals that token (a rejected one costs its row and nothing else).
// So the output is bit for bit that of plain decoding, for greedy and for sampled text. The draft model samples with the same
// random number (common random numbers), which makes agreement as likely as the two distributions are alike; for drafts
// without a distribution (n-gram) this is exactly rejection sampling (arXiv 2302.01318) with a point mass.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace dg {

// Prompt look-up: what followed the last occurrence of the longest suffix (3, 2 tokens) of `ids`, at most `count` tokens.
// Looks back at most `window` tokens. Empty when there is none.
void ngram_drafts(std::span<const int32_t> ids, int count, std::vector<int32_t>& drafts, int64_t window = 8192);

// Decides whether to draft, from what steps took with and without drafts. Steps of similar batches (equal power of two) are
// compared; one mode is tried again now and then, and for every new size of batch. Engine thread only.
class SpeculationController {
 public:
  // `adaptive` false: always drafts.
  explicit SpeculationController(bool adaptive) : adaptive_(adaptive) {}

  bool should_draft(int64_t sequences);
  // A step of `sequences` generating rows and no prompt rows took `seconds` and gave `tokens`; `drafted`: it verified drafts
  // or made some.
  void record(int64_t sequences, int64_t tokens, double seconds, bool drafted);
  bool drafting(int64_t sequences) const { return !adaptive_ || bucket(sequences).drafting; }

 private:
  static constexpr int kTrial = 6;   // steps of one mode that are measured in a row; the first does not count
  static constexpr int kStay = 200;  // steps with the better one before the other is tried again
  static constexpr int kStayMax = 3200;
  struct Bucket {
    double rate[2] = {0, 0};  // tokens per second without and with drafts; 0: unknown
    double tokens = 0, seconds = 0;
    int measured = 0;  // steps of the present trial
    int left = 0;      // steps until the other mode is tried
    int stay = kStay;
    bool drafting = true, trying = true;
  };
  static size_t index(int64_t sequences);
  const Bucket& bucket(int64_t sequences) const { return buckets_[index(sequences)]; }

  const bool adaptive_;
  std::array<Bucket, 16> buckets_{};
};

}  // namespace dg
