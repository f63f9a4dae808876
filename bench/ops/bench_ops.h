// What the two halves of bench_ops share: options, weights as the backend wants them, times.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "device/backend.h"
#include "device/machine.h"
#include "quant/formats.h"

namespace dg::bench_ops {

struct Options {
  std::string isa = "auto", format, op, filter, baseline = "bench/ops/baseline.json";
  int threads = 0, rounds = 7;
  bool perf = false, update = false, device = false;
};

// Ends the process with the message when there is no memory: a benchmark cannot go on.
std::unique_ptr<DeviceMemory> allocate_or_exit(Backend& backend, size_t bytes, const char* purpose);

// A random weight of `out` x `in`: 128 random rows, repeated (encoding is slow, speed does not depend on values), repacked when
// `product` and the backend wants it.
struct EncodedWeight {
  EncodedWeight(Backend& backend, const Format& format, int64_t out, int64_t in, bool product = true);
  // Another copy at another address, so that a loop over copies reads memory and not caches.
  EncodedWeight(Backend& backend, const EncodedWeight& other);
  std::unique_ptr<DeviceMemory> storage;
  Weight weight;
};

double process_cpu_s();  // CPU time of all threads: what is left to compare when others use the machine

double now_s();

struct Times {
  double wall_s = 1e30, cpu_s = 1e30;
};

// Best times of `rounds` calls after one to warm up, divided by `parts`.
template <class F>
Times best_times(int rounds, double parts, F f) {
  f();
  Times best;
  for (int i = 0; i < rounds; i++) {
    double begin = now_s(), cpu_begin = process_cpu_s();
    f();
    best.cpu_s = std::min(best.cpu_s, (process_cpu_s() - cpu_begin) / parts);
    best.wall_s = std::min(best.wall_s, (now_s() - begin) / parts);
  }
  return best;
}

// The percentages: of read bandwidth, of the multipliers of the type used, and the larger one.
std::string limits_text(const Roofline& limits, double bytes, double flops, MathType type, double seconds);

void bench_attention(Backend& backend, const Options& options, const Roofline& limits);

// Every op x format x instruction set at a few serving shapes, as a ratio to loops run in between. Exit code: 1 when one is more than
// 15 % slower than the baseline says.
int run_perf(const Options& options);

// One dense product and the experts of a layer on an accelerator, by the number of rows.
int run_device(const Options& options);

}  // namespace dg::bench_ops
