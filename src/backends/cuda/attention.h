// What attention.cpp and mla_attention.cpp share.
#pragma once
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/attention_kernels.h"

namespace dg::cuda {

CacheView cache_view(const PagedCache& cache);
SequenceArgs sequence_args(const DeviceSequences& sequences);

// How decode rows are cut: `units` blocks for each range, `at_once` blocks run together, ranges of at least `shortest` positions; a
// block costs about `overhead` positions by itself.
SplitPlan split_plan(int64_t units, int64_t longest_kv, int64_t at_once, int64_t shortest, int64_t overhead);

}  // namespace dg::cuda
