#include "base/topology.h"

#include <fmt/core.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <thread>

#include "base/cgroup.h"
#include "base/file.h"

#if DG_HAVE_HWLOC
#include <hwloc.h>
#endif

namespace dg {
namespace {

constexpr int kMaxCpus = 65536;

// "2048K" -> bytes.
int64_t parse_cache_size(const std::string& text) {
  char* end = nullptr;
  long long v = std::strtoll(text.c_str(), &end, 10);
  if (v <= 0 || v > (1ll << 40)) return 0;
  return *end == 'K' ? v << 10 : *end == 'M' ? v << 20 : v;
}

// CPUs this process may run on (taskset, cpuset); empty when the system does not say.
std::vector<int> affinity_cpus() {
  std::vector<int> cpus;
  for (int count = 1024; count <= kMaxCpus; count *= 2) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(count));
    size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(count));
    bool ok = sched_getaffinity(0, bytes, set) == 0;
    for (int i = 0; ok && i < count; i++)
      if (CPU_ISSET_S(static_cast<size_t>(i), bytes, set)) cpus.push_back(i);
    CPU_FREE(set);
    if (ok) break;
  }
  return cpus;
}

// Orders cores by node and counts the cores of each; drops nodes without one.
void finish(Topology& t) {
  std::stable_sort(t.cores.begin(), t.cores.end(), [](const Core& a, const Core& b) { return a.node < b.node; });
  std::vector<NumaNode> used;
  std::vector<int> index(t.nodes.size(), -1);
  for (Core& core : t.cores) {
    auto old = static_cast<size_t>(core.node);
    if (index[old] < 0) {
      index[old] = static_cast<int>(used.size());
      used.push_back(t.nodes[old]);
      used.back().cores = 0;
    }
    core.node = index[old];
    used[static_cast<size_t>(core.node)].cores++;
  }
  t.nodes = std::move(used);
}

#if DG_HAVE_HWLOC
struct HwlocHandle {
  hwloc_topology_t topology = nullptr;
  HwlocHandle() {
    if (hwloc_topology_init(&topology) != 0) topology = nullptr;
  }
  ~HwlocHandle() {
    if (topology) hwloc_topology_destroy(topology);
  }
  HwlocHandle(const HwlocHandle&) = delete;
  HwlocHandle& operator=(const HwlocHandle&) = delete;
};

// `allowed` empty: every CPU of the topology.
Topology from_hwloc(hwloc_topology_t h, const std::vector<int>& allowed) {
  Topology t;
  t.source = "hwloc";
  std::vector<hwloc_obj_t> nodes;
  for (hwloc_obj_t o = nullptr; (o = hwloc_get_next_obj_by_type(h, HWLOC_OBJ_NUMANODE, o)) != nullptr;) {
    nodes.push_back(o);
    t.nodes.push_back({static_cast<int>(o->os_index), static_cast<int64_t>(o->attr->numanode.local_memory), 0});
  }
  if (t.nodes.empty()) t.nodes.push_back({});
  // Some descriptions (and virtual machines) have no core level: then each hardware thread stands for a core.
  hwloc_obj_type_t level = hwloc_get_nbobjs_by_type(h, HWLOC_OBJ_CORE) > 0 ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
  for (hwloc_obj_t o = nullptr; (o = hwloc_get_next_obj_by_type(h, level, o)) != nullptr;) {
    Core core;
    for (int cpu = hwloc_bitmap_first(o->cpuset); cpu >= 0 && cpu < kMaxCpus; cpu = hwloc_bitmap_next(o->cpuset, cpu))
      if (allowed.empty() || std::binary_search(allowed.begin(), allowed.end(), cpu)) core.cpus.push_back(cpu);
    if (core.cpus.empty()) continue;
    for (size_t n = 0; n < nodes.size(); n++)
      if (hwloc_bitmap_isset(nodes[n]->cpuset, static_cast<unsigned>(core.cpus[0]))) {
        core.node = static_cast<int>(n);
        break;
      }
    t.cores.push_back(std::move(core));
  }
  if (hwloc_obj_t o = hwloc_get_obj_by_type(h, HWLOC_OBJ_L2CACHE, 0)) t.l2_bytes = static_cast<int64_t>(o->attr->cache.size);
  if (hwloc_obj_t o = hwloc_get_obj_by_type(h, HWLOC_OBJ_L3CACHE, 0)) t.l3_bytes = static_cast<int64_t>(o->attr->cache.size);
  finish(t);
  return t;
}
#endif

}  // namespace

