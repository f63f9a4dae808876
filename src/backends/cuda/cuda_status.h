// Failures of GPUs. The CUDA runtime keeps a failed device's state for the process; so does this: the first failure of each device,
// which Backend::status() then reports. Nothing ends the process here: its owner answers the requests first. Any thread.
#pragma once
#include <cuda_runtime.h>

#include <string>
#include <utility>

namespace dg::cuda {

constexpr int kMostDevices = 64;

// A failure of the current device, unless it is cudaSuccess. `what` is the call.
void check(cudaError_t status, const char* what);
#define DG_CUDA(call) ::dg::cuda::check((call), #call)

void fail_device(int device, const std::string& message);
bool device_failed(int device);
// Whether any failed: memory is not given back then, as that may wait for a kernel that never ends.
bool any_device_failed();
std::string device_failure(int device);  // "": none

// cudaSetDevice where the thread's current device is another one.
void use_device(int device);

// A stream that makes its device the calling thread's current one whenever it is used.
class Stream {
 public:
  explicit Stream(int device) : device_(device) {
    use_device(device);
    check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Stream() {
    if (handle_ && !any_device_failed()) cudaStreamDestroy(handle_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  void swap(Stream& other) { std::swap(handle_, other.handle_); }  // of one device
  operator cudaStream_t() const {
    use_device(device_);
    return handle_;
  }

 private:
  int device_;
  cudaStream_t handle_ = nullptr;
};

}  // namespace dg::cuda
