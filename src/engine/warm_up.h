// What a device needs beside weights, activations and KV cache: workspaces of the kernels and captured steps, found by running the
// largest steps once before the cache takes the rest of the memory. Nothing of it grows afterwards.
#pragma once
#include "engine/executor.h"

namespace dg {

struct StepMemory {
  int64_t workspace_bytes = 0;  // of the kernels, kept by the backend
  int64_t replay_bytes = 0;     // of all captured steps that prepare_replays() will make
  int64_t replays = 0;
};

// Called before Executor::create, with its options (kv_tokens is not looked at). Of several ranks, by all at once: the steps meet. Zeros
// for a backend whose memory is the host's. Errors: no memory for the steps, a device failure.
Result<StepMemory> measure_step_memory(Backend& backend, Model& model, const ExecutorOptions& options, int64_t longest_context);

}  // namespace dg
