// Topology: which cores this process may use, how they share memory nodes and caches. Read once at start through hwloc
// when it is built in (DG_HAVE_HWLOC), else from /sys. A core is a physical core; its hardware threads are `cpus`.
// Cores are ordered by node, so the first n cores are neighbours.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace dg {

struct Core {
  int node = 0;           // index into Topology::nodes
  std::vector<int> cpus;  // allowed hardware threads of the core, operating system numbers, ascending
};

struct NumaNode {
  int id = 0;                // operating system number
  int64_t memory_bytes = 0;  // 0: unknown
  int cores = 0;             // allowed cores of the node
};

struct Topology {
  std::vector<Core> cores;
  std::vector<NumaNode> nodes;  // those that hold an allowed core; never empty
  int64_t l2_bytes = 0;         // of one core's L2; 0: unknown
  int64_t l3_bytes = 0;         // of one L3; 0: none or unknown
  double cpu_quota = 0;         // cgroup limit in cores; 0: none
  const char* source = "";      // "hwloc", "sysfs" or "count"

  int cpu_count() const;        // allowed hardware threads
  bool smt() const;             // some core has more than one
  int worker_count() const;     // physical cores, not more than the quota (rounded up); at least 1
  std::string summary() const;  // "8 cores, 16 threads, 2 nodes, L2 2 MiB, L3 105 MiB"

  // This machine, reduced to the CPUs this process may run on. Never fails: at worst one core.
  static Topology load();
  // A described machine (not this one): hwloc's XML, or its synthetic notation ("node:2 l3:1 core:4 pu:2"). Errors: not
  // readable, not valid, or built without hwloc.
  static Result<Topology> from_xml(const std::string& path);
  static Result<Topology> from_synthetic(const std::string& description);
  // From `root`/devices/system, all CPUs that are in `allowed` (empty: all online). Errors: no CPU found.
  static Result<Topology> from_sysfs(const std::string& root, const std::vector<int>& allowed);
};

// "0-3,8" -> {0, 1, 2, 3, 8}; stops at the first thing that is not a list, and at 65536 CPUs.
std::vector<int> parse_cpu_list(const std::string& text);

// Binds the calling thread to `cpus`; false when the system refuses.
bool pin_current_thread(const std::vector<int>& cpus);

}  // namespace dg
