#include "backends/cuda/cuda_memory.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

namespace dg::cuda {
namespace {

struct GpuMemory : DeviceMemory {
  GpuMemory(void* data, size_t bytes, std::shared_ptr<std::atomic<uint64_t>> count) : freed(std::move(count)) {
    data_ = data, bytes_ = bytes;
  }
  ~GpuMemory() override {
    if (!any_device_failed()) cudaFree(data_);
    ++*freed;
  }
  std::shared_ptr<std::atomic<uint64_t>> freed;
};

struct PinnedMemory : DeviceMemory {
  PinnedMemory(void* data, size_t bytes) { data_ = data, bytes_ = bytes; }
  ~PinnedMemory() override {
    if (!any_device_failed()) cudaFreeHost(data_);
  }
};

double gib(size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

}  // namespace

Result<std::unique_ptr<DeviceMemory>> allocate_device(size_t bytes, const char* purpose, std::shared_ptr<std::atomic<uint64_t>> freed) {
  void* data = nullptr;
  cudaError_t status = cudaMalloc(&data, std::max<size_t>(bytes, 256));
  if (status == cudaSuccess) status = cudaMemset(data, 0, std::max<size_t>(bytes, 256));
  if (status == cudaSuccess) status = cudaDeviceSynchronize();  // our streams do not wait for the default one
  if (status == cudaSuccess) return std::unique_ptr<DeviceMemory>(std::make_unique<GpuMemory>(data, bytes, std::move(freed)));
  cudaGetLastError();
  if (data) cudaFree(data);
  size_t free = 0, total = 0;
  cudaMemGetInfo(&free, &total);
  if (status != cudaErrorMemoryAllocation)
    return Error{ErrorKind::kDevice, fmt::format("GPU memory for {}: {}", purpose, cudaGetErrorString(status))};
  return resource_error(
      fmt::format("GPU memory for {}: {:.2f} GiB asked, {:.2f} of {:.2f} GiB free; lower --max-model-len, --max-num-seqs or "
                  "--kv-cache-memory-bytes, choose a smaller --quantization, or use another --gpu",
                  purpose, gib(bytes), gib(free), gib(total)));
}

Result<std::unique_ptr<DeviceMemory>> allocate_pinned(size_t bytes, const char* purpose) {
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, std::max<size_t>(bytes, 256), cudaHostAllocMapped | cudaHostAllocPortable);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return resource_error(
        fmt::format("pinned host memory for {}: {:.2f} GiB refused ({})", purpose, gib(bytes), cudaGetErrorString(status)));
  }
  std::memset(data, 0, std::max<size_t>(bytes, 256));
  return std::unique_ptr<DeviceMemory>(std::make_unique<PinnedMemory>(data, bytes));
}

Result<std::unique_ptr<CudaBackend::Staging>> CudaBackend::Staging::create() {
  auto staging = std::make_unique<Staging>();
  DG_ASSIGN(staging->memory, allocate_pinned(kBytes, "uploads"));
  for (cudaEvent_t& event : staging->done) DG_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return staging;
}

CudaBackend::Staging::~Staging() {
  for (cudaEvent_t event : done)
    if (event) cudaEventDestroy(event);
}

void CudaBackend::Staging::next(cudaStream_t stream) {
  DG_CUDA(cudaEventRecord(done[piece], stream));
  piece = (piece + 1) % kPieces;
  used = 0;
  wait(done[piece]);  // at once the first time round
}

void CudaBackend::Staging::upload(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  constexpr size_t kPiece = kBytes / kPieces;
  for (size_t at = 0; at < bytes;) {
    if (used == kPiece) next(stream);
    const size_t n = std::min(bytes - at, kPiece - used);
    std::byte* place = static_cast<std::byte*>(memory->data()) + static_cast<size_t>(piece) * kPiece + used;
    std::memcpy(place, static_cast<const std::byte*>(from) + at, n);
    DG_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, place, n, cudaMemcpyDefault, stream));
    used = std::min(kPiece, used + (n + 63) / 64 * 64);
    at += n;
  }
}

}  // namespace dg::cuda
