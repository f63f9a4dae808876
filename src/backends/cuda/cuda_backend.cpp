// Construction, memory and the stream.
#include "backends/cuda/cuda_backend.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "backends/cuda/cuda_memory.h"
#include "backends/cuda/kernels/measure.h"
#include "base/topology.h"

namespace dg::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "dougong: GPU error: %s (%s) in %s\n", cudaGetErrorString(status), cudaGetErrorName(status), what);
  std::fflush(stderr);
  std::_Exit(4);  // the device's state is lost: destructors would wait for it
}

namespace {

Error device_error(std::string message) { return {ErrorKind::kDevice, std::move(message)}; }

// A pinned piece and a stream of each loading thread.
struct Writer {
  static constexpr size_t kBytes = 4 << 20;
  void* pinned = nullptr;
  cudaStream_t stream = nullptr;
  ~Writer() {
    if (stream) cudaStreamDestroy(stream);
    if (pinned) cudaFreeHost(pinned);
  }
};

}  // namespace

Result<std::unique_ptr<Backend>> CudaBackend::create(const BackendOptions& options) {
  int driver = 0, runtime = 0, count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    return device_error("--backend cuda: no NVIDIA driver found; install one, or use --backend cpu");
  DG_CUDA(cudaRuntimeGetVersion(&runtime));
  if (driver / 1000 < runtime / 1000)
    return device_error(fmt::format("--backend cuda: the driver supports CUDA {}.{}, {}.x is needed; update the NVIDIA driver",
                                    driver / 1000, driver % 1000 / 10, runtime / 1000));
  const cudaError_t counted = cudaGetDeviceCount(&count);
  if (counted != cudaSuccess || count == 0)
    return device_error(
        fmt::format("--backend cuda: no GPU found ({}); check nvidia-smi and CUDA_VISIBLE_DEVICES", cudaGetErrorString(counted)));
  if (options.device < 0 || options.device >= count)
    return input_error(
        fmt::format("--gpu {}: this machine has {} GPU{}, 0 to {}", options.device, count, count == 1 ? "" : "s", count - 1));
  cudaDeviceProp properties{};
  DG_CUDA(cudaGetDeviceProperties(&properties, options.device));
  if (properties.major < 8)
    return device_error(fmt::format("--backend cuda: GPU {} ({}) has compute capability {}.{}; 8.0 (A100) or newer is needed",
                                    options.device, properties.name, properties.major, properties.minor));
  DG_CUDA(cudaSetDevice(options.device));
  if (const cudaError_t status = cudaFree(nullptr); status != cudaSuccess)
    return device_error(fmt::format("--backend cuda: GPU {} cannot be used: {}", options.device, cudaGetErrorString(status)));
  if (const cudaError_t status = kernel_status(); status != cudaSuccess)
    return device_error(
        fmt::format("--backend cuda: this build has no kernels for GPU {} ({}, compute capability {}.{}): {}; build the plug-in "
                    "with its architecture (DOUGONG_CUDA_ARCHITECTURES), or use --backend cpu",
                    options.device, properties.name, properties.major, properties.minor, cudaGetErrorString(status)));
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend(options, properties));
  DG_ASSIGN(backend->staging_, Staging::create());
  return std::unique_ptr<Backend>(std::move(backend));
}

