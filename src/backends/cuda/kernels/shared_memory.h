// More than 48 KiB of shared memory must be allowed for each kernel on each device, once.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace dg::cuda {

template <auto kKernel>
void allow_shared_memory(int bytes) {
  static std::atomic<uint64_t> allowed{0};  // a bit for each device
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return;  // the launch behind this reports it
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (allowed.load(std::memory_order_relaxed) & bit) return;
  if (cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess) allowed.fetch_or(bit);
}

}  // namespace dg::cuda
