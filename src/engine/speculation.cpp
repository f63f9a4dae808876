#include "engine/speculation.h"

#include <algorithm>
#include <bit>

namespace dg {

void ngram_drafts(std::span<const int32_t> ids, int count, std::vector<int32_t>& drafts, int64_t window) {
  drafts.clear();
  auto n = static_cast<int64_t>(ids.size());
  int64_t first = std::max<int64_t>(0, n - window);
  int64_t pair = -1;  // the last place where only the two last tokens match
  for (int64_t end = n - 2; end >= first + 1; end--) {
    if (ids[static_cast<size_t>(end)] != ids[static_cast<size_t>(n - 1)] ||
        ids[static_cast<size_t>(end - 1)] != ids[static_cast<size_t>(n - 2)])
      continue;
    if (end >= first + 2 && ids[static_cast<size_t>(end - 2)] == ids[static_cast<size_t>(n - 3)]) {
      pair = end;
      break;
    }
    if (pair < 0) pair = end;
  }
  if (pair < 0) return;
  for (int64_t i = pair + 1; i < n && static_cast<int>(drafts.size()) < count; i++) drafts.push_back(ids[static_cast<size_t>(i)]);
}

size_t SpeculationController::index(int64_t sequences) {
  auto width = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(1, sequences))) - 1);
  return std::min<size_t>(width, 15);
}

bool SpeculationController::should_draft(int64_t sequences) { return drafting(sequences); }

void SpeculationController::record(int64_t sequences, int64_t tokens, double seconds, bool drafted) {
  if (!adaptive_) return;
  Bucket& b = buckets_[index(sequences)];
  if (drafted != b.drafting) return;  // the switch takes a step to arrive
  if (!b.trying) {
    if (--b.left > 0) return;
    // Time to see whether the other mode has become better.
    b.drafting = !b.drafting;
    b.trying = true;
    b.measured = 0, b.tokens = b.seconds = 0;
    return;
  }
  if (b.measured++ > 0) b.tokens += static_cast<double>(tokens), b.seconds += seconds;
  if (b.measured <= kTrial) return;
  b.rate[b.drafting] = b.seconds > 0 ? b.tokens / b.seconds : 0;
  b.measured = 0, b.tokens = b.seconds = 0;
  if (b.rate[!b.drafting] == 0) {  // the other has never been measured here
    b.drafting = !b.drafting;
    return;
  }
  bool better = b.rate[1] >= b.rate[0];
  // The same verdict again: ask less often.
  b.stay = better != b.drafting ? std::min(b.stay * 2, kStayMax) : kStay;
  b.drafting = better;
  b.trying = false;
  b.left = b.stay;
}

}  // namespace dg
