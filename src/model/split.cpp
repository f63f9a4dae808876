#include "model/split.h"

#include <fmt/core.h>

#include <algorithm>

namespace dg {

Share split_evenly(const Parallel& parallel, int64_t size, int64_t unit) {
  const int64_t n = parallel.size, r = parallel.rank;
  if (n == 1) return {0, size};
  if (unit == 0) return {};
  // Products are fastest on multiples of 128, and of 32 at least.
  for (int64_t round = 128; round >= 1; round /= 2)
    if (round % unit == 0 && size % (round * n) == 0) return {size / n * r, size / n};
  if (size % (unit * n) == 0) return {size / n * r, size / n};
  auto blocks_of = [&](int64_t block) { return (size + block - 1) / block; };
  int64_t block = unit;
  while (block % 32 != 0 && blocks_of(block * 2) >= n) block *= 2;
  if (blocks_of(block) < n) return {};
  const int64_t blocks = blocks_of(block), first = blocks * r / n * block, end = std::min(size, blocks * (r + 1) / n * block);
  return {first, end - first};
}

HeadShare split_heads(const Parallel& parallel, int64_t heads, int64_t kv_heads) {
  const int64_t n = parallel.size, count = heads / n, group = heads / std::max<int64_t>(1, kv_heads);
  if (heads % n != 0 || group == 0 || (count % group != 0 && group % count != 0)) return {};
  const int64_t first = count * parallel.rank;
  return {{first, count}, {first / group, std::max<int64_t>(1, count / group)}};
}

Error cannot_split_error(const ModelConfig& config, const std::string& what, const std::vector<int>& sizes) {
  std::string list;
  for (size_t i = 0; i < sizes.size(); i++) list += (i == 0 ? "" : i + 1 == sizes.size() ? " or " : ", ") + std::to_string(sizes[i]);
  return input_error(fmt::format("{}: --tensor-parallel-size {}: {} cannot be split so; use {}", config.origin, config.parallel.size, what,
                                 list.empty() ? "1" : list));
}

HeadShare share_heads(WeightStore& store, const ModelConfig& config, std::initializer_list<HeadSide> sides) {
  auto divides = [&](const Parallel& p, const HeadSide& side) {
    const HeadShare share = split_heads(p, config.heads, config.kv_heads);
    return p.size == 1 || (side.unit > 0 && (side.kv ? share.kv : share.q).count * side.width % side.unit == 0);
  };
  auto works = [&](const Parallel& p) {
    return split_heads(p, config.heads, config.kv_heads).q.count > 0 &&
           std::all_of(sides.begin(), sides.end(), [&](const HeadSide& side) { return divides(p, side); });
  };
  if (works(config.parallel)) return split_heads(config.parallel, config.heads, config.kv_heads);
  std::string what = fmt::format("{} attention heads (num_key_value_heads {})", config.heads, config.kv_heads);
  if (split_heads(config.parallel, config.heads, config.kv_heads).q.count > 0)
    for (const HeadSide& side : sides)
      if (!divides(config.parallel, side)) {
        what = fmt::format("{} attention heads of {} rows or columns of weights that can be cut {}", config.heads, side.width,
                           side.unit == 0 ? std::string("nowhere (act order)") : fmt::format("every {}", side.unit));
        break;
      }
  store.fail(cannot_split(config, what, works));
  return {};
}

Share share_dimension(WeightStore& store, const ModelConfig& config, int64_t size, int64_t unit, const std::string& what) {
  const Share share = split_evenly(config.parallel, size, unit);
  if (share.count == 0)
    store.fail(cannot_split(config, fmt::format("{} of {} in blocks of {}", what, size, unit == 0 ? size : unit), [&](const Parallel& p) {
      return split_evenly(p, size, unit).count > 0 && split_heads(p, config.heads, config.kv_heads).q.count > 0;
    }));
  return share;
}

}  // namespace dg
