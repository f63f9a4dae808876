// `dougong bench`: the choice between its two, and `bench machine`, the limits of this machine.
#include <fmt/core.h>

#include "app/commands.h"
#include "app/model_options.h"
#include "app/terminal.h"
#include "backends/cpu/machine_measure.h"
#include "base/json.h"

namespace dg {
namespace {

// "26.4  (25.1 - 27.0)" in units of `unit`.
std::string measured_text(const Measured& m, double unit) {
  auto text = [&](double value) {
    value /= unit;
    return value < 10 ? fmt::format("{:.2f}", value) : value < 100 ? fmt::format("{:.1f}", value) : fmt::format("{:.0f}", value);
  };
  return fmt::format("{:>6}  {:<16}", text(m.median), fmt::format("({} - {})", text(m.low), text(m.high)));
}

std::string machine_table(const MachineLimits& limits) {
  std::string out = fmt::format("{}; {}; {} thread{}\nmedian (lowest - highest) of several runs\n\n", limits.cpu, limits.topology,
                                limits.threads, limits.threads == 1 ? "" : "s");
  out += fmt::format("{:<34} {:>6}\n", "memory", "GB/s");
  for (const ReadBandwidth& r : limits.read)
    out += fmt::format("{:<34} {}\n", fmt::format("read, {} thread{}", r.threads, r.threads == 1 ? "" : "s"),
                       measured_text(r.bytes_per_s, 1e9));
  out += fmt::format("{:<34} {}\n", fmt::format("copy, {} thread{}", limits.threads, limits.threads == 1 ? "" : "s"),
                     measured_text(limits.copy_bytes_per_s, 1e9));
  for (const NodeBandwidth& n : limits.nodes)
    out += fmt::format("{:<34} {}\n", fmt::format("read, node {} reads node {} ({} threads)", n.cpu_node, n.memory_node, n.threads),
                       measured_text(n.bytes_per_s, 1e9));
  out += fmt::format("\n{:<12} {:<5} {:<10} {:<33} {:>6}  {:<16}  {}\n", "family", "type", "operands", "instruction", "TOP/s", "one thread",
                     limits.threads > 1 ? fmt::format("{} threads", limits.threads) : "");
  for (const InstructionPeak& p : limits.peaks)
    out += fmt::format("{:<12} {:<5} {:<10} {:<33} {} {}\n", p.isa, math_type_name(p.type), p.from_l2 ? "L2" : "registers", p.instruction,
                       measured_text(p.one, 1e12), limits.threads > 1 ? measured_text(p.all, 1e12) : "");
  return out;
}

// Widest spread of the figures that others are divided by.
double worst_spread(const MachineLimits& limits) {
  double worst = limits.read.empty() ? 0 : limits.read.back().bytes_per_s.spread();
  for (const InstructionPeak& p : limits.peaks) worst = std::max(worst, p.all.spread());
  return worst;
}

}  // namespace

Result<int> run_bench_machine(const Options& options) {
  InterruptScope interrupt(2);
  const auto threads = static_cast<int>(options.integer("threads"));
  MachineLimits limits;
  if (options.flag("cached")) {
    DG_ASSIGN(limits, machine_limits(threads));
  } else {
    DG_ASSIGN(limits, measure_machine({.threads = threads, .cancel = &interrupt.requested()}, Topology::load()));
    Result<void> stored = store_machine_limits(machine_cache_path(), limits);
    if (!stored.ok()) print_error(fmt::format("dougong bench: the result is not kept: {}\n", stored.error().message));
  }
  if (options.flag("json")) {
    print_output(json_line(machine_json(limits)));
    return 0;
  }
  print_output(machine_table(limits));
  if (worst_spread(limits) > 0.3)
    print_output(
        fmt::format("\nFigures vary by {:.0f} %: the machine was busy; repeat this when it is idle.\n", 100 * worst_spread(limits)));
  return 0;
}

Result<int> run_bench(const Options& options) {
  const std::string& what = options.arguments()[0];
  if (what == "machine") return run_bench_machine(options);
#ifdef DG_HAVE_SERVER
  if (what == "serve") return run_bench_serve(options);
  return input_error(fmt::format("expected `bench machine` or `bench serve`, found {}", in_quotes(what)));
#else
  return input_error(fmt::format("expected `bench machine`, found {}; this build has no server", in_quotes(what)));
#endif
}

}  // namespace dg
