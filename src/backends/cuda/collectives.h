// The collectives of one rank: memory that all ranks reach, the choice of an algorithm, and what a failure says. The kernels and the
// protocol: kernels/collective.h. Engine thread of the rank only.
#pragma once
#include <cuda_runtime.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/cuda/kernels/all_reduce.h"
#include "backends/cuda/nccl.h"
#include "base/result.h"
#include "device/rank_group.h"

namespace dg::cuda {

class Collectives {
 public:
  // Called by all ranks, each on its own thread; waits for the others. `device` is the current GPU. GPUs that cannot read each other's
  // memory meet in pinned host memory. Errors: more ranks than kMostRanks, no memory, a rank that does not come.
  static Result<std::unique_ptr<Collectives>> create(RankGroup& group, int rank, int device, bool clusters);
  ~Collectives();
  Collectives(const Collectives&) = delete;
  Collectives& operator=(const Collectives&) = delete;

  void all_reduce(float* x, int64_t elements, cudaStream_t stream);
  // False: not for this shape (the same on all ranks).
  bool add_rms_norm(ReduceNormArgs args, cudaStream_t stream);

  // What went wrong on this rank, once its kernels ended; nothing: no failure.
  std::optional<std::string> failure() const;
  // Kernels that wait for other ranks end soon.
  void give_up();
  bool peers() const { return peers_; }

 private:
  Collectives(RankGroup& group, int rank, int device, bool clusters);
  Result<void> connect();
  Result<void> agree_on_peers();

  RankGroup& group_;
  const int device_;
  const bool clusters_;
  bool peers_ = true;
  void* buffer_ = nullptr;
  void* slots_ = nullptr;  // only with peer access
  SharedFlags* flags_ = nullptr;
  CollectiveArgs args_{};
  std::vector<int> devices_;                                                                   // by rank
  int64_t push_elements_ = 0, norm_elements_ = 0, one_shot_elements_ = 0, nccl_elements_ = 0;  // up to which; NCCL: from which
  std::unique_ptr<Nccl> nccl_;
};

}  // namespace dg::cuda
