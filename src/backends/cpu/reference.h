// The reference backend: plain loops that define what every op computes. Slow, single-threaded, any format and stride.
#pragma once
#include <memory>

#include "device/backend.h"
#include "device/rank_group.h"

namespace dg {

std::unique_ptr<Backend> make_reference_backend(RankGroup* group = nullptr, int rank = 0);  // which outlives it

}  // namespace dg
