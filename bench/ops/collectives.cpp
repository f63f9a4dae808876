// Sums over several GPUs: time of all_reduce and of add_rms_norm with partial sums, by algorithm, size and in graphs; and whether they
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

constexpr int64_t kDim = 7168, kMostRows = 8192;
const char* const kAlgorithms[] = {"", "one", "two", "nccl"};  // DOUGONG_CUDA_COLLECTIVE; "": as chosen

float value_of(int rank, int64_t i) { return static_cast<float>((i * 37 + rank * 101) % 1000 - 500) / 64.0f; }

// One GPU of the group, on its own thread.
class Rank {
 public:
  Rank(Backend& backend, int rank, int ranks) : backend_(backend), rank_(rank), ranks_(ranks) {
    const size_t bytes = static_cast<size_t>(kMostRows * kDim) * 4;
    x_ = allocate_or_exit(backend, bytes, "x");
    residual_ = allocate_or_exit(backend, bytes, "residual");
    out_ = allocate_or_exit(backend, bytes, "out");
    weight_ = allocate_or_exit(backend, kDim * 4, "weight");
  }

  void issue(bool norm, int64_t rows) {
    auto tensor = [&](DeviceMemory& m) { return Tensor::of(m.data(), Dtype::kF32, {rows, kDim}); };
    if (!norm) return backend_.all_reduce({tensor(*x_)});
    backend_.add_rms_norm({.out = tensor(*out_),
                           .residual = tensor(*residual_),
                           .delta = tensor(*x_),
                           .weight = Tensor::of(weight_->data(), Dtype::kF32, {kDim}),
                           .eps = 1e-6f,
                           .partial = true});
  }

  // Numbers that are not the sum, in order of rank bit for bit unless `rounded`.
  int64_t wrong(int64_t rows, bool rounded) {
    const auto n = static_cast<size_t>(rows * kDim);
    std::vector<float> x(n);
    for (size_t i = 0; i < n; i++) x[i] = value_of(rank_, static_cast<int64_t>(i));
    backend_.synchronise();
    backend_.write(x_->data(), x.data(), n * 4);
    issue(false, rows);
    backend_.download(x.data(), x_->data(), n * 4);
    int64_t count = 0;
    for (size_t i = 0; i < n; i++) {
      float sum = value_of(0, static_cast<int64_t>(i));
      for (int r = 1; r < ranks_; r++) sum += value_of(r, static_cast<int64_t>(i));
      count += rounded ? std::abs(x[i] - sum) > 1e-4f : x[i] != sum;
    }
    std::fill(x.begin(), x.end(), 0.0f);  // repeated sums of zeros stay finite
    backend_.write(x_->data(), x.data(), n * 4);
    return count;
  }

  double seconds(bool norm, int64_t rows, bool graph, int count, uint64_t key) {
    auto all = [&] {
      for (int i = 0; i < count; i++) issue(norm, rows);
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
  for (bool norm : {false, true})
    for (int64_t rows = 1; rows <= kMostRows; rows *= rows < 16 ? 2 : 4) {
      if (norm && (rows > 1024 || !algorithm.empty())) continue;
      if (algorithm == "one" && rows > 1024) continue;
      const int64_t wrong = norm ? 0 : own.wrong(rows, algorithm == "nccl");
      for (bool graph : {false, true}) {
        const int count = rows <= 64 ? 200 : 20;
        key++;
        for (int i = 0; i < 3; i++) own.seconds(norm, rows, graph, count, key);  // issues, captures, replays
        std::vector<double> us;
        for (int round = 0; round < options.rounds; round++) {
          meet.arrive_and_wait();
          taken[static_cast<size_t>(rank)] = own.seconds(norm, rows, graph, count, key) * 1e6;
          meet.arrive_and_wait();
          us.push_back(*std::max_element(taken.begin(), taken.end()));
        }
        if (Result<void> status = own.backend().status(); !status.ok()) {
          meet.arrive_and_drop();
          return status.error().message;
        }
        if (rank != 0) continue;
        const Measured time = measured(us);
        const double bytes = static_cast<double>(rows * kDim) * 4;
        fmt::print(
            "{{\"op\": \"{}\", \"algorithm\": \"{}\", \"gpus\": {}, \"rows\": {}, \"dim\": {}, \"graph\": {}, \"us\": {:.2f}, \"low_us\": "
            "{:.2f}, \"bus_gb_per_s\": {:.1f}, \"wrong\": {}}}\n",
            norm ? "add_rms_norm" : "all_reduce", algorithm.empty() ? "auto" : algorithm, ranks, rows, kDim, graph, time.median, time.low,
            2.0 * (ranks - 1) / ranks * bytes / time.median * 1e-3, wrong);
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
