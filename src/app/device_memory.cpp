#include "app/device_memory.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/memory.h"

namespace dg {
namespace {

// cudaMalloc gives pieces of 2 MiB, and libraries load code when they first need it.
constexpr int64_t kSlackBytes = int64_t{128} << 20;

}  // namespace

std::string DeviceUse::text() const {
  return fmt::format("weights {}, activations {}, workspaces {}, {} graphs {}; {} of {} free", format_bytes(weights),
                     format_bytes(activations), format_bytes(steps.workspace_bytes), steps.replays, format_bytes(steps.replay_bytes),
                     format_bytes(memory.free), format_bytes(memory.total));
}

Result<DeviceUse> measure_device_use(Backend& backend, Model& model, int64_t weight_bytes, const ExecutorOptions& options,
                                     int64_t longest_context) {
  DeviceUse use{.weights = weight_bytes, .activations = static_cast<int64_t>(options.arena_bytes), .memory = backend.memory()};
  Result<StepMemory> steps = measure_step_memory(backend, model, options, longest_context);
  if (!steps.ok())
    return Error{
        steps.error().kind,
        fmt::format("{}; the largest step, of {} rows behind {} tokens, was tried with weights {}, activations {} and {} of {} free: "
                    "lower --max-num-batched-tokens, --max-num-seqs or --max-model-len",
                    steps.error().message, options.max_step_tokens, longest_context, format_bytes(weight_bytes),
                    format_bytes(use.activations), format_bytes(use.memory.free), format_bytes(use.memory.total))};
  use.steps = *steps;
  use.memory = backend.memory();
  return use;
}

int64_t cache_bytes(const DeviceUse& use, double utilization) {
  const auto kept_free = static_cast<int64_t>((1 - utilization) * static_cast<double>(use.memory.total));
  return std::max<int64_t>(0, use.memory.free - kept_free - use.activations - use.steps.replay_bytes - kSlackBytes);
}

}  // namespace dg
