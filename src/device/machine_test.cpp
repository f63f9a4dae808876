#include "device/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/json.h"
#include "quant/formats.h"

namespace dg {
namespace {

MachineLimits example(const std::string& cpu, int threads) {
  MachineLimits limits{.cpu = cpu, .topology = "2 cores", .threads = threads};
  limits.read = {{1, {14e9, 13e9, 15e9}}, {threads, {26e9, 25e9, 28e9}}};
  limits.nodes = {{0, 1, 4, {9e9, 8e9, 10e9}}};
  limits.copy_bytes_per_s = {11e9, 10e9, 12e9};
  auto peak = [&](const char* isa, MathType type, bool l2, double all) {
    limits.peaks.push_back({isa, "x", type, l2, {all / 2, all / 3, all}, {all, all / 2, all * 2}});
  };
  peak("amx", MathType::kF32, false, 0.4e12);
  peak("amx", MathType::kBf16, false, 6e12);
  peak("amx", MathType::kInt8, false, 12e12);
  peak("amx", MathType::kInt8, true, 7e12);
  peak("avx512_vnni", MathType::kF32, false, 0.42e12);
  peak("avx512_vnni", MathType::kBf16, false, 0.21e12);
  peak("avx512_vnni", MathType::kInt8, false, 1.7e12);
  return limits;
}

class MachineCache : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("dougong_machine_" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    path_ = (folder_ / "a b" / "machine.json").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::filesystem::path folder_;
  std::string path_;
};

TEST(Machine, MedianAndExtremes) {
  Measured odd = measured({3, 1, 2}), even = measured({4, 1, 2, 3});
  EXPECT_EQ(odd.median, 2);
  EXPECT_EQ(odd.low, 1);
  EXPECT_EQ(odd.high, 3);
  EXPECT_EQ(odd.spread(), 1);
  EXPECT_EQ(even.median, 2.5);
  EXPECT_EQ(measured({}).spread(), 0);
}

TEST(Machine, PeakIsThatOfTheTypeUnlessF32IsFaster) {
  MachineLimits limits = example("cpu", 2);
  EXPECT_EQ(limits.operations_per_s("amx", MathType::kInt8), 12e12) << "from registers, not from L2";
  EXPECT_EQ(limits.operations_per_s("avx512_vnni", MathType::kBf16), 0.42e12) << "the bf16 dot product is slower than f32";
  EXPECT_EQ(limits.operations_per_s("generic", MathType::kF32), 0) << "not measured";
  Roofline r = limits.roofline("amx");
  EXPECT_DOUBLE_EQ(r.seconds(26e9, 1, MathType::kInt8), 1) << "memory";
  EXPECT_DOUBLE_EQ(r.seconds(1, 24e12, MathType::kInt8), 2) << "multipliers";
  EXPECT_EQ(Roofline{}.seconds(1, 1, MathType::kF32), 0);
}

TEST(Machine, TypeOfFormats) {
  for (auto [name, type] : {std::pair("f32", MathType::kF32),
                            {"bf16", MathType::kBf16},
                            {"fp8_block", MathType::kBf16},
                            {"int8", MathType::kInt8},
                            {"int4", MathType::kInt8},
                            {"q8_0", MathType::kInt8}})
    EXPECT_EQ(math_type_of(*find_format(name)), type) << name;
}

TEST(Machine, JsonKeepsEverything) {
  Json json = machine_json(example("Some \"CPU\"", 2));
  std::optional<MachineLimits> back = machine_from_json(json);
  ASSERT_TRUE(back);
  EXPECT_EQ(machine_json(*back).dump(), json.dump());
}

TEST(Machine, DamagedEntriesAreNoEntries) {
  const Json good = machine_json(example("cpu", 2));
  auto without = [&](auto change) {
    Json json = good;
    change(json);
    return machine_from_json(json).has_value();
  };
  EXPECT_TRUE(without([](Json&) {}));
  for (const char* name : {"version", "cpu", "threads", "read_bandwidth", "peaks", "copy_bytes_per_s"})
    EXPECT_FALSE(without([&](Json& j) { j.erase(name); })) << name;
  EXPECT_FALSE(without([](Json& j) { j["version"] = 99; }));
  EXPECT_FALSE(without([](Json& j) { j["threads"] = 1e300; }));
  EXPECT_FALSE(without([](Json& j) { j["threads"] = -1; }));
  EXPECT_FALSE(without([](Json& j) { j["read_bandwidth"] = Json::array(); }));
  EXPECT_FALSE(without([](Json& j) { j["peaks"][0]["type"] = "fp4"; }));
  EXPECT_FALSE(without([](Json& j) { j["peaks"][0] = 7; }));
  EXPECT_FALSE(machine_from_json(Json::array()).has_value());
}

TEST_F(MachineCache, KeepsOneEntryPerProcessorAndThreads) {
  EXPECT_FALSE(load_machine_limits(path_, "cpu", 2));
  ASSERT_TRUE(store_machine_limits(path_, example("cpu", 2)).ok());
  ASSERT_TRUE(store_machine_limits(path_, example("cpu", 4)).ok());
  MachineLimits newer = example("cpu", 2);
  newer.copy_bytes_per_s.median = 5;
  ASSERT_TRUE(store_machine_limits(path_, newer).ok());
  EXPECT_EQ(load_machine_limits(path_, "cpu", 2)->copy_bytes_per_s.median, 5);
  EXPECT_EQ(load_machine_limits(path_, "cpu", 4)->copy_bytes_per_s.median, 11e9);
  EXPECT_FALSE(load_machine_limits(path_, "other", 2));
  for (int i = 0; i < 30; i++) ASSERT_TRUE(store_machine_limits(path_, example("cpu", 10 + i)).ok());
  EXPECT_FALSE(load_machine_limits(path_, "cpu", 2)) << "the oldest are forgotten";
  EXPECT_TRUE(load_machine_limits(path_, "cpu", 39));
}

TEST_F(MachineCache, DamagedFileIsReplaced) {
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
  for (const char* text : {"", "{", "[]", "{\"machines\": 3}", "{\"machines\": [1, {}, null]}"}) {
    std::ofstream(path_) << text;
    EXPECT_FALSE(load_machine_limits(path_, "cpu", 2)) << text;
    ASSERT_TRUE(store_machine_limits(path_, example("cpu", 2)).ok()) << text;
    EXPECT_TRUE(load_machine_limits(path_, "cpu", 2)) << text;
  }
}

TEST_F(MachineCache, UnwritableFolderIsOneLine) {
  std::filesystem::create_directories(folder_);
  std::ofstream(folder_ / "file") << "x";
  Result<void> stored = store_machine_limits((folder_ / "file" / "machine.json").string(), example("cpu", 2));
  ASSERT_FALSE(stored.ok());
  EXPECT_EQ(stored.error().message.find('\n'), std::string::npos);
  EXPECT_NE(stored.error().message.find("machine.json"), std::string::npos);
}

}  // namespace
}  // namespace dg