std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  const char* p = text.c_str();
  while (*p >= '0' && *p <= '9') {
    char* end = nullptr;
    long first = std::strtol(p, &end, 10), last = first;
    if (*end == '-') last = std::strtol(end + 1, &end, 10);
    if (first < 0 || last < first || last >= kMaxCpus) break;
    for (long i = first; i <= last && cpus.size() < kMaxCpus; i++) cpus.push_back(static_cast<int>(i));
    p = *end == ',' ? end + 1 : end;
    if (p == end) break;
  }
  return cpus;
}

bool pin_current_thread(const std::vector<int>& cpus) {
  if (cpus.empty()) return false;
  int top = *std::max_element(cpus.begin(), cpus.end());
  cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(top) + 1);
  size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(top) + 1);
  CPU_ZERO_S(bytes, set);
  for (int cpu : cpus) CPU_SET_S(static_cast<size_t>(cpu), bytes, set);
  bool ok = sched_setaffinity(0, bytes, set) == 0;
  CPU_FREE(set);
  return ok;
}

int Topology::cpu_count() const {
  size_t n = 0;
  for (const Core& c : cores) n += c.cpus.size();
  return static_cast<int>(n);
}

bool Topology::smt() const {
  return std::any_of(cores.begin(), cores.end(), [](const Core& c) { return c.cpus.size() > 1; });
}

int Topology::worker_count() const {
  int n = static_cast<int>(cores.size());
  if (cpu_quota > 0) n = std::min(n, static_cast<int>(std::ceil(cpu_quota)));
  return std::max(n, 1);
}

std::string Topology::summary() const {
  auto plural = [](size_t n, const char* word) { return fmt::format("{} {}{}", n, word, n == 1 ? "" : "s"); };
  std::string s = plural(cores.size(), "core");
  if (smt()) s += ", " + plural(static_cast<size_t>(cpu_count()), "thread");
  s += ", " + plural(nodes.size(), "node");
  if (l2_bytes > 0) s += fmt::format(", L2 {:g} MiB", static_cast<double>(l2_bytes) / (1 << 20));
  if (l3_bytes > 0) s += fmt::format(", L3 {:g} MiB", static_cast<double>(l3_bytes) / (1 << 20));
  if (cpu_quota > 0) s += fmt::format(", quota {:g} cores", cpu_quota);
  return s;
}

