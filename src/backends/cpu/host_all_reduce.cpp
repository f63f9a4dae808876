#include "backends/cpu/host_all_reduce.h"

namespace dg {

// Rank r sums the r-th part of the elements and writes the sum to every rank: nobody else touches that part between the two
// meetings, so neither copies nor locks are needed.
void host_all_reduce(RankGroup* group, int rank, const Tensor& x) {
  if (!group || group->size() == 1) return;
  CHECK(x.contiguous() && x.dtype == Dtype::kF32);
  auto addresses = group->exchange(rank, x.data);
  if (!addresses.ok()) return;
  const int64_t ranks = group->size(), n = x.elements();
  for (int64_t i = n * rank / ranks, end = n * (rank + 1) / ranks; i < end; i++) {
    float sum = static_cast<const float*>((*addresses)[0])[i];
    for (size_t r = 1; r < addresses->size(); r++) sum += static_cast<const float*>((*addresses)[r])[i];
    for (void* to : *addresses) static_cast<float*>(to)[i] = sum;
  }
  // Nobody reads before all have written. A failure is known to the group.
  static_cast<void>(group->exchange(rank, nullptr));
}

}  // namespace dg
