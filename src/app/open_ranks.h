// The ranks of a tensor-parallel model (--tensor-parallel-size): each with a backend, its part of the weights and of the model. What
// every rank does for itself (starting a device, reading headers, loading) they do at the same time.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "device/local_group.h"
#include "engine/executor.h"
#include "model/model.h"

namespace dg {

struct OpenedRank {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<Model> model;
};

// Calls fn(rank) for every rank on a thread each, rank 0 on this one, and returns the first error. It ends the group, so that no rank
// waits for one that gave up; `failed` is called with it.
Result<void> for_ranks(int ranks, LocalGroup* group, const std::function<Result<void>(int)>& fn, const std::function<void()>& failed = {});

}  // namespace dg
