// bench_ops: products with weights (decode, small batches, prefill) and attention on the CPU backend, in percent of what this machine
// can do at most (`dougong bench machine`, kept in ~/.cache/dougong). Every row is the best of several rounds; a machine shared with
// others lowers it.
//
//   bench_ops [--isa NAME] [--threads N] [--format NAME] [--rounds N] [--op linear|attention]
//   bench_ops perf [--isa NAME] [--rounds N] [--filter TEXT] [--baseline FILE] [--update]      see perf.cpp
// On an accelerator (--backend NAME, default cuda), JSON lines:
//   bench_ops products [--rounds N] [--filter TEXT]     products of decode steps: products.cpp
//   bench_ops experts [--rounds N] [--filter TEXT]      experts and router of decode steps by each way: products.cpp
//   bench_ops prefill [--rounds N] [--format NAME]      a dense product and the experts of a layer: device_products.cpp
//   bench_ops attention [--rounds N]                    device_attention.cpp
//   bench_ops collectives [--gpus N] [--rounds N]       collectives.cpp
#include "bench_ops.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "backends/cpu/cpu.h"
#include "backends/cpu/machine_measure.h"

namespace dg::bench_ops {

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::string limits_text(const Roofline& limits, double bytes, double flops, MathType type, double seconds) {
  const double peak = limits.operations_per_s(type);
  return fmt::format("{:>6.0f}% {:>6.0f}% {:>6.0f}%", 100 * bytes / seconds / limits.bytes_per_s,
                     peak > 0 ? 100 * flops / seconds / peak : 0, 100 * limits.seconds(bytes, flops, type) / seconds);
}

namespace {

void bench_linear(Backend& backend, const Options& options, const Roofline& limits) {
  fmt::print("\n{:<12} {:>11} {:>4} {:>12} {:>9} {:>9} {:>8} {:>9} {:>7} {:>7} {:>7}\n", "linear", "shape", "m", "bytes", "us", "cpu us",
             "GB/s", "GFLOP/s", "of read", "of peak", "roof");
  for (const Format* format : all_formats()) {
    if ((!options.format.empty() && options.format != format->name) || !backend.supports(*format)) continue;
    for (int64_t size : {2048, 4096}) {
      // Enough copies that none is in the last-level cache when its turn comes (105 MiB on the reference machine).
      const int64_t copies = std::clamp<int64_t>((int64_t{256} << 20) / format->total_bytes(size, size), 2, 64);
      std::vector<EncodedWeight> weights;
      weights.reserve(static_cast<size_t>(copies));
      weights.emplace_back(backend, *format, size, size);
      for (int64_t i = 1; i < copies; i++) weights.emplace_back(backend, weights[0]);
      for (int64_t m : {1, 16, 512}) {
        std::vector<float> x(static_cast<size_t>(m * size), 0.01f), y(static_cast<size_t>(m * size));
        Tensor xt = Tensor::of(x.data(), Dtype::kF32, {m, size}), yt = Tensor::of(y.data(), Dtype::kF32, {m, size});
        const int64_t used = m == 512 ? 1 : copies;
        const Times times = best_times(options.rounds, static_cast<double>(used), [&] {
          for (int64_t i = 0; i < used; i++) backend.linear({.out = yt, .x = xt, .weight = weights[static_cast<size_t>(i)].weight});
        });
        const auto bytes = static_cast<double>(format->total_bytes(size, size));
        const double flops = 2.0 * static_cast<double>(m * size * size);
        fmt::print("{:<12} {:>5}x{:<5} {:>4} {:>12.0f} {:>9.1f} {:>9.1f} {:>8.2f} {:>9.1f} {}\n", format->name, size, size, m, bytes,
                   times.wall_s * 1e6, times.cpu_s * 1e6, bytes / times.wall_s * 1e-9, flops / times.wall_s * 1e-9,
                   limits_text(limits, bytes, flops, math_type_of(*format), times.wall_s));
        std::fflush(stdout);
      }
    }
  }
}

int run_bench(const Options& options) {
  auto fail = [](const Error& error) {
    fmt::print(stderr, "bench_ops: {}\n", error.message);
    return exit_code(error.kind);
  };
  auto limits = machine_limits(options.threads);
  if (!limits.ok()) return fail(limits.error());
  auto backend = make_cpu_backend({.threads = options.threads, .isa = options.isa});
  if (!backend.ok()) return fail(backend.error());
  const std::string isa = options.isa == "auto" ? usable_cpu_isas().front() : options.isa;
  fmt::print("{}\nlimits: {}\n", (*backend)->description(), limits->summary(isa));
  if (options.op != "attention") bench_linear(**backend, options, limits->roofline(isa));
  if (options.op == "attention" || (options.op.empty() && options.format.empty()))
    bench_attention(**backend, options, limits->roofline(isa));
  return 0;
}

// "" or what is wrong.
std::string parse(int argc, char** argv, Options& options) {
  int i = 1;
  if (argc > 1 && argv[1][0] != '-') options.mode = argv[i++];
  const std::string& mode = options.mode;
  const bool perf = mode == "perf", device = !perf && !mode.empty();
  if (device && mode != "products" && mode != "experts" && mode != "prefill" && mode != "attention" && mode != "collectives")
    return "expected perf, products, experts, prefill, attention or collectives, found " + mode;
  if (perf) options.rounds = 5;
  if (mode == "products" || mode == "experts" || mode == "attention") options.rounds = 3;
  for (; i < argc; i++) {
    const std::string name = argv[i];
    if (perf && name == "--update") {
      options.update = true;
      continue;
    }
    std::string* text = name == "--isa" && !device                                                ? &options.isa
                        : name == "--format" && (mode.empty() || mode == "prefill")               ? &options.format
                        : name == "--op" && mode.empty()                                          ? &options.op
                        : name == "--filter" && (perf || mode == "products" || mode == "experts") ? &options.filter
                        : name == "--backend" && device                                           ? &options.backend
                        : name == "--baseline" && perf                                            ? &options.baseline
                                                                                                  : nullptr;
    int* number = name == "--rounds"                          ? &options.rounds
                  : name == "--threads" && mode.empty()       ? &options.threads
                  : name == "--gpus" && mode == "collectives" ? &options.gpus
                                                              : nullptr;
    if (!text && !number) return "unknown option " + name;
    if (++i == argc) return name + ": expected a value, found the end of the command line";
    if (text) *text = argv[i];
    if (number) *number = std::atoi(argv[i]);
  }
  if (options.rounds < 1 || options.rounds > 1000) return "--rounds: expected 1 to 1000";
  if (!options.op.empty() && options.op != "linear" && options.op != "attention") return "--op: expected linear or attention";
  if (options.threads < 0 || options.threads > 4096) return "--threads: expected 0 to 4096";
  if (options.gpus < 2 || options.gpus > 64) return "--gpus: expected 2 to 64";
  return "";
}

}  // namespace
}  // namespace dg::bench_ops

int main(int argc, char** argv) {
  using namespace dg::bench_ops;
  Options options;
  const std::string wrong = parse(argc, argv, options);
  if (!wrong.empty()) {
    fmt::print(stderr, "bench_ops: {}; usage: see the head of bench/ops/bench_ops.cpp\n", wrong);
    return 2;
  }
  return options.mode == "perf"          ? run_perf(options)
         : options.mode == "products"    ? run_products(options)
         : options.mode == "experts"     ? run_products(options)
         : options.mode == "prefill"     ? run_device(options)
         : options.mode == "attention"   ? run_device_attention(options)
         : options.mode == "collectives" ? run_collectives(options)
                                         : run_bench(options);
}
