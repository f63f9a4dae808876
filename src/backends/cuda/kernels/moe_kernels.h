// Launchers of the mixture-of-experts kernels around the grouped products. Asynchronous on `stream`, addresses on the device.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/kernels/product_kernels.h"

namespace dg::cuda {

struct RouteArgs {
  int32_t* ids;  // (tokens, top_k)
  int64_t ld_ids;
  float* weights;
  int64_t ld_weights;
  const float* logits;  // (tokens, experts)
  int64_t ld_logits;
  const float* bias;  // (experts) or null
  int32_t tokens, experts, top_k, groups, top_groups;
  bool sigmoid, top_two_sum, normalise;
  float routed_scale;
};
constexpr int kMostRouteExperts = 1024;
void launch_route(const RouteArgs& args, cudaStream_t stream);

// Sorts the pairs (token, slot) of `tokens` rows of ids by expert; only experts [first, first + experts).
struct SortArgs {
  const int32_t* ids;
  int64_t ld_ids;
  int32_t tokens, top_k, first, experts;
  int32_t item_pairs;    // most pairs of a work item
  int32_t* token_of;     // (pairs) row of x of each sorted pair
  int32_t* pair_of;      // (tokens * top_k) place of each pair; -1: not an expert of ours
  int32_t* pair_expert;  // (pairs), or null: expert of each sorted pair
  GroupedItem* items;
  int32_t* counts;  // [0] work items, [1] pairs
};
constexpr int kMostLocalExperts = 2048;
void launch_sort_pairs(const SortArgs& args, cudaStream_t stream);

// out[t] += sum over k, in order, of weights[t][k] * y[pair_of[t][k]].
void launch_combine(float* out, int64_t ld_out, const float* weights, int64_t ld_weights, const int32_t* pair_of, int32_t top_k,
                    const float* y, int64_t ld_y, int64_t tokens, int64_t dim, cudaStream_t stream);

// Rows of sorted pairs in the order of columns of their experts' matrix `matrix`, as bf16 padded with zeros to ld: from x (f32,
// row_of[pair], or the pair's own row where row_of is null). Pairs beyond *pair_count are skipped. columns may be null for single experts.
struct PairRowsArgs {
  const ExpertMatrices* experts;
  int32_t matrix;
  const int32_t* pair_expert;
  const int32_t* row_of;
  const int32_t* pair_count;
  int64_t most_pairs;
  const float* x;
  int64_t ldx, in;
  void* to;
  int64_t ld;
};
void launch_pair_rows(const PairRowsArgs& args, cudaStream_t stream);
// gate = silu(gate) * up for pairs below *pair_count.
void launch_pair_silu_mul(float* gate, const float* up, int64_t ld, int64_t columns, const int32_t* pair_count, int64_t most_pairs,
                          cudaStream_t stream);

// y = f32 weights of each pair's expert times its row, by f32 FMA: correctness only.
struct PairF32Args {
  const ExpertMatrices* experts;
  int32_t matrix;
  const int32_t* pair_expert;
  const int32_t* row_of;
  const int32_t* pair_count;
  int64_t most_pairs;
  const float* x;
  int64_t ldx, in, out;
  float* to;
  int64_t ld;
};
void launch_pair_f32(const PairF32Args& args, cudaStream_t stream);

}  // namespace dg::cuda
