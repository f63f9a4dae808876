// The CPU backend: the op vocabulary on the kernels of one instruction set, spread over a thread pool.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "device/backend.h"
#include "device/rank_group.h"

namespace dg {

struct CpuOptions {
  int threads = 0;           // 0: the physical cores this process may use
  std::string isa = "auto";  // or one of usable_cpu_isas()
  bool pin = true;           // bind workers to cores
  // A row of a product depends on its own input row alone, bit for bit. Else 4-bit weights times at most 4 rows are not rounded to the
  // int8 codes of large batches: 1.5 times faster on AVX-512 VNNI, and closer to the weights.
  bool batch_invariant = true;
  RankGroup* group = nullptr;  // with which it computes, as `rank`; outlives the backend
  int rank = 0;
};

// Errors: an instruction set that is unknown or not usable here (the message lists those that are), no memory.
// A result is bit for bit the same for every number of threads; see device/ops.h for what else must not matter.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options);

std::vector<std::string> usable_cpu_isas();  // best first

}  // namespace dg
