// Attention at serving shapes: prefill of 512 tokens, decode at 512 and 8192, one and sixteen sequences, cache types.
#include <fmt/core.h>

#include <algorithm>
#include <vector>

#include "bench_ops.h"
#include "device/cache_format.h"

namespace dg::bench_ops {
namespace {

// Attention over caches that together exceed the last-level cache: like the layers of a model, each call of a round reads
// another one.
class AttentionBench {
 public:
  AttentionBench(Backend& backend, const Options& options, const Roofline& limits)
      : backend_(backend),
        options_(options),
        limits_(limits),
        memory_(allocate_or_exit(backend, kCacheBytes, "caches")),
        scratch_(allocate_or_exit(backend, size_t{64} << 20, "scratch")) {
    auto* bytes = static_cast<uint8_t*>(memory_->data());
    for (size_t i = 0; i < kCacheBytes; i++) bytes[i] = static_cast<uint8_t>(0x2c + i * 7 % 13);  // small numbers in every dtype
    fmt::print("\n{:<48} {:>10} {:>9} {:>9} {:>8} {:>9} {:>7} {:>7} {:>7}\n", "attention", "bytes", "us", "cpu us", "GB/s", "GFLOP/s",
               "of read", "of peak", "roof");
  }

  void gqa(Dtype dtype, int heads, int kv_heads, int dim, int sequences, int rows, int kv_len) {
    Shape shape(dtype, sequences, rows, kv_len);
    const int64_t width = kv_heads * dim;
    auto q = zeros(sequences * rows * heads * dim), out = q;
    const int64_t row_bytes = cache_row_bytes(dtype, width), layer = 2 * shape.tokens() * row_bytes;
    const int64_t layers = layers_of(rows, layer);
    const Times times = best_times(options_.rounds, static_cast<double>(layers), [&] {
      for (int64_t i = 0; i < layers; i++) {
        Arena arena(scratch_->data(), scratch_->bytes());
        backend_.attention({.out = Tensor::of(out.data(), Dtype::kF32, {sequences * rows, heads, dim}),
                            .q = Tensor::of(q.data(), Dtype::kF32, {sequences * rows, heads, dim}),
                            .k_cache = shape.cache(memory_->data(), i * layer, width),
                            .v_cache = shape.cache(memory_->data(), i * layer + layer / 2, width),
                            .sequences = shape.slices,
                            .kv_heads = kv_heads,
                            .scale = 0.09f,
                            .scratch = &arena});
      }
    });
    report(fmt::format("gqa {}/{} x {}, {} x {} rows, {} kv, {}", heads, kv_heads, dim, sequences, rows, kv_len, dtype_name(dtype)),
           static_cast<double>(layer), 4.0 * shape.pairs() * heads * dim, times);
  }

  void mla(Dtype dtype, const Format& format, int heads, int sequences, int rows, int kv_len) {
    const int nope = 128, rope = 64, v_dim = 128, lora = 512;
    Shape shape(dtype, sequences, rows, kv_len);
    const EncodedWeight kv_b(backend_, format, heads * (nope + v_dim), lora, false);
    auto q = zeros(sequences * rows * heads * (nope + rope)), out = zeros(sequences * rows * heads * v_dim);
    const int64_t layer = shape.tokens() * cache_row_bytes(dtype, lora + rope);
    const int64_t layers = layers_of(rows, layer);
    const Times times = best_times(options_.rounds, static_cast<double>(layers), [&] {
      for (int64_t i = 0; i < layers; i++) {
        Arena arena(scratch_->data(), scratch_->bytes());
        backend_.mla_attention({.out = Tensor::of(out.data(), Dtype::kF32, {sequences * rows, heads, v_dim}),
                                .q = Tensor::of(q.data(), Dtype::kF32, {sequences * rows, heads, nope + rope}),
                                .cache = shape.cache(memory_->data(), i * layer, lora + rope),
                                .kv_b = kv_b.weight,
                                .sequences = shape.slices,
                                .nope = nope,
                                .rope = rope,
                                .v_dim = v_dim,
                                .kv_lora = lora,
                                .scale = 0.07f,
                                .scratch = &arena});
      }
    });
    const double project = 2.0 * heads * (nope + v_dim) * lora;
    const double flops = rows == 1 ? 2.0 * heads * shape.pairs() * (2 * lora + rope) + project * sequences
                                   : project * static_cast<double>(shape.tokens()) + 2.0 * heads * shape.pairs() * (nope + rope + v_dim);
    report(fmt::format("mla {} heads, {} x {} rows, {} kv, {}, {}", heads, sequences, rows, kv_len, dtype_name(dtype), format.name),
           static_cast<double>(layer + kv_b.weight.bytes()), flops, times);
  }

