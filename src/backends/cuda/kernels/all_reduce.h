// Launches of the collectives (collective.h says how they work): asynchronous on the stream, the same call on every rank.
#pragma once
#include <cuda_runtime.h>

#include "backends/cuda/kernels/collective.h"

namespace dg::cuda {

// elements <= slot_elements.
void launch_reduce_push(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream);
// elements <= half_elements.
void launch_reduce_one_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream);
void launch_reduce_two_shot(const CollectiveArgs& c, const ReduceArgs& a, cudaStream_t stream);
// Sets `parts` and `across`. False: rows too long for the registers of a block, or of several (`clusters`: compute capability 9.0).
bool divide_reduce_norm(ReduceNormArgs& a, int ranks, bool clusters);
// rows * groups * 4 <= slot_elements.
void launch_reduce_norm(const CollectiveArgs& c, const ReduceNormArgs& a, cudaStream_t stream);

}  // namespace dg::cuda
