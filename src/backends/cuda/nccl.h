// NCCL, loaded when it is there (libnccl.so.2); the plug-in does not link it. All-reduce of floats only.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "device/rank_group.h"

namespace dg::cuda {

class Nccl {
 public:
  // Called by all ranks, each on its own thread with its GPU current. Errors: no library, or what NCCL says.
  static Result<std::unique_ptr<Nccl>> create(RankGroup& group, int rank);
  ~Nccl();
  // In place. The same bits on every rank, but not summed in order of rank. False: NCCL refused.
  bool all_reduce(float* x, int64_t elements, cudaStream_t stream);

 private:
  struct Library;
  explicit Nccl(std::unique_ptr<Library> library);
  std::unique_ptr<Library> library_;
};

}  // namespace dg::cuda
