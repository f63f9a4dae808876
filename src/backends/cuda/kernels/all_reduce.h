// Launches of the collectives (collective.h says how they work): asynchronous on the stream, the same call on every rank.
#pragma once
#include <cuda_runtime.h>

#include "backends/cuda/kernels/collective.h"

namespace dg::cuda {

// elements <= half_elements.
void launch_reduce_one_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream);
void launch_reduce_two_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream);
// Whether rows of that many groups of four fit into the registers of a block, or of several (`clusters`: compute capability 9.0).
int reduce_norm_parts(int64_t groups, int ranks, bool clusters);  // ReduceNormArgs::parts; 0: they do not
// rows * groups * 4 <= half_elements.
void launch_reduce_norm(const CollectiveArgs& c, const ReduceNormArgs& a, cudaStream_t stream);

}  // namespace dg::cuda
