// The loops over all logits of a row, which decide what a draw costs. Every variant gives the same bits: 16 lanes whatever the
// machine's vectors are, sums in the same order, no fused multiply-add.
//
// A row comes as chunks of kChunk logits (device/row_picks.h), so that a caller can replace some of them without copying the others.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "device/row_picks.h"

namespace dg {

struct SamplerKernels {
  const char* name;
  // Largest of each chunk, NaN aside; -inf for a chunk that is null or has nothing else.
  void (*max)(const float* const* chunks, size_t count, float* max);
  // The same, and of each chunk the sum of exp2((logit - its max) * scale), NaN aside. 0 where all of the chunk is
  // negligible beside what came before it.
  void (*max_sum)(const float* const* chunks, size_t count, float scale, float* max, float* sum);
  // out[i] = logits[i] where bit i of `bits` is set, else -inf; one chunk. In place is fine.
  void (*mask)(const float* logits, const uint32_t* bits, float* out);
};

// What this processor can run, the fastest last.
std::span<const SamplerKernels> sampler_kernels();

}  // namespace dg
