// Limits that a container or a systemd slice puts on this process (cgroup v2 and v1), which /proc/meminfo and the CPU
// count do not show. Every ancestor group counts: the tightest limit wins.
#pragma once
#include <cstdint>
#include <string>

namespace dg {

struct CgroupLimits {
  double cpus = 0;                 // CPU quota in cores; 0: none
  int64_t memory_bytes = -1;       // memory limit; -1: none
  int64_t memory_free_bytes = -1;  // what is left below the limit, reclaimable page cache counted as free; -1: no limit
};

// `root` is prepended to /proc and /sys paths (tests use a folder of their own).
CgroupLimits read_cgroup_limits(const std::string& root = "");

// Content of a small file under /proc or /sys; empty when it cannot be read. Such files state a size of 0 or of a page,
// so they are read to their end (at most 64 KiB).
std::string read_system_file(const std::string& path);

}  // namespace dg
