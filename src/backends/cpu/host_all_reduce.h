// all_reduce of backends whose memory is the host's: the ranks meet in their RankGroup.
#pragma once
#include "device/ops.h"
#include "device/rank_group.h"

namespace dg {

// x = sum over the ranks of their x, added in order of rank; nothing without a group. When the group has failed x is left as it is
// or half summed: who runs the step asks the group afterwards.
void host_all_reduce(RankGroup* group, int rank, const Tensor& x);

}  // namespace dg
