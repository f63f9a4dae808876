// bench_ops: products with weights (decode and small batches) and attention on the CPU backend, against the read
// bandwidth measured in the same run. Every row is the best of several rounds; a machine shared with others lowers it.
//
//   bench_ops [--isa NAME] [--threads N] [--format NAME] [--rounds N]
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <random>
#include <string>
#include <vector>

#include "backends/cpu/cpu.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "quant/formats.h"

namespace {

using namespace dg;

struct Options {
  std::string isa = "auto", format;
  int threads = 0, rounds = 7;
};

struct Times {
  double wall_s = 1e30, cpu_s = 1e30;  // CPU time of all threads: what is left to compare when others use the machine
};

double cpu_now_s() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Best times of `rounds` calls after one to warm up, divided by `parts`.
template <class F>
Times best_times(int rounds, double parts, F f) {
  f();
  Times best;
  for (int i = 0; i < rounds; i++) {
    double begin = now_s(), cpu_begin = cpu_now_s();
    f();
    best.cpu_s = std::min(best.cpu_s, (cpu_now_s() - cpu_begin) / parts);
    best.wall_s = std::min(best.wall_s, (now_s() - begin) / parts);
  }
  return best;
}

// Sums 1 GiB with plain loads: what the memory gives to these threads.
double read_bandwidth(ThreadPool& pool, int rounds) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  auto memory = HugeMemory::allocate(kBytes, "the bandwidth measurement");
  if (!memory.ok()) {
    fmt::print(stderr, "{}\n", memory.error().message);
    std::exit(exit_code(memory.error().kind));
  }
  auto* words = reinterpret_cast<uint64_t*>(memory->data());
  const int64_t count = kBytes / 8, piece = count / 256;
  pool.parallel_for(count, piece, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) words[i] = static_cast<uint64_t>(i);
  });
  std::vector<uint64_t> sums(static_cast<size_t>(pool.threads()) * 8);
  const Times times = best_times(rounds, 1, [&] {
    pool.parallel_for(count, piece, [&](int64_t begin, int64_t end, int worker) {
      typedef uint64_t lanes __attribute__((vector_size(64)));
      lanes sum[4] = {};
      for (int64_t i = begin; i + 32 <= end; i += 32)
        for (int k = 0; k < 4; k++) sum[k] += *reinterpret_cast<const lanes*>(words + i + k * 8);
      lanes total = sum[0] + sum[1] + sum[2] + sum[3];
      for (int k = 0; k < 8; k++) sums[static_cast<size_t>(worker) * 8 + static_cast<size_t>(k)] += total[k];
    });
  });
  uint64_t check = 0;
  for (uint64_t s : sums) check += s;
  if (check == 1) fmt::print("\n");  // keeps the loads
  return kBytes / times.wall_s;
}

struct EncodedWeight {
  EncodedWeight(Backend& backend, const Format& format, int64_t out, int64_t in) {
    auto memory = backend.allocate(static_cast<size_t>(format.total_bytes(out, in) + 64), "a weight");
    if (!memory.ok()) {
      fmt::print(stderr, "{}\n", memory.error().message);
      std::exit(exit_code(memory.error().kind));
    }
    storage = std::move(memory).value();
    auto* data = static_cast<std::byte*>(storage->data());
    std::byte* scales = data + (format.data_bytes(out, in) + 63) / 64 * 64;
    const int64_t rows = std::min<int64_t>(out, 128);  // 128 random rows, repeated: encoding is slow, reading does not care
    std::mt19937 random(7);
    std::vector<float> source(static_cast<size_t>(rows * in));
    for (float& v : source) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-4f;
    format.encode(source.data(), rows, in, data, scales);
    for (int64_t r = rows; r < out; r += rows) {
      const int64_t n = std::min(rows, out - r);
      std::memcpy(data + r * format.row_bytes(in), data, static_cast<size_t>(n * format.row_bytes(in)));
      const int64_t scale_row = format.scale_bytes(rows, in) / format.scale_row_count(rows);
      if (scale_row)
        std::memcpy(scales + r / format.scale_rows * scale_row, scales, static_cast<size_t>(format.scale_row_count(n) * scale_row));
    }
    weight = {.format = &format, .data = data, .scales = scales, .out = out, .in = in};
  }
  std::unique_ptr<DeviceMemory> storage;
  Weight weight;
};

