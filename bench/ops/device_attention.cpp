// bench_ops attention --backend NAME: attention by itself on a backend that is a plug-in, one JSON line for each shape with its time, its
// bytes and flops and how much of the device's measured rates that is. Decode is issued once and replayed, as the engine does; a
// replay goes over enough layers that their caches are not all in the device's own cache. Prefill is one sequence, op by op.
#include <fmt/core.h>

#include <algorithm>
#include <random>
#include <vector>

#include "backends/cpu/cpu.h"
#include "base/json.h"
#include "bench_ops.h"
#include "device/cache_format.h"
#include "device/plugin.h"

namespace dg::bench_ops {
namespace {

constexpr int64_t kBlock = 16, kMostBytes = int64_t{6} << 30, kManyBytes = int64_t{192} << 20;
constexpr int kMostLayers = 64;

struct Shape {
  bool latent;
  int heads, kv_heads;
  Dtype dtype;
  int sequences, rows, kv_len;  // rows of each sequence; 1: decode
};

class DeviceAttention {
 public:
  DeviceAttention(Backend& backend, int rounds)
      : backend_(backend),
        rounds_(rounds),
        rates_(backend.measure().roofline("cuda")),
        cache_(allocate_or_exit(backend, static_cast<size_t>(kMostBytes), "caches")),
        scratch_(allocate_or_exit(backend, size_t{2} << 30, "scratch")) {
    // Numbers between 0.1 and 2, of both signs, in bf16 and in fp8.
    std::vector<uint8_t> piece(size_t{64} << 20);
    std::mt19937 random(3);
    for (size_t i = 0; i < piece.size(); i += 4) {
      const uint32_t bits = static_cast<uint32_t>(random());
      const uint8_t bytes[4] = {static_cast<uint8_t>(bits & 0xbf), static_cast<uint8_t>((bits >> 8 & 0x81) | 0x3e),
                                static_cast<uint8_t>(bits >> 16 & 0xbf), static_cast<uint8_t>((bits >> 24 & 0x81) | 0x3e)};
      std::copy(bytes, bytes + 4, piece.begin() + static_cast<ptrdiff_t>(i));
    }
    for (int64_t at = 0; at < kMostBytes; at += static_cast<int64_t>(piece.size()))
      backend.write(static_cast<std::byte*>(cache_->data()) + at, piece.data(), piece.size());
    kv_b_ = allocate_or_exit(backend, kMostHeads * (kNope + kValue) * kLora * 2, "kv_b");
    backend.write(kv_b_->data(), piece.data(), kv_b_->bytes());
  }

  void run(const Shape& s) {
    const int64_t width = s.latent ? kLora + kRope : s.kv_heads * 128, row_bytes = cache_row_bytes(s.dtype, width);
    const int64_t per_sequence = (s.kv_len + kBlock - 1) / kBlock, blocks = per_sequence * s.sequences;
    const int64_t part = blocks * kBlock * row_bytes, layer = s.latent ? part : 2 * part;
    if (layer > kMostBytes) return;
    const bool decode = s.rows == 1;
    const int64_t layers = decode ? std::clamp<int64_t>(kManyBytes / layer, 1, std::min<int64_t>(kMostLayers, kMostBytes / layer)) : 1;
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    for (int64_t i = 0; i < blocks; i++) ids[static_cast<size_t>(i)] = static_cast<int32_t>(i);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(5));
    std::vector<SequenceSlice> slices;
    for (int i = 0; i < s.sequences; i++) slices.push_back({i * s.rows, s.rows, s.kv_len, ids.data() + i * per_sequence, decode});

