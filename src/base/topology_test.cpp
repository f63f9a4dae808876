#include "base/topology.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "base/cgroup.h"
#include "base/file.h"

namespace dg {
namespace {

// A folder that looks like /sys or /, removed at the end.
class FakeTree {
 public:
  FakeTree() {
    std::string pattern = ::testing::TempDir() + "dg_tree_XXXXXX";
    root = mkdtemp(pattern.data());
  }
  ~FakeTree() { std::filesystem::remove_all(root); }
  void file(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    ASSERT_TRUE(write_file(root + path, content).ok()) << path;
  }
  std::string root;
};

TEST(CpuList, Parses) {
  EXPECT_EQ(parse_cpu_list("0-3,8"), (std::vector<int>{0, 1, 2, 3, 8}));
  EXPECT_EQ(parse_cpu_list("5\n"), std::vector<int>{5});
  EXPECT_TRUE(parse_cpu_list("").empty());
  EXPECT_TRUE(parse_cpu_list("abc").empty());
  EXPECT_TRUE(parse_cpu_list("3-1").empty());
  EXPECT_TRUE(parse_cpu_list("0-99999999999999999999").empty());
  EXPECT_EQ(parse_cpu_list("1,,2"), std::vector<int>{1});
  EXPECT_LE(parse_cpu_list("0-65535,0-65535,0-65535").size(), 65536u);
}

TEST(Topology, ThisMachine) {
  Topology t = Topology::load();
  ASSERT_FALSE(t.cores.empty());
  ASSERT_FALSE(t.nodes.empty());
  cpu_set_t set;
  ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  EXPECT_EQ(t.cpu_count(), CPU_COUNT(&set)) << t.source;
  EXPECT_GE(t.worker_count(), 1);
  EXPECT_LE(t.worker_count(), static_cast<int>(t.cores.size()));
  EXPECT_NE(t.summary().find("core"), std::string::npos);
}

TEST(Topology, RespectsAffinity) {
  std::thread([] {
    Topology all = Topology::load();
    ASSERT_TRUE(pin_current_thread({all.cores.back().cpus[0]}));
    Topology one = Topology::load();
    ASSERT_EQ(one.cores.size(), 1u);
    EXPECT_EQ(one.cores[0].cpus, std::vector<int>{all.cores.back().cpus[0]});
    EXPECT_EQ(one.worker_count(), 1);
  }).join();
}

TEST(Topology, SysfsWithTwoNodesAndHardwareThreads) {
  FakeTree sys;
  sys.file("/devices/system/cpu/online", "0-7\n");
  sys.file("/devices/system/node/online", "0-1\n");
  sys.file("/devices/system/node/node0/cpulist", "0-1,4-5\n");
  sys.file("/devices/system/node/node1/cpulist", "2-3,6-7\n");
  sys.file("/devices/system/node/node1/meminfo", "Node 1 MemTotal:       1048576 kB\n");
  for (int cpu = 0; cpu < 8; cpu++) {
    std::string folder = "/devices/system/cpu/cpu" + std::to_string(cpu);
    sys.file(folder + "/topology/core_id", std::to_string(cpu % 2));
    sys.file(folder + "/topology/physical_package_id", std::to_string(cpu % 4 / 2));
    sys.file(folder + "/cache/index2/level", "2\n");
    sys.file(folder + "/cache/index2/size", "2048K\n");
  }
  auto t = Topology::from_sysfs(sys.root, {});
  ASSERT_TRUE(t.ok()) << t.error().message;
  ASSERT_EQ(t->cores.size(), 4u);
  EXPECT_EQ(t->cores[0].cpus, (std::vector<int>{0, 4}));
  EXPECT_EQ(t->cores[3].cpus, (std::vector<int>{3, 7}));
  EXPECT_EQ(t->cores[3].node, 1);
  EXPECT_TRUE(t->smt());
  EXPECT_EQ(t->l2_bytes, 2 << 20);
  EXPECT_EQ(t->nodes[1].memory_bytes, 1 << 30);
  EXPECT_EQ(t->summary(), "4 cores, 8 threads, 2 nodes, L2 2 MiB");

  auto part = Topology::from_sysfs(sys.root, {2, 6, 7});  // only node 1 is left
  ASSERT_TRUE(part.ok());
  ASSERT_EQ(part->nodes.size(), 1u);
  EXPECT_EQ(part->nodes[0].id, 1);
  EXPECT_EQ(part->nodes[0].cores, 2);
  EXPECT_EQ(part->cores[0].node, 0);
  EXPECT_EQ(part->cores[1].cpus, std::vector<int>{7});

  EXPECT_FALSE(Topology::from_sysfs(sys.root, {9}).ok());
  EXPECT_FALSE(Topology::from_sysfs(sys.root + "/nowhere", {}).ok());
}

#if DG_HAVE_HWLOC
TEST(Topology, Synthetic) {
  auto t = Topology::from_synthetic("node:2 l3:1 l2:4 core:1 pu:2");
  ASSERT_TRUE(t.ok()) << t.error().message;
  EXPECT_EQ(t->cores.size(), 8u);
  EXPECT_EQ(t->nodes.size(), 2u);
  EXPECT_EQ(t->nodes[0].cores, 4);
  EXPECT_EQ(t->cpu_count(), 16);
  EXPECT_TRUE(t->smt());
  for (size_t i = 0; i < 8; i++) EXPECT_EQ(t->cores[i].node, i < 4 ? 0 : 1);
  auto big = Topology::from_synthetic("node:8 core:32 pu:1");
  ASSERT_TRUE(big.ok());
  EXPECT_EQ(big->worker_count(), 256);
  EXPECT_FALSE(Topology::from_synthetic("cores and things").ok());
}

TEST(Topology, Xml) {
  FakeTree folder;
  const std::string xml = R"(<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE topology SYSTEM "hwloc2.dtd">
<topology version="2.0">
  <object type="Machine" os_index="0" cpuset="0x00000003" complete_cpuset="0x00000003" allowed_cpuset="0x00000003" nodeset="0x00000001" complete_nodeset="0x00000001" allowed_nodeset="0x00000001" gp_index="1">
    <object type="NUMANode" os_index="0" cpuset="0x00000003" complete_cpuset="0x00000003" nodeset="0x00000001" complete_nodeset="0x00000001" gp_index="2" local_memory="8589934592"/>
    <object type="Core" os_index="0" cpuset="0x00000001" complete_cpuset="0x00000001" nodeset="0x00000001" complete_nodeset="0x00000001" gp_index="3">
      <object type="PU" os_index="0" cpuset="0x00000001" complete_cpuset="0x00000001" nodeset="0x00000001" complete_nodeset="0x00000001" gp_index="4"/>
    </object>
    <object type="Core" os_index="1" cpuset="0x00000002" complete_cpuset="0x00000002" nodeset="0x00000001" complete_nodeset="0x00000001" gp_index="5">
      <object type="PU" os_index="1" cpuset="0x00000002" complete_cpuset="0x00000002" nodeset="0x00000001" complete_nodeset="0x00000001" gp_index="6"/>
    </object>
  </object>
</topology>
)";
  folder.file("/two.xml", xml);
  auto t = Topology::from_xml(folder.root + "/two.xml");
  ASSERT_TRUE(t.ok()) << t.error().message;
  EXPECT_EQ(t->cores.size(), 2u);
  EXPECT_EQ(t->nodes[0].memory_bytes, int64_t{8} << 30);
  // Cut before the first object: hwloc 2.9 itself leaks the objects of a file cut later (640 bytes, once, at start).
  folder.file("/cut.xml", xml.substr(0, xml.find("<object") - 3));
  auto cut = Topology::from_xml(folder.root + "/cut.xml");
  ASSERT_FALSE(cut.ok());
  EXPECT_NE(cut.error().message.find("cut.xml"), std::string::npos);
  EXPECT_FALSE(Topology::from_xml(folder.root + "/missing.xml").ok());
}
#endif

TEST(Cgroup, TightestOfAllAncestorsV2) {
  FakeTree root;
  root.file("/proc/self/cgroup", "0::/pod/container\n");
  root.file("/sys/fs/cgroup/pod/cpu.max", "350000 100000\n");
  root.file("/sys/fs/cgroup/pod/container/cpu.max", "max 100000\n");
  root.file("/sys/fs/cgroup/pod/memory.max", "max\n");
  root.file("/sys/fs/cgroup/pod/container/memory.max", "1000000\n");
  root.file("/sys/fs/cgroup/pod/container/memory.current", "700000\n");
  root.file("/sys/fs/cgroup/pod/container/memory.stat", "anon 400000\ninactive_file 100000\n");
  CgroupLimits limits = read_cgroup_limits(root.root);
  EXPECT_DOUBLE_EQ(limits.cpus, 3.5);
  EXPECT_EQ(limits.memory_bytes, 1000000);
  EXPECT_EQ(limits.memory_free_bytes, 400000);
}

TEST(Cgroup, V1AndNothing) {
  FakeTree root;
  EXPECT_EQ(read_cgroup_limits(root.root).memory_bytes, -1);
  EXPECT_EQ(read_cgroup_limits(root.root).cpus, 0);
  root.file("/proc/self/cgroup", "5:cpu,cpuacct:/job\n4:memory:/../outside\nnonsense\n");
  root.file("/sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "150000\n");
  root.file("/sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
  root.file("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  CgroupLimits limits = read_cgroup_limits(root.root);
  EXPECT_DOUBLE_EQ(limits.cpus, 1.5);
  EXPECT_EQ(limits.memory_bytes, -1);
}

}  // namespace
}  // namespace dg
