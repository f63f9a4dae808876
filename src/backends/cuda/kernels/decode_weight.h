// Any weight on the device, prepared (weight_layout.h) or as published (quant/), as plain rows. Simple kernels: correctness first,
// for what has no faster way (embedding, kv_b, tests) and once per matrix and call for products with many tokens.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "quant/format.h"

namespace dg::cuda {

// out (rows, w.in), row-major without gaps, bf16 when `bf16` else f32: rows [first_row, first_row + rows) of `w`, in the order of the
// stored columns (w.columns is not looked at: column k still multiplies x[columns[k]]). `w.data`, `w.scales` and `out` are device
// addresses; `out` is aligned to 16 bytes. Asynchronous on `stream`.
void launch_decode_weight(const Weight& w, void* out, bool bf16, int64_t first_row, int64_t rows, cudaStream_t stream);

}  // namespace dg::cuda
