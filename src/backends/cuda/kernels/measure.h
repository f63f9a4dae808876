// Kernels that show the limits of a GPU: what 100 % is in benchmarks.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace dg::cuda {

// Whether the current GPU can run the kernels of this library: they are compiled for some architectures only.
cudaError_t kernel_status();
// Reads `bytes` (a multiple of 16 KiB) once, 16 bytes a time, and keeps almost nothing: one word to `sink` per block.
void launch_read(const void* data, size_t bytes, uint32_t* sink, cudaStream_t stream);
// Random bf16 numbers between -1 and 1: products of zeros are faster than products of numbers.
void launch_random_bf16(void* data, size_t count, uint32_t seed, cudaStream_t stream);

}  // namespace dg::cuda
