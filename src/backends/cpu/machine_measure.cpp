#include "backends/cpu/machine_measure.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <system_error>
#include <thread>

#include "backends/cpu/isa.h"
#include "backends/cpu/kernels/kernels.h"
#include "base/memory.h"

namespace dg {
namespace {

constexpr int64_t kPiece = int64_t{1} << 20;  // read or copied between two looks at the clock

double clock_s(clockid_t clock) {
  timespec t{};
  ::clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Calls step() until `seconds` are over; bytes per second of the time that this thread really ran (see kernels/peaks.h).
template <class F>
double bytes_rate(double seconds, F step) {
  const double end = clock_s(CLOCK_MONOTONIC) + seconds, begin = clock_s(CLOCK_THREAD_CPUTIME_ID);
  double bytes = 0;
  do bytes += step();
  while (clock_s(CLOCK_MONOTONIC) < end);
  const double ran = clock_s(CLOCK_THREAD_CPUTIME_ID) - begin;
  return ran > 0 ? bytes / ran : 0;
}

// Threads that begin together, each on its core.
class Team {
 public:
  explicit Team(const Topology& topology, int threads) : topology_(topology), pin_(threads <= static_cast<int>(topology.cores.size())) {}

  int node_of(int thread) const { return pin_ ? topology_.cores[static_cast<size_t>(thread)].node : 0; }

  // The sum of fn(thread) over `members`. Threads that the system refuses to start count nothing.
  double run(const std::vector<int>& members, const std::function<double(int)>& fn) const {
    std::vector<double> values(members.size(), 0);
    std::vector<std::thread> threads;
    threads.reserve(members.size());
    std::atomic<size_t> ready{0}, expected{members.size()};
    for (size_t i = 0; i < members.size(); i++) {
      try {
        threads.emplace_back([&, i] {
          if (pin_) pin_current_thread(topology_.cores[static_cast<size_t>(members[i])].cpus);
          ready++;
          while (ready < expected) std::this_thread::yield();
          values[i] = fn(members[i]);
        });
      } catch (const std::system_error&) {
        expected = threads.size();
        break;
      }
    }
    double sum = 0;
    for (std::thread& thread : threads) thread.join();
    for (double value : values) sum += value;
    return sum;
  }

 private:
  const Topology& topology_;
  bool pin_;
};

// One stretch of memory for each thread, on its node.
struct Slices {
  std::vector<HugeMemory> memory;
  int64_t bytes = 0;  // of each
};

Result<Slices> make_slices(const Team& team, int threads, int64_t node_bytes, const Topology& topology) {
  std::vector<int> on_node(topology.nodes.size(), 0);
  for (int t = 0; t < threads; t++) on_node[static_cast<size_t>(team.node_of(t))]++;
  int most = std::max(1, *std::max_element(on_node.begin(), on_node.end()));
  Slices slices;
  slices.bytes = std::max<int64_t>(node_bytes / most / kPiece, 2) * kPiece;
  std::vector<int> all;
  for (int t = 0; t < threads; t++) {
    DG_ASSIGN(HugeMemory memory, HugeMemory::allocate(static_cast<size_t>(slices.bytes), "the bandwidth measurement"));
    slices.memory.push_back(std::move(memory));
    all.push_back(t);
  }
  team.run(all, [&](int t) {  // first touched by the thread that owns it: so it lies on that thread's node
    std::memset(slices.memory[static_cast<size_t>(t)].data(), 1, static_cast<size_t>(slices.bytes));
    return 0.0;
  });
  return slices;
}

class Measurement {
 public:
  Measurement(const MeasureOptions& options, const Topology& topology, int threads)
      : options_(options), topology_(topology), threads_(threads), team_(topology, threads) {}

  Result<MachineLimits> run() {
    MachineLimits limits{.cpu = cpu_model_name(), .topology = topology_.summary(), .threads = threads_};
    DG_TRY(measure_peaks(limits));
    DG_TRY(measure_memory(limits));
    return limits;
  }

 private:
  Result<void> check_cancelled() const {
    if (options_.cancel && options_.cancel->load(std::memory_order_relaxed)) return Error{ErrorKind::kCancelled, "interrupted"};
    return {};
  }

  std::vector<int> first(int count) const {
    std::vector<int> members;
    for (int t = 0; t < count; t++) members.push_back(t);
    return members;
  }

  template <class F>
  Measured repeat(F f) const {
    std::vector<double> values;
    for (int i = 0; i < options_.rounds; i++) values.push_back(f());
    return measured(std::move(values));
  }

  Result<void> measure_peaks(MachineLimits& limits) {
    // A part of L2 that does not fit in L1: half of it, so that a hardware thread beside this one has room too.
    const int64_t tile_bytes = std::clamp<int64_t>(topology_.l2_bytes > 0 ? topology_.l2_bytes / 2 : kPiece, kPiece / 4, 2 * kPiece);
    DG_ASSIGN(HugeMemory memory, HugeMemory::allocate(static_cast<size_t>(tile_bytes * threads_), "the tile measurement"));
    struct Wanted {
      PeakKind kind;
      MathType type;
      bool from_l2;
    };
    constexpr Wanted kWanted[] = {{PeakKind::kInt8, MathType::kInt8, false},
                                  {PeakKind::kInt8FromL2, MathType::kInt8, true},
                                  {PeakKind::kBf16, MathType::kBf16, false},
                                  {PeakKind::kBf16FromL2, MathType::kBf16, true},
                                  {PeakKind::kF32, MathType::kF32, false}};
    for (const std::string& isa : usable_isas()) {
      DG_ASSIGN(const KernelTable* kernels, find_kernels(isa));
      for (const Wanted& wanted : kWanted) {
        DG_TRY(check_cancelled());
        auto loop = [&](int thread, double seconds, const char** instruction) {
          PeakRun run{.kind = wanted.kind, .seconds = seconds, .memory = memory.data() + thread * tile_bytes, .bytes = tile_bytes};
          double rate = kernels->peak(run);
          if (instruction) *instruction = run.instruction;
          return rate;
        };
        const char* instruction = nullptr;
        if (loop(0, 0, &instruction) <= 0) continue;
        auto with = [&](int count) {
          return repeat([&] { return team_.run(first(count), [&](int t) { return loop(t, options_.seconds, nullptr); }); });
        };
        Measured one = with(1);
        limits.peaks.push_back(
            {isa, instruction ? instruction : "", wanted.type, wanted.from_l2, one, threads_ > 1 ? with(threads_) : one});
      }
    }
    return {};
  }

  // Threads read the slices of `memory_node` in turns, so that together they touch more than the caches hold.
  double read_rate(const Slices& slices, const std::vector<int>& members, int memory_node, const KernelTable* kernels) const {
    std::vector<int> ranks(static_cast<size_t>(threads_), 0), of_node;
    std::vector<int> per_node(topology_.nodes.size(), 0);
    for (int t : members) ranks[static_cast<size_t>(t)] = per_node[static_cast<size_t>(team_.node_of(t))]++;
    return team_.run(members, [&](int thread) {
      const int cpu_node = team_.node_of(thread), node = memory_node >= 0 ? memory_node : cpu_node;
      std::vector<std::byte*> mine, rest;
      int rank = ranks[static_cast<size_t>(thread)], of = per_node[static_cast<size_t>(cpu_node)], seen = 0;
      for (int t = 0; t < threads_; t++) {
        if (team_.node_of(t) != node) continue;
        (seen++ % of == rank ? mine : rest).push_back(slices.memory[static_cast<size_t>(t)].data());
      }
      if (mine.empty()) mine = rest;  // more threads than slices
      if (mine.empty()) return 0.0;
      size_t slice = 0;
      int64_t at = 0;
      return bytes_rate(2 * options_.seconds, [&] {
        PeakRun run{.kind = PeakKind::kRead, .seconds = 0, .memory = mine[slice] + at, .bytes = kPiece};
        at += kPiece;
        if (at + kPiece > slices.bytes) at = 0, slice = (slice + 1) % mine.size();
        return kernels->peak(run);
      });
    });
  }

  Result<void> measure_memory(MachineLimits& limits) {
    int64_t node_bytes = options_.memory_bytes;
    if (node_bytes == 0) node_bytes = std::clamp<int64_t>(4 * topology_.l3_bytes, int64_t{256} << 20, int64_t{1} << 30);
    const MemoryInfo info = read_memory_info();
    if (info.available_bytes > 0)
      node_bytes = std::min(node_bytes, info.available_bytes / 4 / static_cast<int64_t>(topology_.nodes.size()));
    DG_ASSIGN(Slices slices, make_slices(team_, threads_, node_bytes, topology_));
    DG_ASSIGN(const KernelTable* kernels, find_kernels("auto"));
    for (int count = 1; count <= threads_; count = count < threads_ ? std::min(count * 2, threads_) : threads_ + 1) {
      DG_TRY(check_cancelled());
      limits.read.push_back({count, repeat([&] { return read_rate(slices, first(count), -1, kernels); })});
    }
    const int nodes = static_cast<int>(topology_.nodes.size());
    for (int cpu_node = 0; nodes > 1 && cpu_node < nodes; cpu_node++) {
      std::vector<int> members;
      for (int t = 0; t < threads_; t++)
        if (team_.node_of(t) == cpu_node) members.push_back(t);
      for (int memory_node = 0; !members.empty() && memory_node < nodes; memory_node++) {
        DG_TRY(check_cancelled());
        limits.nodes.push_back({topology_.nodes[static_cast<size_t>(cpu_node)].id, topology_.nodes[static_cast<size_t>(memory_node)].id,
                                static_cast<int>(members.size()),
                                repeat([&] { return read_rate(slices, members, memory_node, kernels); })});
      }
    }
    DG_TRY(check_cancelled());
    limits.copy_bytes_per_s = repeat([&] { return copy_rate(slices); });
    return {};
  }

  double copy_rate(Slices& slices) const {
    const int64_t half = slices.bytes / 2 / kPiece * kPiece;
    return team_.run(first(threads_), [&](int thread) {
      std::byte* data = slices.memory[static_cast<size_t>(thread)].data();
      int64_t at = 0;
      return bytes_rate(2 * options_.seconds, [&] {
        std::memcpy(data + half + at, data + at, static_cast<size_t>(kPiece));
        at = (at + kPiece) % half;
        return static_cast<double>(kPiece);
      });
    });
  }

  const MeasureOptions& options_;
  const Topology& topology_;
  const int threads_;
  const Team team_;
};

}  // namespace

Result<MachineLimits> measure_machine(const MeasureOptions& options, const Topology& topology) {
  int threads = std::clamp(options.threads > 0 ? options.threads : topology.worker_count(), 1, 4096);
  return Measurement(options, topology, threads).run();
}

namespace {
constexpr size_t kCalibrationBytes = size_t{256} << 20, kCalibrationRead = size_t{16} << 20;
}

Result<std::unique_ptr<Calibration>> Calibration::create() {
  DG_ASSIGN(const KernelTable* kernels, find_kernels("auto"));
  DG_ASSIGN(HugeMemory memory, HugeMemory::allocate(kCalibrationBytes, "the calibration"));
  std::memset(memory.data(), 1, kCalibrationBytes);
  return std::unique_ptr<Calibration>(new Calibration(kernels, std::move(memory)));
}

double Calibration::f32_operations_per_s() const {
  PeakRun run{.kind = PeakKind::kF32, .seconds = 0.002, .memory = nullptr, .bytes = 0};
  return kernels_->peak(run);
}

double Calibration::read_bytes_per_s() {
  const size_t begin = at_;
  at_ = (at_ + kCalibrationRead) % kCalibrationBytes;
  size_t done = 0;
  // One pass over the next stretch: what was read before it has left the caches of most machines.
  const double start = clock_s(CLOCK_THREAD_CPUTIME_ID);
  for (; done < kCalibrationRead; done += kPiece) {
    PeakRun run{.kind = PeakKind::kRead, .seconds = 0, .memory = memory_.data() + begin + done, .bytes = kPiece};
    kernels_->peak(run);
  }
  const double ran = clock_s(CLOCK_THREAD_CPUTIME_ID) - start;
  return ran > 0 ? static_cast<double>(kCalibrationRead) / ran : 0;
}

Result<MachineLimits> machine_limits(int threads, bool* measured_now) {
  const Topology topology = Topology::load();
  if (threads <= 0) threads = topology.worker_count();
  const std::string path = machine_cache_path();
  std::optional<MachineLimits> cached = load_machine_limits(path, cpu_model_name(), threads);
  if (measured_now) *measured_now = !cached;
  // Another build may have measured other families.
  if (cached && cached->operations_per_s(usable_isas().front(), MathType::kF32) > 0) return std::move(*cached);
  if (measured_now) *measured_now = true;
  DG_ASSIGN(MachineLimits limits, measure_machine({.threads = threads}, topology));
  (void)store_machine_limits(path, limits).ok();
  return limits;
}

}  // namespace dg
