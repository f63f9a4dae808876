// bench_ops device: one dense product and the experts of one layer in FP8 on an accelerator, in the shapes of DeepSeek-V3, for 512 to
// 32768 rows: TFLOP/s and percent of the measured FP8 peak. Wall time of several ops behind each other, best of the rounds.
#include <fmt/core.h>

#include <random>

#include "bench_ops.h"
#include "device/plugin.h"
#include "quant/formats.h"

namespace dg::bench_ops {
namespace {

constexpr int64_t kDim = 7168, kAttention = 16384, kInner = 2048, kTopK = 8;
constexpr int kExperts = 256, kDistinct = 16;  // matrices that lie in memory: far more than L2 holds
constexpr int64_t kRows[] = {512, 2048, 8192, 32768};

template <class Work>
double best_seconds(Backend& backend, int rounds, const Work& work) {
  constexpr int kOps = 3;
  work();  // chooses kernels, grows workspaces
  backend.synchronise();
  double best = 1e30;
  for (int r = 0; r < rounds; r++) {
    const double begin = now_s();
    for (int i = 0; i < kOps; i++) work();
    backend.synchronise();
    best = std::min(best, (now_s() - begin) / kOps);
  }
  return best;
}

void print_row(const char* what, int64_t rows, double flops, double bytes, double seconds, const Roofline& rates) {
  fmt::print("{:<8} {:>6} {:>10.1f} us {:>8.1f} TFLOP/s {:>5.1f} % of FP8 {:>5.1f} % of bf16 {:>6.0f} GB/s of weights\n", what, rows,
             seconds * 1e6, flops / seconds * 1e-12, 100 * flops / seconds / rates.fp8, 100 * flops / seconds / rates.bf16,
             bytes / seconds * 1e-9);
  std::fflush(stdout);
}

}  // namespace

int run_device(const Options& options) {
  auto loaded = load_backend("cuda", {});
  if (!loaded.ok()) {
    fmt::print(stderr, "bench_ops: {}\n", loaded.error().message);
    return exit_code(loaded.error().kind);
  }
  Backend& backend = **loaded;
  const Roofline rates = backend.measure().roofline("cuda");
  fmt::print("{}\nread {:.0f} GB/s, bf16 {:.0f} TFLOP/s, FP8 {:.0f} TFLOP/s (8192 cubed)\n", backend.description(),
             rates.bytes_per_s * 1e-9, rates.bf16 * 1e-12, rates.fp8 * 1e-12);
  const Format& format = *find_format(options.format.empty() ? "fp8_block" : options.format);
  const int64_t most = kRows[std::size(kRows) - 1];
  const auto memory = [&](int64_t bytes) { return allocate_or_exit(backend, static_cast<size_t>(bytes), "bench_ops"); };

  std::mt19937 random(3);
  std::vector<float> values(static_cast<size_t>(most * kDim));
  for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-3f;
  const auto x = memory(most * kAttention * 4), out = memory(most * kDim * 4);
  for (int64_t at = 0; at < most * kAttention; at += most * kDim)
    backend.write(static_cast<float*>(x->data()) + at, values.data(),
                  static_cast<size_t>(std::min(most * kDim, most * kAttention - at)) * sizeof(float));

  {
    const EncodedWeight weight(backend, format, kDim, kAttention);
    for (int64_t rows : kRows) {
      const double seconds = best_seconds(backend, options.rounds, [&] {
        backend.linear({.out = Tensor::of(out->data(), Dtype::kF32, {rows, kDim}),
                        .x = Tensor::of(x->data(), Dtype::kF32, {rows, kAttention}),
                        .weight = weight.weight});
      });
      print_row("dense", rows, 2.0 * static_cast<double>(rows * kDim * kAttention), static_cast<double>(weight.weight.bytes()), seconds,
                rates);
    }
  }

  std::vector<EncodedWeight> weights;
  weights.reserve(3 * kDistinct);
  std::vector<Expert> experts;
  for (int e = 0; e < kDistinct; e++) {
    weights.emplace_back(backend, format, kInner, kDim), weights.emplace_back(backend, format, kInner, kDim);
    weights.emplace_back(backend, format, kDim, kInner);
  }
  double bytes = 0;
  for (int e = 0; e < kExperts; e++) {
    const EncodedWeight* own = &weights[static_cast<size_t>(e % kDistinct * 3)];
    experts.push_back({.gate = own[0].weight, .up = own[1].weight, .down = own[2].weight});
    bytes += static_cast<double>(3 * own[0].weight.bytes());
  }
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < most; t++)
    for (int64_t k = 0; k < kTopK; k++) {
      int32_t id;
      do id = static_cast<int32_t>(random() % kExperts);
      while (std::find(ids.end() - k, ids.end(), id) != ids.end());
      ids.push_back(id);
    }
  const std::vector<float> shares(ids.size(), 0.125f);
  const auto id_memory = memory(static_cast<int64_t>(ids.size()) * 4), share_memory = memory(static_cast<int64_t>(ids.size()) * 4);
  backend.write(id_memory->data(), ids.data(), ids.size() * 4);
  backend.write(share_memory->data(), shares.data(), shares.size() * 4);
  for (int64_t rows : kRows) {
    const double seconds = best_seconds(backend, options.rounds, [&] {
      backend.moe_experts({.out = Tensor::of(out->data(), Dtype::kF32, {rows, kDim}),
                           .x = Tensor::of(x->data(), Dtype::kF32, {rows, kDim}),
                           .ids = Tensor::of(id_memory->data(), Dtype::kI32, {rows, kTopK}),
                           .weights = Tensor::of(share_memory->data(), Dtype::kF32, {rows, kTopK}),
                           .experts = experts,
                           .first = 0,
                           .scratch = nullptr});
    });
    print_row("experts", rows, 6.0 * static_cast<double>(rows * kTopK * kDim * kInner), bytes, seconds, rates);
  }
  return 0;
}

}  // namespace dg::bench_ops