CudaBackend::CudaBackend(const BackendOptions& options, const cudaDeviceProp& properties)
    : device_(options.device),
      mapped_(options.mapped),
      exact_(options.exact),
      properties_(properties),
      pool_(options.threads, Topology::load(), false) {
  DG_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

CudaBackend::~CudaBackend() {
  cudaStreamSynchronize(stream_);
  products_.reset();
  staging_.reset();
  for (auto& [key, graph] : graphs_)
    if (graph.exec) cudaGraphExecDestroy(graph.exec);
  for (Block& block : workspaces_) cudaFree(block.data);
  cudaStreamDestroy(stream_);
}

std::string CudaBackend::description() const {
  return fmt::format("cuda: {}, {:.0f} GiB, {} multiprocessors, compute capability {}.{}{}", properties_.name,
                     static_cast<double>(properties_.totalGlobalMem) / (1 << 30), properties_.multiProcessorCount, properties_.major,
                     properties_.minor, mapped_ ? ", in pinned host memory" : "");
}

Result<std::unique_ptr<DeviceMemory>> CudaBackend::allocate(size_t bytes, const char* purpose) {
  DG_CUDA(cudaSetDevice(device_));
  return mapped_ ? allocate_pinned(bytes, purpose) : allocate_device(bytes, purpose, freed_);
}

Result<std::unique_ptr<DeviceMemory>> CudaBackend::allocate_host(size_t bytes, const char* purpose) {
  return allocate_pinned(bytes, purpose);
}

Backend::Memory CudaBackend::memory() const {
  if (mapped_) return {};
  size_t free = 0, total = 0;
  DG_CUDA(cudaSetDevice(device_));
  DG_CUDA(cudaMemGetInfo(&free, &total));
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

void CudaBackend::upload(void* to, const void* from, size_t bytes) { staging_->upload(to, from, bytes, stream_); }

void CudaBackend::download(void* to, const void* from, size_t bytes) {
  if (bytes > 0) DG_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
  synchronise();
}

void CudaBackend::write(void* to, const void* from, size_t bytes) const {
  if (mapped_) {
    std::memcpy(to, from, bytes);
    return;
  }
  thread_local Writer writer;
  if (!writer.stream) {
    DG_CUDA(cudaSetDevice(device_));
    DG_CUDA(cudaStreamCreateWithFlags(&writer.stream, cudaStreamNonBlocking));
    DG_CUDA(cudaHostAlloc(&writer.pinned, Writer::kBytes, cudaHostAllocDefault));
  }
  for (size_t at = 0; at < bytes; at += Writer::kBytes) {
    const size_t n = std::min(bytes - at, Writer::kBytes);
    std::memcpy(writer.pinned, static_cast<const std::byte*>(from) + at, n);
    DG_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, writer.pinned, n, cudaMemcpyHostToDevice, writer.stream));
    DG_CUDA(cudaStreamSynchronize(writer.stream));
  }
}

void CudaBackend::synchronise() {
  DG_CUDA(cudaStreamSynchronize(stream_));
  DG_CUDA(cudaGetLastError());
}

void CudaBackend::begin_step(std::span<const SequenceSlice> slices, int64_t block_tokens, int64_t longest_kv) {
  sequences(slices, block_tokens);
  step_begun_ = true;
  sequences_.longest_kv = static_cast<int>(longest_kv);
}

// The first run grows workspaces and chooses algorithms, the second is captured, later ones replay the graph.
void CudaBackend::replay(uint64_t key, const std::function<void()>& issue) {
  Graph& graph = graphs_[key];
  if (!graph.exec) {
    if (graph.runs++ == 0) {
      issue();
      step_begun_ = false;
      return;
    }
    cudaGraph_t captured = nullptr;
    DG_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    issue();
    DG_CUDA(cudaStreamEndCapture(stream_, &captured));
    DG_CUDA(cudaGraphInstantiate(&graph.exec, captured, 0));
    DG_CUDA(cudaGraphDestroy(captured));
  }
  DG_CUDA(cudaGraphLaunch(graph.exec, stream_));
  step_begun_ = false;
}

void* CudaBackend::workspace(Workspace which, size_t bytes) {
  Block& block = workspaces_[static_cast<size_t>(which)];
  if (bytes > block.bytes) {
    DG_CUDA(cudaStreamSynchronize(stream_));
    for (auto& [key, graph] : graphs_) {  // they hold the old address
      if (graph.exec) DG_CUDA(cudaGraphExecDestroy(graph.exec));
      graph = {};
    }
    if (block.data) DG_CUDA(cudaFree(block.data));
    block.bytes = (bytes + (2 << 20) - 1) / (2 << 20) * (2 << 20);
    DG_CUDA(cudaMalloc(&block.data, block.bytes));
  }
  return block.data;
}

}  // namespace dg::cuda
