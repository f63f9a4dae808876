// Kernels of adjust_logits and pick_rows: kernels/sample_*.cu. Plain arguments; device pointers.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "device/row_picks.h"

namespace dg::cuda {

struct AdjustArgs {
  float* logits;
  int64_t stride;  // of a row
  int64_t rows;
  int32_t columns, first_id;
  const PickSpec* specs;       // (rows)
  const LogitChange* changes;  // of all rows
  const uint32_t* masks;       // (masks, mask_words)
  int64_t mask_words;
};
void launch_adjust_logits(const AdjustArgs& args, cudaStream_t stream);

struct PickArgs {
  const float* logits;
  int64_t stride;
  int64_t rows;
  int32_t columns, first_id;
  const PickSpec* specs;
  int32_t* out;  // (rows, words)
  int32_t words, most;
  // Of each chunk of each row, (rows, chunks): its largest logit, its sums at `scale` and at 1.
  float *chunk_max, *chunk_sum, *chunk_sum_at_one;
  int32_t chunks;
};
void launch_pick_rows(const PickArgs& args, cudaStream_t stream);

}  // namespace dg::cuda
