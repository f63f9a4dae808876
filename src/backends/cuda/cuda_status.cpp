#include "backends/cuda/cuda_status.h"

#include <fmt/core.h>

#include <atomic>
#include <mutex>

namespace dg::cuda {
namespace {

struct Failures {
  std::mutex mutex;
  std::string text[kMostDevices];
  std::atomic<bool> failed[kMostDevices] = {};
  std::atomic<bool> any{false};
};

Failures& failures() {
  static Failures all;
  return all;
}

}  // namespace

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) device = 0;
  if (device_failed(device)) return;
  if (status == cudaErrorMemoryAllocation) {
    size_t free = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&free, &total);
    fail_device(device,
                fmt::format("out of memory in {}, {} of {} MiB free; lower --gpu-memory-utilization", what, free >> 20, total >> 20));
  } else {
    fail_device(device, fmt::format("{} ({}) in {}", cudaGetErrorString(status), cudaGetErrorName(status), what));
  }
}

void fail_device(int device, const std::string& message) {
  Failures& all = failures();
  std::lock_guard lock(all.mutex);
  if (all.failed[device]) return;
  all.text[device] = message;
  all.failed[device] = all.any = true;
}

bool device_failed(int device) { return failures().failed[device].load(std::memory_order_acquire); }

bool any_device_failed() { return failures().any.load(std::memory_order_acquire); }

std::string device_failure(int device) {
  Failures& all = failures();
  std::lock_guard lock(all.mutex);
  return all.text[device];
}

void use_device(int device) {
  // This plug-in has a runtime of its own, so nobody else changes the thread's device.
  thread_local int current = -1;
  if (current == device) return;
  check(cudaSetDevice(device), "cudaSetDevice");
  current = device;
}

}  // namespace dg::cuda
