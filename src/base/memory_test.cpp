#include "base/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "base/file.h"

namespace dg {
namespace {

TEST(HugeMemory, IsZeroedAlignedAndWritable) {
  for (size_t bytes : {size_t{1}, size_t{5000}, (size_t{2} << 20) - 1, size_t{2} << 20, (size_t{5} << 20) + 3}) {
    auto memory = HugeMemory::allocate(bytes, "test");
    ASSERT_TRUE(memory.ok()) << memory.error().message;
    ASSERT_GE(memory->bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % (bytes >= (size_t{2} << 20) ? size_t{2} << 20 : 64), 0u);
    EXPECT_TRUE(std::all_of(memory->data(), memory->data() + bytes, [](std::byte b) { return b == std::byte{0}; }));
    std::fill(memory->data(), memory->data() + bytes, std::byte{7});
  }
}

TEST(HugeMemory, EmptyAndMoved) {
  auto none = HugeMemory::allocate(0, "nothing");
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->data(), nullptr);
  auto made = HugeMemory::allocate(4096, "test");
  ASSERT_TRUE(made.ok());
  HugeMemory a = std::move(made).value();
  std::byte* address = a.data();
  HugeMemory b = std::move(a);
  EXPECT_EQ(b.data(), address);
  b.data()[4095] = std::byte{1};
  b = HugeMemory();
}

TEST(HugeMemory, RefusesWhatIsNotThere) {
  const auto total = static_cast<size_t>(read_memory_info().total_bytes);
  ASSERT_GT(total, 0u);
  for (size_t bytes : {total * 2, size_t{1} << 50, ~size_t{0}}) {
    auto memory = HugeMemory::allocate(bytes, "the weights");
    ASSERT_FALSE(memory.ok());
    EXPECT_EQ(memory.error().kind, ErrorKind::kResource);
    EXPECT_NE(memory.error().message.find("the weights"), std::string::npos) << memory.error().message;
    EXPECT_NE(memory.error().message.find("available"), std::string::npos) << memory.error().message;
    EXPECT_EQ(memory.error().message.find('\n'), std::string::npos);
  }
}

TEST(MemoryInfo, TakesTheTighterOfMachineAndContainer) {
  std::string pattern = ::testing::TempDir() + "dg_memory_XXXXXX";
  const std::string root = mkdtemp(pattern.data());
  auto file = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    ASSERT_TRUE(write_file(root + path, text).ok());
  };
  EXPECT_EQ(read_memory_info(root).available_bytes, 0);
  file("/proc/meminfo", "MemTotal:        2048 kB\nMemFree:          100 kB\nMemAvailable:    1024 kB\n");
  EXPECT_EQ(read_memory_info(root).available_bytes, 1 << 20);
  EXPECT_FALSE(read_memory_info(root).cgroup_limited);
  file("/proc/self/cgroup", "0::/box\n");
  file("/sys/fs/cgroup/box/memory.max", "524288\n");
  file("/sys/fs/cgroup/box/memory.current", "24288\n");
  MemoryInfo info = read_memory_info(root);
  EXPECT_EQ(info.total_bytes, 524288);
  EXPECT_EQ(info.available_bytes, 500000);
  EXPECT_TRUE(info.cgroup_limited);
  std::filesystem::remove_all(root);
}

TEST(FormatBytes, Rounds) {
  EXPECT_EQ(format_bytes(0), "0 bytes");
  EXPECT_EQ(format_bytes(1023), "1023 bytes");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(int64_t{3} << 40), "3.0 TiB");
}

}  // namespace
}  // namespace dg
