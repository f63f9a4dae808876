// How the ranks of a tensor-parallel group divide the dimensions of a model.
#pragma once
#include <initializer_list>

#include "model/config.h"
#include "model/weight_store.h"

namespace dg {

struct Share {
  int64_t first = 0, count = 0;
  WeightPart rows(int64_t width = 1) const { return WeightPart::of_rows(first * width, count * width); }
  WeightPart columns(int64_t width = 1) const { return WeightPart::of_columns(first * width, count * width); }
};

// Share of `size` elements that may be cut every `unit` (0: nowhere): equal where that works with cuts at a round number, else as many
// units as the others or one more. count 0: there are fewer units than ranks.
Share split_evenly(const Parallel& parallel, int64_t size, int64_t unit);

// Share of the query heads and of the key-value heads that they read. One of several ranks that read the same key-value head keeps a
// copy of it. count 0: they do not divide.
struct HeadShare {
  Share q, kv;
};
HeadShare split_heads(const Parallel& parallel, int64_t heads, int64_t kv_heads);

// "config.json: ... cannot be split over 3 ranks: <what>; --tensor-parallel-size 2, 4 and 8 work": those sizes for which `works`.
template <class Works>
Error cannot_split(const ModelConfig& config, const std::string& what, Works works);
Error cannot_split_error(const ModelConfig& config, const std::string& what, const std::vector<int>& sizes);
inline constexpr int kMostRanks = 64;

template <class Works>
Error cannot_split(const ModelConfig& config, const std::string& what, Works works) {
  std::vector<int> sizes;
  for (int n = 1; n <= kMostRanks; n++)
    if (works(Parallel{.size = n})) sizes.push_back(n);
  return cannot_split_error(config, what, sizes);
}

// A side of a matrix that is cut between heads: its elements of a head, and where its format can be cut (0: nowhere).
struct HeadSide {
  int64_t width, unit;
  bool kv = false;  // of key-value heads
};
// The heads of attention, where all these matrices can be cut; a problem goes to the store and leaves counts of 0.
HeadShare share_heads(WeightStore& store, const ModelConfig& config, std::initializer_list<HeadSide> sides);
// The same of a dimension with this unit; `what` names it.
Share share_dimension(WeightStore& store, const ModelConfig& config, int64_t size, int64_t unit, const std::string& what);

}  // namespace dg
