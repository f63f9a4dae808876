// Measures what this machine can do at most with a number of threads (device/machine.h says what is kept and where).
#pragma once
#include <atomic>
#include <memory>

#include "base/memory.h"
#include "base/topology.h"
#include "device/machine.h"

namespace dg {

struct KernelTable;

struct MeasureOptions {
  int threads = 0;           // 0: topology.worker_count()
  double seconds = 0.02;     // of one run of one loop
  int rounds = 5;            // medians of so many
  int64_t memory_bytes = 0;  // read on each node; 0: four times the last-level cache, 256 MiB to 1 GiB
  const std::atomic<bool>* cancel = nullptr;
};

// Takes about 3 s with the defaults. Threads are bound to cores as those of the CPU backend. Errors: no memory, cancelled.
Result<MachineLimits> measure_machine(const MeasureOptions& options, const Topology& topology);

// The measurements of this machine with `threads` threads (0: all cores), from the cache, else measured now and kept there.
// Whether the cache can be written does not matter. `measured_now` (optional) tells which it was.
Result<MachineLimits> machine_limits(int threads, bool* measured_now = nullptr);

// What the calling thread does right now, in a few milliseconds: a yardstick for kernels measured beside it, so that figures of
// different days and of a shared machine can be compared. Rates are of CPU time, with the best instruction set of this machine.
class Calibration {
 public:
  static Result<std::unique_ptr<Calibration>> create();  // error: no memory
  double f32_operations_per_s() const;
  double read_bytes_per_s();  // from memory, not from caches

 private:
  Calibration(const KernelTable* kernels, HugeMemory memory) : kernels_(kernels), memory_(std::move(memory)) {}
  const KernelTable* kernels_;
  HugeMemory memory_;
  size_t at_ = 0;
};

}  // namespace dg
