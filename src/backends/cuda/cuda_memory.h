// Device and pinned host memory, and the ring of pinned memory through which step data travels.
#pragma once
#include <cuda_runtime.h>

#include <functional>
#include <memory>

#include "backends/cuda/cuda_backend.h"

namespace dg::cuda {

// GPU memory, zeroed. The error names bytes, purpose, what is free, and what to lower. `freed` counts what is given back.
Result<std::unique_ptr<DeviceMemory>> allocate_device(size_t bytes, const char* purpose, std::shared_ptr<std::atomic<uint64_t>> freed);
// Pinned host memory, zeroed, at the same address on host and device.
Result<std::unique_ptr<DeviceMemory>> allocate_pinned(size_t bytes, const char* purpose);

// Copies of host data on their way to the device. A piece is used again when the copy that read it is done.
struct CudaBackend::Staging {
  static constexpr size_t kBytes = 8 << 20;
  static constexpr int kPieces = 4;
  std::unique_ptr<DeviceMemory> memory;
  std::function<void(cudaEvent_t)> wait;
  cudaEvent_t done[kPieces] = {};
  int piece = 0;
  size_t used = 0;

  static Result<std::unique_ptr<Staging>> create();
  ~Staging();
  void upload(void* to, const void* from, size_t bytes, cudaStream_t stream);

 private:
  void next(cudaStream_t stream);
};

}  // namespace dg::cuda
