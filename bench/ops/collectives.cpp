// Sums over several GPUs: time of all_reduce and of add_rms_norm with partial sums, by algorithm and size, in graphs; and whether they
// are right. One JSON line each. Bus bandwidth: 2 (n - 1) / n x bytes over the time, what each GPU must at least send and receive.
#include <fmt/core.h>

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "bench_ops.h"
#include "device/local_group.h"
#include "device/plugin.h"

namespace dg::bench_ops {
namespace {

constexpr int64_t kMostDim = 7168, kMostRows = 4096, kPeriod = 1000;
const char* const kAlgorithms[] = {"", "ll", "one", "two", "nccl"};  // DOUGONG_CUDA_COLLECTIVE; "": as chosen

// Repeats after kPeriod numbers.
float value_of(int rank, int64_t i) { return static_cast<float>((i * 37 + rank * 101) % kPeriod - 500) / 64.0f; }

struct Case {
  bool norm;
  int64_t dim, rows;
};

// One algorithm's: all sizes of a sum, sums that decoding needs with a norm, and the same at half the columns. `ll` and `one` have
// buffers; a message that does not fit takes two shot.
std::vector<Case> cases_of(const std::string& algorithm) {
  const bool buffers = algorithm == "ll" || algorithm == "one";
  std::vector<Case> cases;
  for (bool norm : {false, true})
    for (int64_t dim : {kMostDim, kMostDim / 2})
      for (int64_t rows : {1, 4, 16, 64, 256, 1024, 4096}) {
        if (rows > (buffers ? 64 : norm ? 256 : kMostRows) || (rows > 16 && dim != kMostDim)) continue;
        cases.push_back({norm, dim, rows});
      }
  return cases;
}

// One GPU of the group, on its own thread.
class Rank {
 public:
  Rank(Backend& backend, int rank, int ranks) : backend_(backend), rank_(rank), ranks_(ranks) {
    const size_t bytes = static_cast<size_t>(kMostRows * kMostDim) * 4;
    x_ = allocate_or_exit(backend, bytes, "x");
    residual_ = allocate_or_exit(backend, bytes, "residual");
    out_ = allocate_or_exit(backend, bytes, "out");
    weight_ = allocate_or_exit(backend, kMostDim * 4, "weight");
  }

  void issue(const Case& c) {
    auto tensor = [&](DeviceMemory& m) { return Tensor::of(m.data(), Dtype::kF32, {c.rows, c.dim}); };
    if (!c.norm) return backend_.all_reduce({tensor(*x_)});
    backend_.add_rms_norm({.out = tensor(*out_),
                           .residual = tensor(*residual_),
                           .delta = tensor(*x_),
                           .weight = Tensor::of(weight_->data(), Dtype::kF32, {c.dim}),
                           .eps = 1e-6f,
                           .partial = true});
  }

  // Numbers that are not the sum, in order of rank bit for bit unless `rounded`.
  int64_t wrong(const Case& c, bool rounded) {
    const auto n = static_cast<size_t>(c.rows * c.dim);
    float own[kPeriod], sum[kPeriod];
    for (int64_t i = 0; i < kPeriod; i++) {
      own[i] = value_of(rank_, i), sum[i] = value_of(0, i);
      for (int r = 1; r < ranks_; r++) sum[i] += value_of(r, i);
    }
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = own[i % kPeriod];
    backend_.synchronise();
    backend_.write(x_->data(), x.data(), n * 4);
    issue(c);
    backend_.download(x.data(), x_->data(), n * 4);
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) count += rounded ? std::abs(x[i] - sum[i % kPeriod]) > 1e-4f : x[i] != sum[i % kPeriod];
    std::fill(x.begin(), x.end(), 0.0f);  // repeated sums of zeros stay finite
    backend_.write(x_->data(), x.data(), n * 4);
    return count;
  }

  double seconds(const Case& c, bool graph, int count, uint64_t key) {
    auto all = [&] {
      for (int i = 0; i < count; i++) issue(c);
    };
    const double begin = now_s();
    graph ? backend_.replay(key, all) : all();
    backend_.synchronise();
    return (now_s() - begin) / count;
  }

  Backend& backend() { return backend_; }

 private:
  Backend& backend_;
  const int rank_, ranks_;
  std::unique_ptr<DeviceMemory> x_, residual_, out_, weight_;
};

// What every rank does; `meet` keeps them together outside of what is timed.
std::string run_rank(const Options& options, const std::string& algorithm, LocalGroup& group, int rank, std::barrier<>& meet,
                     std::vector<double>& taken) {
  auto made = load_backend("cuda", {.device = rank, .group = &group, .rank = rank});
  if (!made.ok()) {
    meet.arrive_and_drop();
    return made.error().message;
  }
  const int ranks = group.size();
  Rank own(**made, rank, ranks);
  uint64_t key = 0;
  for (const Case& c : cases_of(algorithm)) {
    const int64_t wrong = c.norm ? 0 : own.wrong(c, algorithm == "nccl");
    for (bool graph : {false, true}) {
      if (!graph && !algorithm.empty()) continue;
      const int count = c.rows <= 64 ? 200 : c.rows <= 256 ? 50 : 10;
      key++;
      for (int i = 0; i < 3; i++) own.seconds(c, graph, count, key);  // issues, captures, replays
      std::vector<double> us;
      for (int round = 0; round < options.rounds; round++) {
        meet.arrive_and_wait();
        taken[static_cast<size_t>(rank)] = own.seconds(c, graph, count, key) * 1e6;
        meet.arrive_and_wait();
        us.push_back(*std::max_element(taken.begin(), taken.end()));
      }
      if (Result<void> status = own.backend().status(); !status.ok()) {
        meet.arrive_and_drop();
        return status.error().message;
      }
      if (rank != 0) continue;
      const Measured time = measured(us);
      const double bytes = static_cast<double>(c.rows * c.dim) * 4;
      fmt::print(
          "{{\"op\": \"{}\", \"algorithm\": \"{}\", \"gpus\": {}, \"rows\": {}, \"dim\": {}, \"graph\": {}, \"us\": {:.2f}, \"low_us\": "
          "{:.2f}, \"bus_gb_per_s\": {:.1f}, \"wrong\": {}}}\n",
          c.norm ? "add_rms_norm" : "all_reduce", algorithm.empty() ? "auto" : algorithm, ranks, c.rows, c.dim, graph, time.median,
          time.low, 2.0 * (ranks - 1) / ranks * bytes / time.median * 1e-3, wrong);
      std::fflush(stdout);
    }
  }
  meet.arrive_and_drop();
  return "";
}

}  // namespace

int run_collectives(const Options& options) {
  for (const char* algorithm : kAlgorithms) {
    ::setenv("DOUGONG_CUDA_COLLECTIVE", algorithm, 1);
    LocalGroup group(options.gpus, std::chrono::seconds(20));
    std::barrier<> meet(options.gpus);
    std::vector<double> taken(static_cast<size_t>(options.gpus));
    std::vector<std::string> errors(static_cast<size_t>(options.gpus));
    std::vector<std::thread> ranks;
    for (int r = 0; r < options.gpus; r++)
      ranks.emplace_back([&, r] { errors[static_cast<size_t>(r)] = run_rank(options, algorithm, group, r, meet, taken); });
    for (std::thread& t : ranks) t.join();
    for (const std::string& error : errors) {
      if (error.empty()) continue;
      fmt::print(stderr, "bench_ops collectives: {}\n", error);
      return 4;
    }
  }
  return 0;
}

}  // namespace dg::bench_ops
