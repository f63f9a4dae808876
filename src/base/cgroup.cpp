#include "base/cgroup.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace dg {

std::string read_system_file(const std::string& path) {
  constexpr size_t kMaxBytes = 1 << 16;
  std::string text;
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return text;
  text.resize(kMaxBytes);
  size_t used = 0;
  for (ssize_t n; used < kMaxBytes && (n = read(fd, text.data() + used, kMaxBytes - used)) > 0;) used += static_cast<size_t>(n);
  close(fd);
  text.resize(used);
  return text;
}

namespace {

constexpr int64_t kNoLimit = int64_t{1} << 60;  // v1 writes about 2^63 for "none"

// First number of `text`, or -1 ("max", empty, garbage).
int64_t first_number(const std::string& text) {
  char* end = nullptr;
  long long v = std::strtoll(text.c_str(), &end, 10);
  return end == text.c_str() || v < 0 ? -1 : v;
}

// Value of `key` in lines "key value".
int64_t keyed_number(const std::string& text, const std::string& key) {
  size_t at = text.rfind(key + ' ', 0) == 0 ? 0 : text.find('\n' + key + ' ');
  if (at == std::string::npos) return 0;
  return std::max<int64_t>(0, first_number(text.substr(text.find(' ', at) + 1)));
}

void take_cpus(CgroupLimits& limits, double quota, double period) {
  if (quota <= 0 || period <= 0) return;
  double cpus = quota / period;
  limits.cpus = limits.cpus == 0 ? cpus : std::min(limits.cpus, cpus);
}

void take_memory(CgroupLimits& limits, int64_t limit, int64_t used, int64_t reclaimable) {
  if (limit < 0 || limit >= kNoLimit) return;
  int64_t free_bytes = std::max<int64_t>(0, limit - std::max<int64_t>(0, used - reclaimable));
  limits.memory_bytes = limits.memory_bytes < 0 ? limit : std::min(limits.memory_bytes, limit);
  limits.memory_free_bytes = limits.memory_free_bytes < 0 ? free_bytes : std::min(limits.memory_free_bytes, free_bytes);
}

void read_v2(CgroupLimits& limits, const std::string& folder) {
  std::string quota = read_system_file(folder + "/cpu.max");
  size_t space = quota.find(' ');
  if (space != std::string::npos)
    take_cpus(limits, static_cast<double>(first_number(quota)), static_cast<double>(first_number(quota.substr(space + 1))));
  take_memory(limits, first_number(read_system_file(folder + "/memory.max")), first_number(read_system_file(folder + "/memory.current")),
              keyed_number(read_system_file(folder + "/memory.stat"), "inactive_file"));
}

void read_v1_cpu(CgroupLimits& limits, const std::string& folder) {
  take_cpus(limits, static_cast<double>(first_number(read_system_file(folder + "/cpu.cfs_quota_us"))),
            static_cast<double>(first_number(read_system_file(folder + "/cpu.cfs_period_us"))));
}

void read_v1_memory(CgroupLimits& limits, const std::string& folder) {
  take_memory(limits, first_number(read_system_file(folder + "/memory.limit_in_bytes")),
              first_number(read_system_file(folder + "/memory.usage_in_bytes")),
              keyed_number(read_system_file(folder + "/memory.stat"), "total_inactive_file"));
}

// Calls `read` for base + path and every ancestor of it down to base.
template <class F>
void for_each_ancestor(const std::string& base, std::string path, F read) {
  if (path.find("..") != std::string::npos) path.clear();  // a group outside this namespace: only the mount point is visible
  while (!path.empty() && path != "/") {
    read(base + path);
    size_t slash = path.rfind('/');
    path.resize(slash == std::string::npos ? 0 : slash);
  }
  read(base);
}

bool lists_controller(std::string_view controllers, std::string_view name) {
  while (!controllers.empty()) {
    size_t comma = controllers.find(',');
    if (controllers.substr(0, comma) == name) return true;
    if (comma == std::string_view::npos) return false;
    controllers.remove_prefix(comma + 1);
  }
  return false;
}

}  // namespace

CgroupLimits read_cgroup_limits(const std::string& root) {
  CgroupLimits limits;
  const std::string mount = root + "/sys/fs/cgroup";
  std::string groups = read_system_file(root + "/proc/self/cgroup");
  for (size_t begin = 0; begin < groups.size();) {  // lines "id:controllers:path"
    size_t end = std::min(groups.find('\n', begin), groups.size());
    std::string line = groups.substr(begin, end - begin);
    begin = end + 1;
    size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (controllers.empty()) for_each_ancestor(mount, path, [&](const std::string& f) { read_v2(limits, f); });
    if (lists_controller(controllers, "cpu"))
      for_each_ancestor(mount + "/cpu", path, [&](const std::string& f) { read_v1_cpu(limits, f); });
    if (lists_controller(controllers, "memory"))
      for_each_ancestor(mount + "/memory", path, [&](const std::string& f) { read_v1_memory(limits, f); });
  }
  return limits;
}

}  // namespace dg
