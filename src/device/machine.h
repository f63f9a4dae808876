// What this machine can do at most, as measured (backends/cpu/machine_measure.h): read and copy bandwidth and the peak of each
// instruction set. Benchmarks and the profiler print their figures as a percentage of these.
//
// Measurements are kept in a small file, one entry for each (processor, number of threads), because they take seconds.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_fwd.h"
#include "base/result.h"
#include "quant/format.h"

namespace dg {

// Of several short runs. A machine shared with others shows in the spread; its limit is nearer to `high`.
struct Measured {
  double median = 0, low = 0, high = 0;
  double spread() const { return median > 0 ? (high - low) / median : 0; }
};
Measured measured(std::vector<double> values);  // all 0 without values

// The types in which products are computed: int8 also for 4-bit weights, bf16 also for fp8 where nothing multiplies fp8.
enum class MathType { kF32, kBf16, kInt8, kFp8 };
const char* math_type_name(MathType type);
// The type in which a product with weights of this format can be computed at its fastest.
MathType math_type_of(const Format& format);

struct ReadBandwidth {
  int threads = 0;
  Measured bytes_per_s;
};
// All threads of one node read memory of one node (operating system numbers).
struct NodeBandwidth {
  int cpu_node = 0, memory_node = 0, threads = 0;
  Measured bytes_per_s;
};
struct InstructionPeak {
  std::string isa, instruction;
  MathType type = MathType::kF32;
  bool from_l2 = false;  // operands come from L2; else from registers
  Measured one, all;     // operations per second of one thread and of all; multiply and add count as two
};

// The larger of the two times that the memory and the multipliers need at least.
struct Roofline {
  double bytes_per_s = 0;
  double f32 = 0, bf16 = 0, int8 = 0, fp8 = 0;  // operations per second; fp8: of accelerators that have it
  double operations_per_s(MathType type) const {
    return type == MathType::kInt8 ? int8 : type == MathType::kBf16 ? bf16 : type == MathType::kFp8 ? fp8 : f32;
  }
  // Seconds; 0 when nothing is known.
  double seconds(double bytes, double operations, MathType type) const;
};

struct MachineLimits {
  std::string cpu;                   // model name, also of a GPU
  std::string topology;              // for people
  int threads = 0;                   // multiprocessors of a GPU
  std::vector<ReadBandwidth> read;   // by number of threads, ascending; the last one is all
  std::vector<NodeBandwidth> nodes;  // empty on one node
  Measured copy_bytes_per_s;         // bytes copied, each read once and written once, all threads
  std::vector<InstructionPeak> peaks;

  double read_bytes_per_s() const { return read.empty() ? 0 : read.back().bytes_per_s.median; }
  // Of all threads from registers with the instructions of one family; a type that the family has no instruction for, or a
  // slower one than f32, is computed in f32. 0: the family was not measured.
  double operations_per_s(std::string_view isa, MathType type) const;
  Roofline roofline(std::string_view isa) const;
  // "read 26.4 GB/s; amx: int8 12.3 TOP/s, bf16 6.3, f32 0.42 TFLOP/s (2 threads of ...)"
  std::string summary(std::string_view isa) const;
};

Json machine_json(const MachineLimits& limits);
std::optional<MachineLimits> machine_from_json(const Json& json);  // nothing when it is not one

// Model name of the processor as /proc/cpuinfo gives it, else the name of the architecture.
std::string cpu_model_name();

// $XDG_CACHE_HOME/dougong/machine.json, else ~/.cache/...; "" when there is no home.
std::string machine_cache_path();
// Nothing when the file is absent, damaged or has no such entry.
std::optional<MachineLimits> load_machine_limits(const std::string& path, const std::string& cpu, int threads);
// Replaces the entry of the same processor and threads, keeps at most 16, makes the folder.
Result<void> store_machine_limits(const std::string& path, const MachineLimits& limits);

}  // namespace dg
