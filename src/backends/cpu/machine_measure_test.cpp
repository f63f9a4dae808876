// The measurements run, see what there is, and are of the right order; how fast a shared machine is cannot be tested.
#include "backends/cpu/machine_measure.h"

#include <gtest/gtest.h>

#include "backends/cpu/isa.h"

namespace dg {
namespace {

MeasureOptions quick(int threads) { return {.threads = threads, .seconds = 0.001, .rounds = 3, .memory_bytes = int64_t{16} << 20}; }

TEST(MachineMeasure, FindsEveryInstructionSet) {
  auto limits = measure_machine(quick(3), Topology::load());
  ASSERT_TRUE(limits.ok()) << limits.error().message;
  EXPECT_EQ(limits->threads, 3);
  EXPECT_FALSE(limits->cpu.empty());
  std::vector<int> counts;
  for (const ReadBandwidth& r : limits->read) {
    counts.push_back(r.threads);
    EXPECT_GT(r.bytes_per_s.median, 1e6);
    EXPECT_LE(r.bytes_per_s.low, r.bytes_per_s.median);
    EXPECT_LE(r.bytes_per_s.median, r.bytes_per_s.high);
  }
  EXPECT_EQ(counts, (std::vector<int>{1, 2, 3}));
  EXPECT_GT(limits->copy_bytes_per_s.median, 1e6);
  for (const std::string& isa : usable_isas()) {
    double f32 = 0, int8 = 0;
    for (const InstructionPeak& peak : limits->peaks) {
      if (peak.isa != isa || peak.from_l2) continue;
      EXPECT_GT(peak.one.median, 1e6) << isa;
      EXPECT_GT(peak.all.median, 1e6) << isa;
      EXPECT_FALSE(peak.instruction.empty());
      if (peak.type == MathType::kF32) f32 = peak.one.high;
      if (peak.type == MathType::kInt8) int8 = peak.one.high;
    }
    EXPECT_GT(f32, 0) << isa;
    EXPECT_LT(f32, 2e12) << isa << ": no core does that; the compiler took the loop apart";
    EXPECT_LT(int8, 50e12) << isa;
    if (isa == "amx") {
      EXPECT_GT(int8, 4 * f32) << "tiles multiply 32 times as much as f32 vectors";
    }
  }
}

TEST(MachineMeasure, ReadsEveryNodeFromEveryNode) {
  auto topology = Topology::from_synthetic("node:2 core:1 pu:1");
  if (!topology.ok()) GTEST_SKIP() << topology.error().message;
  auto limits = measure_machine(quick(2), *topology);
  ASSERT_TRUE(limits.ok()) << limits.error().message;
  ASSERT_EQ(limits->nodes.size(), 4u);
  for (int i = 0; i < 4; i++) {
    EXPECT_EQ(limits->nodes[static_cast<size_t>(i)].cpu_node, i / 2);
    EXPECT_EQ(limits->nodes[static_cast<size_t>(i)].memory_node, i % 2);
    EXPECT_EQ(limits->nodes[static_cast<size_t>(i)].threads, 1);
    EXPECT_GT(limits->nodes[static_cast<size_t>(i)].bytes_per_s.median, 1e6);
  }
}

TEST(MachineMeasure, CanBeCancelled) {
  std::atomic<bool> cancel{true};
  MeasureOptions options = quick(1);
  options.cancel = &cancel;
  auto limits = measure_machine(options, Topology::load());
  ASSERT_FALSE(limits.ok());
  EXPECT_EQ(limits.error().kind, ErrorKind::kCancelled);
}

TEST(MachineMeasure, CalibrationGivesRates) {
  auto calibration = Calibration::create();
  ASSERT_TRUE(calibration.ok()) << calibration.error().message;
  for (int i = 0; i < 20; i++) EXPECT_GT((*calibration)->read_bytes_per_s(), 1e6);  // goes round its memory
  EXPECT_GT((*calibration)->f32_operations_per_s(), 1e6);
}

}  // namespace
}  // namespace dg
