// Where the memory of a device goes when a model is opened, and what the KV cache gets of it.
#pragma once
#include <string>

#include "app/open_model.h"
#include "engine/warm_up.h"

namespace dg {

// Of one rank.
struct DeviceUse {
  int64_t weights = 0, activations = 0;
  StepMemory steps;
  Backend::Memory memory;  // once weights and workspaces are there
  // "weights 14.2 GiB, activations 0.5 GiB, ..."
  std::string text() const;
};

// Runs the largest steps (measure_step_memory), of several ranks by all at once. The error says what there was no memory for.
Result<DeviceUse> measure_device_use(Backend& backend, Model& model, int64_t weight_bytes, const ExecutorOptions& options,
                                     int64_t longest_context);

// What is left for the KV cache of the memory that `utilization` allows; at least 0.
int64_t cache_bytes(const DeviceUse& use, double utilization);

}  // namespace dg