 private:
  static constexpr size_t kCacheBytes = size_t{320} << 20;
  // Prefill attends to rows that have just been written; decode comes to each layer's cache anew.
  static int64_t layers_of(int rows, int64_t layer_bytes) {
    return rows > 1 ? 4 : std::max<int64_t>(1, static_cast<int64_t>(kCacheBytes) / layer_bytes);
  }
  static constexpr int kBlock = 16;

  struct Shape {
    Shape(Dtype dtype, int sequences, int rows, int kv_len) : dtype(dtype), rows(rows), kv_len(kv_len) {
      const int per_sequence = kv_len / kBlock, all = per_sequence * sequences;
      for (int i = 0; i < all; i++) blocks.push_back(static_cast<int32_t>(i * int64_t{7} % all));  // all is no multiple of 7
      for (int s = 0; s < sequences; s++) slices.push_back({s * rows, rows, kv_len, blocks.data() + s * per_sequence, rows == 1});
    }
    int64_t tokens() const { return static_cast<int64_t>(blocks.size()) * kBlock; }
    double pairs() const { return static_cast<double>(slices.size()) * rows * (kv_len - 0.5 * (rows - 1)); }
    PagedCache cache(void* data, int64_t offset, int64_t width) const {
      const auto element = static_cast<int64_t>(dtype_bytes(dtype));
      Tensor t = Tensor::of(static_cast<std::byte*>(data) + offset, dtype, {static_cast<int64_t>(blocks.size()), kBlock, width});
      t.stride[1] = cache_row_bytes(dtype, width) / element;
      t.stride[0] = kBlock * t.stride[1];
      return {t};
    }
    Dtype dtype;
    int rows, kv_len;
    std::vector<int32_t> blocks;
    std::vector<SequenceSlice> slices;
  };

  static std::vector<float> zeros(int64_t n) { return std::vector<float>(static_cast<size_t>(n), 0.1f); }
  void report(const std::string& name, double bytes, double flops, const Times& times) const {
    fmt::print("{:<48} {:>10.0f} {:>9.1f} {:>9.1f} {:>8.2f} {:>9.1f} {}\n", name, bytes, times.wall_s * 1e6, times.cpu_s * 1e6,
               bytes / times.wall_s * 1e-9, flops / times.wall_s * 1e-9, limits_text(limits_, bytes, flops, MathType::kBf16, times.wall_s));
    std::fflush(stdout);
  }

  Backend& backend_;
  const Options& options_;
  const Roofline& limits_;
  std::unique_ptr<DeviceMemory> memory_, scratch_;
};

}  // namespace

// Shapes: Qwen2-1.5B, Qwen3-1.7B, V2-Lite.
void bench_attention(Backend& backend, const Options& options, const Roofline& limits) {
  AttentionBench bench(backend, options, limits);
  const Format &bf16 = *find_format("bf16"), &fp8 = *find_format("fp8_block");
  bench.gqa(Dtype::kBf16, 12, 2, 128, 1, 512, 512);
  bench.mla(Dtype::kBf16, bf16, 16, 1, 512, 512);
  bench.mla(Dtype::kBf16, fp8, 16, 1, 512, 512);
  for (Dtype dtype : {Dtype::kBf16, Dtype::kF8E4m3, Dtype::kI8}) {
    for (int sequences : {1, 16}) {
      bench.gqa(dtype, 12, 2, 128, sequences, 1, 8192);
      bench.mla(dtype, bf16, 16, sequences, 1, 8192);
    }
    bench.gqa(dtype, 16, 8, 128, 1, 1, 8192);
    bench.gqa(dtype, 12, 2, 128, 1, 1, 512);
    bench.mla(dtype, bf16, 16, 1, 1, 512);
  }
  bench.mla(Dtype::kBf16, fp8, 16, 1, 1, 512);
}

}  // namespace dg::bench_ops