    Arena arena(scratch_->data(), scratch_->bytes());
    const int64_t rows = int64_t{s.sequences} * s.rows;
    Tensor q = arena.alloc({rows, s.heads, s.latent ? kNope + kRope : 128}), out = arena.alloc({rows, s.heads, 128});
    std::vector<float> values(static_cast<size_t>(q.elements()));
    std::mt19937 random(9);
    for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-3f;
    backend_.write(q.data, values.data(), values.size() * sizeof(float));
    const auto cache = [&](int64_t offset) {
      Tensor t = Tensor::of(static_cast<std::byte*>(cache_->data()) + offset, s.dtype, {blocks, kBlock, width});
      t.stride[1] = row_bytes / static_cast<int64_t>(dtype_bytes(s.dtype));
      t.stride[0] = kBlock * t.stride[1];
      return PagedCache{t};
    };
    const Weight kv_b{.format = find_format("bf16"),
                      .data = static_cast<const std::byte*>(kv_b_->data()),
                      .scales = nullptr,
                      .out = s.heads * (kNope + kValue),
                      .in = kLora};
    const auto issue = [&] {
      for (int64_t i = 0; i < layers; i++) {
        Arena::Scope scope(arena);
        if (s.latent)
          backend_.mla_attention({.out = out,
                                  .q = q,
                                  .cache = cache(i * layer),
                                  .kv_b = kv_b,
                                  .sequences = slices,
                                  .nope = kNope,
                                  .rope = kRope,
                                  .v_dim = kValue,
                                  .kv_lora = kLora,
                                  .scale = 0.07f,
                                  .scratch = &arena});
        else
          backend_.attention({.out = out,
                              .q = q,
                              .k_cache = cache(i * layer),
                              .v_cache = cache(i * layer + part),
                              .sequences = slices,
                              .kv_heads = s.kv_heads,
                              .scale = 0.09f,
                              .scratch = &arena});
      }
    };
    const uint64_t key = ++keys_;
    const auto once = [&] {
      if (decode && backend_.replays()) {
        backend_.begin_step(slices, kBlock, s.kv_len);
        backend_.replay(key, issue);
      } else {
        issue();
      }
      backend_.synchronise();
    };
    for (int i = 0; i < 3; i++) once();  // the first makes room, the second is captured
    double best = 1e9;
    for (int i = 0; i < rounds_; i++) {
      const double begin = now_s();
      once();
      best = std::min(best, (now_s() - begin) / static_cast<double>(layers));
    }

    const double pairs = static_cast<double>(s.sequences) * s.rows * (s.kv_len - 0.5 * (s.rows - 1)), heads = s.heads;
    const double project = 2.0 * heads * (kNope + kValue) * kLora, sequences = s.sequences;
    double flops = 4 * pairs * heads * 128, bytes = sequences * s.kv_len * static_cast<double>(s.latent ? row_bytes : 2 * row_bytes);
    if (s.latent) {
      flops = decode ? 2 * heads * pairs * (2 * kLora + kRope) + project * sequences
                     : project * sequences * s.kv_len + 2 * heads * pairs * (kNope + kRope + kValue);
      bytes += static_cast<double>(kv_b.bytes());
    }
    bytes += static_cast<double>(q.bytes() + out.bytes());
    const auto of = [](double rate, double most) { return most > 0 ? rate / most : 0; };
    fmt::print("{}\n", Json{{"op", s.latent ? "mla_attention" : "attention"},
                            {"phase", decode ? "decode" : "prefill"},
                            {"heads", s.heads},
                            {"kv_heads", s.latent ? 1 : s.kv_heads},
                            {"cache", dtype_name(s.dtype)},
                            {"sequences", s.sequences},
                            {"context", s.kv_len},
                            {"layers", layers},
                            {"us", best * 1e6},
                            {"bytes", bytes},
                            {"flops", flops},
                            {"gb_per_s", bytes / best * 1e-9},
                            {"tflop_per_s", flops / best * 1e-12},
                            {"of_read", of(bytes / best, rates_.bytes_per_s)},
                            {"of_bf16", of(flops / best, rates_.bf16)}}
                           .dump());
    std::fflush(stdout);
  }

  Json header() const {
    return {{"backend", backend_.description()},
            {"read_gb_per_s", rates_.bytes_per_s * 1e-9},
            {"bf16_tflop_per_s", rates_.bf16 * 1e-12},
            {"rounds", rounds_}};
  }

 private:
  static constexpr int kNope = 128, kRope = 64, kValue = 128, kLora = 512, kMostHeads = 128;
  Backend& backend_;
  const int rounds_;
  const Roofline rates_;
  std::unique_ptr<DeviceMemory> cache_, scratch_, kv_b_;
  uint64_t keys_ = 0;
};

}  // namespace

// Shapes: R1-Distill-Qwen-7B (28 heads over 4 of 128), one of eight GPUs of V3 and a V2-Lite (16 latent heads), V3 on one (128).
int run_device_attention(const Options& options) {
  auto made = load_backend(options.backend, {});
  if (!made.ok()) {
    fmt::print(stderr, "bench_ops: {}\n", made.error().message);
    return exit_code(made.error().kind);
  }
  DeviceAttention bench(**made, options.rounds);
  fmt::print("{}\n", bench.header().dump());
  struct Heads {
    bool latent;
    int heads, kv_heads;
  };
  for (const Heads& h : {Heads{false, 28, 4}, Heads{true, 16, 1}, Heads{true, 128, 1}}) {
    for (Dtype dtype : {Dtype::kBf16, Dtype::kF8E4m3})
      for (int context : {1024, 8192, 32768})
        for (int sequences : {1, 16, 64}) bench.run({h.latent, h.heads, h.kv_heads, dtype, sequences, 1, context});
    for (int context : {4096, 8192}) bench.run({h.latent, h.heads, h.kv_heads, Dtype::kBf16, 1, context, context});
  }
  return 0;
}

}  // namespace dg::bench_ops
