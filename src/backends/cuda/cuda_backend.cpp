// Construction, memory and the stream.
#include "backends/cuda/cuda_backend.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <thread>

#include "backends/cuda/collectives.h"
#include "backends/cuda/cuda_memory.h"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/measure.h"
#include "backends/cuda/products.h"
#include "base/topology.h"

namespace dg::cuda {

namespace {

Error device_error(std::string message) { return {ErrorKind::kDevice, std::move(message)}; }

// A step, or anything waited for, is over after this; the GPU hangs then. Mapped memory is read over PCIe.
constexpr std::chrono::seconds kStepLimit{120}, kMappedStepLimit{1200};

// A pinned piece and a stream of each loading thread, for one device.
struct Writer {
  static constexpr size_t kBytes = 4 << 20;
  void* pinned = nullptr;
  cudaStream_t stream = nullptr;
  ~Writer() {
    if (any_device_failed()) return;
    if (stream) cudaStreamDestroy(stream);
    if (pinned) cudaFreeHost(pinned);
  }
};

}  // namespace

Result<std::unique_ptr<Backend>> CudaBackend::create(const BackendOptions& options) {
  Result<std::unique_ptr<Backend>> made = create_alone(options);
  if (options.group && !made.ok()) options.group->fail(options.rank, made.error());  // the others need not wait
  if (!options.group || options.group->size() == 1 || !made.ok()) return made;
  auto& backend = static_cast<CudaBackend&>(**made);
  DG_ASSIGN(backend.collectives_, Collectives::create(*options.group, options.rank, options.device, backend.properties_.major >= 9));
  DG_TRY(backend.status());
  return made;
}

Result<std::unique_ptr<Backend>> CudaBackend::create_alone(const BackendOptions& options) {
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
  if (options.group && options.device >= count)
    return input_error(fmt::format("--tensor-parallel-size {} needs GPUs {} to {}: this machine has {}; lower it or --gpu",
                                   options.group->size(), options.device - options.rank,
                                   options.device - options.rank + options.group->size() - 1, count));
  if (options.device < 0 || options.device >= count)
    return input_error(
        fmt::format("--gpu {}: this machine has {} GPU{}, 0 to {}", options.device, count, count == 1 ? "" : "s", count - 1));
  cudaDeviceProp properties{};
  DG_CUDA(cudaGetDeviceProperties(&properties, options.device));
  if (properties.major < 8)
    return device_error(fmt::format("--backend cuda: GPU {} ({}) has compute capability {}.{}; 8.0 (A100) or newer is needed",
                                    options.device, properties.name, properties.major, properties.minor));
  use_device(options.device);
  if (const cudaError_t status = cudaFree(nullptr); status != cudaSuccess)
    return device_error(fmt::format("--backend cuda: GPU {} cannot be used: {}", options.device, cudaGetErrorString(status)));
  if (const cudaError_t status = kernel_status(); status != cudaSuccess)
    return device_error(
        fmt::format("--backend cuda: this build has no kernels for GPU {} ({}, compute capability {}.{}): {}; build the plug-in "
                    "with its architecture (DOUGONG_CUDA_ARCHITECTURES), or use --backend cpu",
                    options.device, properties.name, properties.major, properties.minor, cudaGetErrorString(status)));
  auto backend = std::unique_ptr<CudaBackend>(new CudaBackend(options, properties));
  DG_ASSIGN(backend->staging_, Staging::create());
  backend->staging_->wait = [b = backend.get()](cudaEvent_t event) { b->wait_for("an upload", [event] { return cudaEventQuery(event); }); };
  DG_TRY(backend->status());
  return std::unique_ptr<Backend>(std::move(backend));
}

CudaBackend::CudaBackend(const BackendOptions& options, const cudaDeviceProp& properties)
    : device_(options.device),
      mapped_(options.mapped),
      exact_(options.exact),
      properties_(properties),
      pool_(options.threads, Topology::load(), false),
      stream_(options.device),
      beside_(options.device),
      group_(options.group),
      rank_(options.rank) {
  for (cudaEvent_t* event : {&forked_, &beside_done_}) DG_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
}

CudaBackend::~CudaBackend() {
  synchronise();
  if (!any_device_failed()) {
    use_device(device_);
    forget_replays();  // before collectives: the end of NCCL waits until no graph holds its kernels
  }
  if (any_device_failed()) {  // what would wait for the device stays, graphs and NCCL too: the process is about to end
    if (!reported_ && device_failed(device_)) std::fprintf(stderr, "dougong: %s\n", status().error().message.c_str());
    new auto(std::move(products_));
    new auto(std::move(latent_weights_));
    collectives_.release();
    staging_.release();
    return;
  }
  collectives_.reset();
  products_.reset();
  staging_.reset();
  for (cudaEvent_t event : {forked_, beside_done_}) cudaEventDestroy(event);
  for (Block& block : workspaces_) cudaFree(block.data);
}

Result<void> CudaBackend::status() const {
  if (!device_failed(device_)) return {};
  reported_ = true;
  return device_error(fmt::format("GPU {} failed: {}", device_, device_failure(device_)));
}

std::string CudaBackend::description() const {
  return fmt::format("cuda: {}{}, {:.0f} GiB, {} multiprocessors, compute capability {}.{}{}",
                     group_ && group_->size() > 1 ? fmt::format("{} x ", group_->size()) : "", properties_.name,
                     static_cast<double>(properties_.totalGlobalMem) / (1 << 30), properties_.multiProcessorCount, properties_.major,
                     properties_.minor, mapped_ ? ", in pinned host memory" : "");
}

Result<std::unique_ptr<DeviceMemory>> CudaBackend::allocate(size_t bytes, const char* purpose) {
  use_device(device_);
  return mapped_ ? allocate_pinned(bytes, purpose) : allocate_device(bytes, purpose, freed_);
}

Result<std::unique_ptr<DeviceMemory>> CudaBackend::allocate_host(size_t bytes, const char* purpose) {
  use_device(device_);
  return allocate_pinned(bytes, purpose);
}

Backend::Memory CudaBackend::memory() const {
  if (mapped_) return {};
  size_t free = 0, total = 0;
  use_device(device_);
  DG_CUDA(cudaMemGetInfo(&free, &total));
  return {static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

void CudaBackend::upload(void* to, const void* from, size_t bytes) { staging_->upload(to, from, bytes, stream_); }

void CudaBackend::download(void* to, const void* from, size_t bytes) {
  if (bytes > 0) DG_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
  synchronise();
}

void CudaBackend::download_rows(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows) {
  if (rows > 0) DG_CUDA(cudaMemcpy2DAsync(to, stride, from, row_bytes, row_bytes, static_cast<size_t>(rows), cudaMemcpyDefault, stream_));
  synchronise();
}

void CudaBackend::write(void* to, const void* from, size_t bytes) const {
  if (mapped_) {
    std::memcpy(to, from, bytes);
    return;
  }
  thread_local Writer writers[kMostDevices];
  Writer& writer = writers[device_];
  use_device(device_);
  if (!writer.stream) {
    DG_CUDA(cudaStreamCreateWithFlags(&writer.stream, cudaStreamNonBlocking));
    DG_CUDA(cudaHostAlloc(&writer.pinned, Writer::kBytes, cudaHostAllocDefault));
  }
  for (size_t at = 0; at < bytes && !device_failed(device_); at += Writer::kBytes) {
    const size_t n = std::min(bytes - at, Writer::kBytes);
    std::memcpy(writer.pinned, static_cast<const std::byte*>(from) + at, n);
    DG_CUDA(cudaMemcpyAsync(static_cast<std::byte*>(to) + at, writer.pinned, n, cudaMemcpyHostToDevice, writer.stream));
    DG_CUDA(cudaStreamSynchronize(writer.stream));
  }
}

void CudaBackend::wait_for(const char* what, const std::function<cudaError_t()>& query) {
  const auto begin = std::chrono::steady_clock::now();
  const auto limit = (mapped_ ? kMappedStepLimit : kStepLimit) + (group_ ? group_->timeout() : std::chrono::milliseconds(0));
  cudaError_t status;
  while (!device_failed(device_) && (status = query()) != cudaSuccess) {
    if (status != cudaErrorNotReady) return check(status, what);
    const auto waited = std::chrono::steady_clock::now() - begin;
    if (collectives_ && group_->failed()) collectives_->give_up();
    if (waited > limit)
      fail_device(device_, fmt::format("{} has not ended after {} s: the GPU hangs; see nvidia-smi and the kernel log (Xid)", what,
                                       std::chrono::duration_cast<std::chrono::seconds>(limit).count()));
    else if (waited > std::chrono::milliseconds(100)) std::this_thread::sleep_for(std::chrono::microseconds(50));
    else std::this_thread::yield();
  }
}

void CudaBackend::synchronise() {
  wait_for("a step", [&] { return cudaStreamQuery(stream_); });
  if (const cudaError_t status = cudaGetLastError(); status != cudaErrorNotReady) check(status, "a step");
  if (!collectives_) return;
  if (const auto failure = collectives_->failure()) fail_device(device_, *failure);
  if (device_failed(device_)) group_->fail(rank_, status().error());
}

bool CudaBackend::begin_beside(const Tensor& x, std::span<const Weight* const> weights) {
  if (x.rows() > kMostBesideRows || exact_ || !Products::need_no_workspace(x, weights)) return false;
  DG_CUDA(cudaEventRecord(forked_, stream_));
  stream_.swap(beside_);
  DG_CUDA(cudaStreamWaitEvent(stream_, forked_));
  launch_next_plainly();
  return true;
}

void CudaBackend::end_beside() {
  DG_CUDA(cudaEventRecord(beside_done_, stream_));
  stream_.swap(beside_);
  beside_pending_ = true;
}

void CudaBackend::join_beside() {
  if (!beside_pending_) return;
  DG_CUDA(cudaStreamWaitEvent(stream_, beside_done_));
  launch_next_plainly();
  beside_pending_ = false;
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

void CudaBackend::forget_replays() {
  synchronise();
  for (auto& [key, graph] : graphs_) {
    if (graph.exec && !device_failed(device_)) DG_CUDA(cudaGraphExecDestroy(graph.exec));
    graph = {};  // stays: the graph that is being made may be one of them
  }
}

void* CudaBackend::workspace(Workspace which, size_t bytes) {
  Block& block = workspaces_[static_cast<size_t>(which)];
  if (bytes > block.bytes) {
    forget_replays();  // they hold the old address
    // In stream order: cudaMalloc and cudaFree may wait for kernels of other GPUs, which may wait for this rank.
    if (block.data) DG_CUDA(cudaFreeAsync(block.data, stream_));
    block.data = nullptr;
    block.bytes = (bytes + (2 << 20) - 1) / (2 << 20) * (2 << 20);
    DG_CUDA(cudaMallocAsync(&block.data, block.bytes, stream_));
    if (which == Workspace::kCounters) DG_CUDA(cudaMemsetAsync(block.data, 0, block.bytes, stream_));
  }
  return block.data;
}

}  // namespace dg::cuda