void bench_linear(Backend& backend, const Options& options, double bandwidth) {
  fmt::print("\n{:<10} {:>11} {:>4} {:>12} {:>9} {:>9} {:>8} {:>9} {:>8}\n", "linear", "shape", "m", "bytes", "us", "cpu us", "GB/s",
             "GFLOP/s", "of read");
  for (const Format* format : all_formats()) {
    if (!options.format.empty() && options.format != format->name) continue;
    for (int64_t size : {2048, 4096}) {
      // Enough copies that none is in the last-level cache when its turn comes (105 MiB on the reference machine).
      const int64_t copies = std::clamp<int64_t>((int64_t{256} << 20) / format->total_bytes(size, size), 2, 64);
      std::vector<EncodedWeight> weights;
      for (int64_t i = 0; i < copies; i++) weights.emplace_back(backend, *format, size, size);
      for (int64_t m : {1, 4, 64}) {
        std::vector<float> x(static_cast<size_t>(m * size), 0.01f), y(static_cast<size_t>(m * size));
        Tensor xt = Tensor::of(x.data(), Dtype::kF32, {m, size}), yt = Tensor::of(y.data(), Dtype::kF32, {m, size});
        const int64_t used = m == 64 ? 2 : copies;
        const Times times = best_times(options.rounds, static_cast<double>(used), [&] {
          for (int64_t i = 0; i < used; i++) backend.linear({.out = yt, .x = xt, .weight = weights[static_cast<size_t>(i)].weight});
        });
        const auto bytes = static_cast<double>(format->total_bytes(size, size));
        const double flops = 2.0 * static_cast<double>(m * size * size);
        fmt::print("{:<10} {:>5}x{:<5} {:>4} {:>12.0f} {:>9.1f} {:>9.1f} {:>8.2f} {:>9.1f} {:>7.0f}%\n", format->name, size, size, m, bytes,
                   times.wall_s * 1e6, times.cpu_s * 1e6, bytes / times.wall_s * 1e-9, flops / times.wall_s * 1e-9,
                   100 * bytes / times.wall_s / bandwidth);
        std::fflush(stdout);
      }
    }
  }
}