Result<Topology> Topology::from_sysfs(const std::string& root, const std::vector<int>& allowed) {
  const std::string base = root + "/devices/system/cpu";
  std::vector<int> cpus = parse_cpu_list(read_system_file(base + "/online"));
  if (cpus.empty()) return io_error(fmt::format("{}/online: no list of processors there; expected one like 0-7", base));
  Topology t;
  t.source = "sysfs";
  std::map<int, int> node_of_cpu;
  for (int id : parse_cpu_list(read_system_file(root + "/devices/system/node/online"))) {
    for (int cpu : parse_cpu_list(read_system_file(fmt::format("{}/devices/system/node/node{}/cpulist", root, id))))
      node_of_cpu.emplace(cpu, static_cast<int>(t.nodes.size()));
    NumaNode node{id, 0, 0};
    std::string info = read_system_file(fmt::format("{}/devices/system/node/node{}/meminfo", root, id));
    if (size_t at = info.find("MemTotal:"); at != std::string::npos) node.memory_bytes = std::atoll(info.c_str() + at + 9) << 10;
    t.nodes.push_back(node);
  }
  if (t.nodes.empty()) t.nodes.push_back({});
  std::map<std::pair<int, int>, size_t> core_index;  // (package, core id) -> index into t.cores
  for (int cpu : cpus) {
    if (!allowed.empty() && !std::binary_search(allowed.begin(), allowed.end(), cpu)) continue;
    std::string folder = fmt::format("{}/cpu{}", base, cpu);
    std::string core_text = read_system_file(folder + "/topology/core_id");
    // Without a core id each hardware thread stands for a core of its own; negative keys cannot collide with real ids.
    std::pair<int, int> key = {std::atoi(read_system_file(folder + "/topology/physical_package_id").c_str()),
                               core_text.empty() ? -1 - cpu : std::atoi(core_text.c_str())};
    auto [it, fresh] = core_index.emplace(key, t.cores.size());
    if (fresh) {
      Core core;
      if (auto n = node_of_cpu.find(cpu); n != node_of_cpu.end()) core.node = n->second;
      t.cores.push_back(core);
    }
    t.cores[it->second].cpus.push_back(cpu);
    for (int i = 0; fresh && t.cores.size() == 1 && i < 8; i++) {
      std::string cache = fmt::format("{}/cache/index{}", folder, i);
      std::string cache_level = read_system_file(cache + "/level");
      int64_t bytes = parse_cache_size(read_system_file(cache + "/size"));
      if (cache_level[0] == '2') t.l2_bytes = bytes;
      if (cache_level[0] == '3') t.l3_bytes = bytes;
    }
  }
  if (t.cores.empty()) return io_error(fmt::format("{}: none of its {} processors is allowed to this process", base, cpus.size()));
  finish(t);
  return t;
}

#if DG_HAVE_HWLOC
Result<Topology> Topology::from_xml(const std::string& path) {
  if (!file_exists(path)) return io_error(fmt::format("topology file {}: not a readable file", path));
  HwlocHandle h;
  if (!h.topology || hwloc_topology_set_xml(h.topology, path.c_str()) != 0 || hwloc_topology_load(h.topology) != 0)
    return input_error(fmt::format("topology file {}: not an hwloc XML description; write one with `lstopo {}`", path, path));
  Topology t = from_hwloc(h.topology, {});
  if (t.cores.empty()) return input_error(fmt::format("topology file {}: it describes no processor", path));
  return t;
}

Result<Topology> Topology::from_synthetic(const std::string& description) {
  HwlocHandle h;
  if (!h.topology || hwloc_topology_set_synthetic(h.topology, description.c_str()) != 0 || hwloc_topology_load(h.topology) != 0)
    return input_error(fmt::format("topology '{}': not in hwloc's synthetic notation; expected like 'node:2 core:4 pu:2'", description));
  Topology t = from_hwloc(h.topology, {});
  if (t.cores.empty()) return input_error(fmt::format("topology '{}': it describes no processor", description));
  return t;
}
#else
Result<Topology> Topology::from_xml(const std::string& path) {
  return input_error(fmt::format("topology file {}: this program was built without hwloc and cannot read it", path));
}
Result<Topology> Topology::from_synthetic(const std::string& description) {
  return input_error(fmt::format("topology '{}': this program was built without hwloc and cannot read it", description));
}
#endif

Topology Topology::load() {
  std::vector<int> allowed = affinity_cpus();
  Topology t;
#if DG_HAVE_HWLOC
  HwlocHandle h;
  if (h.topology && hwloc_topology_load(h.topology) == 0) t = from_hwloc(h.topology, allowed);
#endif
  if (t.cores.empty()) {
    auto from_files = from_sysfs("/sys", allowed);
    if (from_files.ok()) t = std::move(from_files).value();
  }
  if (t.cores.empty()) {  // no /sys (a chroot): one core per allowed CPU
    t.source = "count";
    t.nodes = {NumaNode{}};
    if (allowed.empty())
      for (int i = 0; i < std::max(1, static_cast<int>(std::thread::hardware_concurrency())); i++) allowed.push_back(i);
    for (int cpu : allowed) t.cores.push_back({0, {cpu}});
    t.nodes[0].cores = static_cast<int>(t.cores.size());
  }
  t.cpu_quota = read_cgroup_limits().cpus;
  return t;
}

}  // namespace dg
