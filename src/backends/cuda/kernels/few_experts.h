// Launchers of the experts of up to 8 tokens (few_experts.cuh). Asynchronous on `stream`, addresses on the device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/kernels/product_kernels.h"

namespace dg::cuda {

constexpr int kFewTokens = 8;   // columns of an mma
constexpr int kFewPairs = 64;   // most (token, slot) pairs
constexpr int kFewUpWarps = 8;  // at most, of a CTA
constexpr int kFewDownWarps = 16;

struct FewExpertsArgs {
  const ExpertMatrices* experts;
  const int32_t* ids;  // (tokens, top_k)
  int64_t ld_ids;
  const float* weights;  // (tokens, top_k)
  int64_t ld_weights;
  int32_t tokens, top_k;
  int32_t first, count;            // experts [first, first + count) are in the table
  int64_t aux_offset, tile_bytes;  // of the matrices that are multiplied
  int32_t out, chunks, tiles;
  const void* x;  // up: f32 (tokens, ldx), whole chunks, 16-byte rows. down: bf16 (pairs, ldx), zeros behind the last column
  uint32_t ldx;
  void* to;  // up: bf16 (pairs, ld_to) = silu(gate x) * up x. down: f32 (tokens, ld_to) += weighted sums over a token's pairs
  int64_t ld_to;
  bool early;  // down: ids, table and weights were there before the kernel before this one started
};
struct FewExpertsShape {
  WeightKind kind;
  bool down;
  int warps;  // of a CTA, which share the columns: up 2, 4, 8; down 4, 8, 16
  int ctas;   // of up per multiprocessor; -1: as many as it has room for; 0: one for each unit
  int multiprocessors;
};
template <WeightKind kKind>
void launch_few_experts_kind(const FewExpertsShape& shape, const FewExpertsArgs& args, cudaStream_t stream);

}  // namespace dg::cuda