void bench_attention(Backend& backend, const Options& options, double bandwidth) {
  fmt::print("\n{:<38} {:>12} {:>9} {:>9} {:>8} {:>9} {:>8}\n", "attention (bf16 cache)", "bytes", "us", "cpu us", "GB/s", "GFLOP/s",
             "of read");
  std::vector<int32_t> blocks(8192 / 16);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = static_cast<int32_t>((i * 7) % blocks.size());
  auto report = [&](const std::string& name, double bytes, double flops, const Times& times) {
    fmt::print("{:<38} {:>12.0f} {:>9.1f} {:>9.1f} {:>8.2f} {:>9.1f} {:>7.0f}%\n", name, bytes, times.wall_s * 1e6, times.cpu_s * 1e6,
               bytes / times.wall_s * 1e-9, flops / times.wall_s * 1e-9, 100 * bytes / times.wall_s / bandwidth);
  };
  auto memory = backend.allocate(size_t{8192} * 2 * 1024 * 2 * 2, "a cache");
  auto scratch = backend.allocate(size_t{64} << 20, "scratch");
  if (!memory.ok() || !scratch.ok()) return;
  auto* data = static_cast<uint16_t*>((*memory)->data());
  for (size_t i = 0; i < size_t{8192} * 2048; i++) data[i] = static_cast<uint16_t>(0x3c00 + i % 251);
  Arena arena((*scratch)->data(), (*scratch)->bytes());
  struct Gqa {
    int heads, kv_heads, dim, rows, kv_len;
  };
  for (Gqa c : {Gqa{12, 2, 128, 1, 8192}, Gqa{16, 8, 128, 1, 8192}, Gqa{12, 2, 128, 512, 512}}) {
    const int64_t width = c.kv_heads * c.dim;
    PagedCache k{Tensor::of(data, Dtype::kBf16, {512, 16, width})}, v{Tensor::of(data + 8192 * width, Dtype::kBf16, {512, 16, width})};
    std::vector<float> q(static_cast<size_t>(c.rows * c.heads * c.dim), 0.1f), out(q.size());
    const SequenceSlice slice{0, c.rows, c.kv_len, blocks.data(), c.rows == 1};
    const Times times = best_times(options.rounds, 1, [&] {
      backend.attention({.out = Tensor::of(out.data(), Dtype::kF32, {c.rows, c.heads, c.dim}),
                         .q = Tensor::of(q.data(), Dtype::kF32, {c.rows, c.heads, c.dim}),
                         .k_cache = k,
                         .v_cache = v,
                         .sequences = {&slice, 1},
                         .kv_heads = c.kv_heads,
                         .scale = 0.09f,
                         .scratch = &arena});
    });
    const double pairs = c.rows == 1 ? c.kv_len : 0.5 * c.rows * (c.rows + 1);
    report(fmt::format("gqa {}/{} heads of {}, {} rows, {} kv", c.heads, c.kv_heads, c.dim, c.rows, c.kv_len),
           4.0 * static_cast<double>(c.kv_len * width), 4.0 * pairs * c.heads * c.dim, times);
  }
  const int heads = 16, nope = 128, rope = 64, v_dim = 128, lora = 512;  // V2-Lite
  EncodedWeight kv_b(backend, *find_format("bf16"), heads * (nope + v_dim), lora);
  PagedCache cache{Tensor::of(data, Dtype::kBf16, {512, 16, lora + rope})};
  for (auto [rows, kv_len] : {std::pair<int, int>{1, 8192}, {512, 512}}) {
    std::vector<float> q(static_cast<size_t>(rows * heads * (nope + rope)), 0.1f), out(static_cast<size_t>(rows * heads * v_dim));
    const SequenceSlice slice{0, rows, kv_len, blocks.data(), rows == 1};
    const Times times = best_times(options.rounds, 1, [&] {
      backend.mla_attention({.out = Tensor::of(out.data(), Dtype::kF32, {rows, heads, v_dim}),
                             .q = Tensor::of(q.data(), Dtype::kF32, {rows, heads, nope + rope}),
                             .cache = cache,
                             .kv_b = kv_b.weight,
                             .sequences = {&slice, 1},
                             .nope = nope,
                             .rope = rope,
                             .v_dim = v_dim,
                             .kv_lora = lora,
                             .scale = 0.07f,
                             .scratch = &arena});
    });
    const double flops = rows == 1 ? 2.0 * heads * kv_len * (2 * lora + rope) + 2.0 * heads * (nope + v_dim) * lora
                                   : 2.0 * heads * kv_len * (nope + v_dim) * lora + 1.0 * heads * rows * (rows + 1) * (nope + rope + v_dim);
    report(fmt::format("mla {} heads, {} rows, {} kv", heads, rows, kv_len),
           2.0 * kv_len * (lora + rope) + static_cast<double>(kv_b.weight.bytes()), flops, times);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i++) {
    std::string name = argv[i];
    const char* value = i + 1 < argc ? argv[++i] : nullptr;
    if (!value || (name != "--isa" && name != "--format" && name != "--threads" && name != "--rounds")) {
      fmt::print(stderr, "usage: bench_ops [--isa NAME] [--threads N] [--format NAME] [--rounds N]\n");
      return 2;
    }
    if (name == "--isa") options.isa = value;
    if (name == "--format") options.format = value;
    if (name == "--threads") options.threads = std::atoi(value);
    if (name == "--rounds") options.rounds = std::clamp(std::atoi(value), 1, 1000);
  }
  auto backend = make_cpu_backend({.threads = options.threads, .isa = options.isa});
  if (!backend.ok()) {
    fmt::print(stderr, "{}\n", backend.error().message);
    return exit_code(backend.error().kind);
  }
  double bandwidth;
  {
    ThreadPool pool(options.threads, Topology::load(), true);
    bandwidth = read_bandwidth(pool, options.rounds);
  }
  fmt::print("{}; read bandwidth {:.1f} GB/s\n", (*backend)->description(), bandwidth * 1e-9);
  bench_linear(**backend, options, bandwidth);
  if (options.format.empty()) bench_attention(**backend, options, bandwidth);
  return 0;
}
