// The loops over all logits of a row, which decide what a draw costs. Every variant gives the same bits: 16 lanes whatever the
// machine's vectors are, sums in the same order, no fused multiply-add.
//
// A row comes as chunks of kChunk logits, so that a caller can replace some of them without copying the others.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

namespace dg {

constexpr size_t kChunk = 256;
// A logit this many powers of two below the largest weighs nothing: 150,000 such tokens are 1.4e-7 of the total.
constexpr float kNegligibleBits = 40;

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

// 2^y for y <= 0, relative error below 3e-7; 0 for y < -125 and NaN. The same bits as inside max_sum.
float exp2_of_negative(float y);

}  // namespace dg
