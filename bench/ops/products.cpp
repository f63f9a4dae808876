// bench_ops products: every product of the decode step of the models that docs/cuda.md measures, on an accelerator, by each way its
// kernels can be shared out (DOUGONG_CUDA_PRODUCT; "" is what the backend chooses). Weights are cold: copies take turns that are
// together larger than any cache. Calls stand in a captured graph where the backend replays, one behind the other as in a step.
//
// bench_ops experts: the experts of a layer alone, by each way of DOUGONG_CUDA_EXPERTS (product_choice.cpp), and the router.
//
// A line of JSON for each case, number of rows and choice: microseconds per call, GB/s of the published bytes of the weights that are
// read, and percent of the read rate that the backend measures first.
#include <fmt/core.h>

#include <algorithm>
#include <cstdlib>
#include <random>

#include "bench_ops.h"
#include "device/plugin.h"
#include "device/scratch.h"

namespace dg::bench_ops {
namespace {

struct Case {
  const char *model, *name, *format;
  int64_t out, in;
  bool glu = false;
  int experts = 0, top_k = 0;  // experts of out x in (gate, up) and in x out (down)
};
constexpr Case kCases[] = {{"7b", "qkv", "bf16", 4608, 3584},
                           {"7b", "o", "bf16", 3584, 3584},
                           {"7b", "gate_up", "bf16", 18944, 3584, true},
                           {"7b", "down", "bf16", 3584, 18944},
                           {"7b", "head", "bf16", 152064, 3584},
                           {"8b", "q", "int4", 4096, 4096},
                           {"8b", "kv", "int4", 1024, 4096},
                           {"8b", "gate_up", "int4", 14336, 4096, true},
                           {"8b", "down", "int4", 4096, 14336},
                           {"v2_lite", "q", "bf16", 3072, 2048},
                           {"v2_lite", "kv_a", "bf16", 576, 2048},
                           {"v2_lite", "o", "bf16", 2048, 2048},
                           {"v2_lite", "shared", "bf16", 2816, 2048, true},
                           {"v2_lite", "experts", "bf16", 1408, 2048, false, 64, 6},
                           {"v3", "q_a", "fp8_block", 1536, 7168},
                           {"v3", "q_b", "fp8_block", 24576, 1536},
                           {"v3", "kv_a", "fp8_block", 576, 7168},
                           {"v3", "o", "fp8_block", 7168, 16384},
                           {"v3", "router", "f32", 256, 7168},
                           {"v3", "shared", "fp8_block", 2048, 7168, true},
                           {"v3", "dense", "fp8_block", 18432, 7168, true},
                           {"v3", "experts", "fp8_block", 2048, 7168, false, 64, 8},
                           {"v3", "experts", "int4", 2048, 7168, false, 64, 8}};
struct Choices {
  const char* variable;
  std::vector<int64_t> rows;
  std::vector<const char*> few, many;  // up to 8 rows, and more
};
const Choices kProducts{
    "DOUGONG_CUDA_PRODUCT", {1, 4, 8, 16, 64}, {"", "1,1", "2,1", "4,1", "1,2", "1,4"}, {"", "1,1", "2,1", "4,1", "1,2", "1,4"}};
const Choices kExperts{"DOUGONG_CUDA_EXPERTS", {1, 4, 16, 64}, {"", "1", "2", "4", "8"}, {"", "1", "2", "4", "8"}};
constexpr int64_t kColdBytes = int64_t{512} << 20;
constexpr int64_t kMostRows = 64;
constexpr int kReplays = 10;

struct Matrix {
  Matrix(Backend& backend, const Format& format, int64_t out, int64_t in) {
    const int64_t rows = Backend::kPrepareRows, prepared = backend.prepared_bytes(format, out, in);
    std::mt19937 random(7);
    std::vector<float> source(static_cast<size_t>(rows * in));
    for (float& v : source) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-4f;
    std::vector<std::byte> data(static_cast<size_t>(format.data_bytes(rows, in))),
        scales(static_cast<size_t>(format.scale_bytes(rows, in)));
    format.encode(source.data(), rows, in, data.data(), scales.data());
    storage = allocate_or_exit(backend, static_cast<size_t>(prepared > 0 ? prepared : format.data_bytes(out, in)), "a weight");
    auto* to = static_cast<std::byte*>(storage->data());
    weight = {.format = &format, .data = to, .out = out, .in = in, .prepared = prepared > 0};
    for (int64_t r = 0; r < out; r += rows) {
      const int64_t n = std::min(rows, out - r);
      if (prepared > 0) backend.prepare({.format = &format, .data = data.data(), .scales = scales.data(), .out = n, .in = in}, r, out, to);
      else backend.write(to + r * format.row_bytes(in), data.data(), static_cast<size_t>(n * format.row_bytes(in)));
    }
  }
  // A copy on the device.
  Matrix(Backend& backend, const Matrix& from) : weight(from.weight) {
    storage = allocate_or_exit(backend, from.storage->bytes(), "a weight");
    weight.data = static_cast<std::byte*>(storage->data());
    const auto words = static_cast<int64_t>(from.storage->bytes() / 4096);
    backend.copy({.out = Tensor::of(storage->data(), Dtype::kF32, {words, 1024}),
                  .x = Tensor::of(from.storage->data(), Dtype::kF32, {words, 1024})});
    std::vector<std::byte> rest(from.storage->bytes() % 4096);
    if (rest.empty()) return;
    const size_t at = from.storage->bytes() - rest.size();
    backend.download(rest.data(), static_cast<std::byte*>(from.storage->data()) + at, rest.size());
    backend.write(static_cast<std::byte*>(storage->data()) + at, rest.data(), rest.size());
  }
  std::unique_ptr<DeviceMemory> storage;
  Weight weight;
};

class ProductBench {
 public:
  ProductBench(Backend& backend, const Options& options, double read_rate) : backend_(backend), options_(options), read_rate_(read_rate) {
    scratch_memory_ = allocate_or_exit(backend, size_t{256} << 20, "scratch");
    scratch_ = Arena(scratch_memory_->data(), scratch_memory_->bytes());
  }

  void run(const Case& c, const Choices& choices) {
    const Format& format = *find_format(c.format);
    if (!backend_.supports(format)) return;
    const int64_t matrix = format.total_bytes(c.out, c.in);
    std::vector<Matrix> weights, downs;
    const int64_t copies = c.experts > 0 ? c.experts : std::clamp<int64_t>(kColdBytes / (matrix * (c.glu ? 2 : 1)), 2, 64);
    fill(weights, format, c.out, c.in, c.experts > 0 || c.glu ? 2 * copies : copies);
    if (c.experts > 0) fill(downs, format, c.in, c.out, copies);
    std::vector<Expert> experts;
    for (int e = 0; e < c.experts; e++) {
      const auto i = static_cast<size_t>(e);
      experts.push_back({weights[2 * i].weight, weights[2 * i + 1].weight, downs[i].weight});
    }
    const int64_t width = std::max(c.out, c.in);
    auto x_memory = allocate_or_exit(backend_, static_cast<size_t>(kMostRows * width) * 4, "x");
    auto y_memory = allocate_or_exit(backend_, static_cast<size_t>(kMostRows * width) * 4, "y");
    std::vector<float> values(static_cast<size_t>(kMostRows * width));
    for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(static_cast<int>(i * 7919 % 251) - 125) * 0.008f;
    backend_.write(x_memory->data(), values.data(), values.size() * 4);

    for (int64_t rows : choices.rows) {
      const Tensor x = Tensor::of(x_memory->data(), Dtype::kF32, {rows, c.in}),
                   y = Tensor::of(y_memory->data(), Dtype::kF32, {rows, c.experts > 0 ? c.in : c.out});
      // Experts of the tokens: a few sets that take turns.
      constexpr int64_t kSets = 8;
      std::unique_ptr<DeviceMemory> ids, routing;
      int64_t hit = 0;  // experts read by a call, on average
      if (c.experts > 0) {
        std::vector<int32_t> host(static_cast<size_t>(kSets * rows * c.top_k));
        std::mt19937 random(3);
        for (int64_t s = 0; s < kSets; s++) {
          std::vector<bool> used(static_cast<size_t>(c.experts));
          for (int64_t t = 0; t < rows; t++) {
            std::vector<int32_t> all(static_cast<size_t>(c.experts));
            for (size_t e = 0; e < all.size(); e++) all[e] = static_cast<int32_t>(e);
            std::shuffle(all.begin(), all.end(), random);
            for (int64_t k = 0; k < c.top_k; k++) {
              const int32_t e = all[static_cast<size_t>(k)];
              host[static_cast<size_t>((s * rows + t) * c.top_k + k)] = e;
              if (!used[static_cast<size_t>(e)]) used[static_cast<size_t>(e)] = true, hit++;
            }
          }
        }
        ids = allocate_or_exit(backend_, host.size() * 4, "ids");
        backend_.write(ids->data(), host.data(), host.size() * 4);
        routing = allocate_or_exit(backend_, host.size() * 4, "routing weights");
        backend_.write(routing->data(), values.data(), host.size() * 4);
      }
      const int64_t calls = c.experts > 0 ? kSets : copies;
      const double bytes = c.experts > 0 ? static_cast<double>(3 * matrix * hit) / kSets : static_cast<double>(matrix * (c.glu ? 2 : 1));
      const auto issue = [&](Backend& backend) {
        for (int64_t i = 0; i < calls; i++) {
          const auto at = static_cast<size_t>(i);
          if (c.experts > 0) {
            backend.moe_experts(
                {.out = y,
                 .x = x,
                 .ids = Tensor::of(static_cast<int32_t*>(ids->data()) + i * rows * c.top_k, Dtype::kI32, {rows, c.top_k}),
                 .weights = Tensor::of(static_cast<float*>(routing->data()) + i * rows * c.top_k, Dtype::kF32, {rows, c.top_k}),
                 .experts = experts,
                 .first = 0,
                 .scratch = &scratch_});
          } else if (c.glu) {
            backend.linear_glu({.out = y, .x = x, .gate = weights[2 * at].weight, .up = weights[2 * at + 1].weight, .scratch = &scratch_});
          } else {
            backend.linear({.out = y, .x = x, .weight = weights[at].weight});
          }
        }
      };
      for (const char* choice : rows <= 8 ? choices.few : choices.many) {
        ::setenv(choices.variable, choice, 1);
        if (*choice == 0) ::unsetenv(choices.variable);
        auto made = load_backend(backend_.name(), {});  // it keeps its choices
        if (!made.ok()) return;
        Backend& backend = **made;
        const auto step = [&] { backend.replay(1, [&] { issue(backend); }); };
        for (int i = 0; i < 3; i++) step();
        backend.synchronise();
        const Times times = best_times(options_.rounds, static_cast<double>(calls * kReplays), [&] {
          for (int i = 0; i < kReplays; i++) step();
          backend.synchronise();
        });
        fmt::print(
            "{{\"model\": \"{}\", \"product\": \"{}\", \"format\": \"{}\", \"out\": {}, \"in\": {}, \"rows\": {}, \"choice\": \"{}\", "
            "\"us\": {:.2f}, \"bytes\": {:.0f}, \"gb_per_s\": {:.0f}, \"percent_of_read\": {:.1f}}}\n",
            c.model, c.name, c.format, c.out, c.in, rows, *choice ? choice : "chosen", times.wall_s * 1e6, bytes,
            bytes / times.wall_s * 1e-9, read_rate_ > 0 ? 100 * bytes / times.wall_s / read_rate_ : 0);
        std::fflush(stdout);
      }
    }
  }

  // The router: microseconds of a call behind others.
  void run_route(const char* model, int64_t experts, int64_t top_k, int groups, RouterScore score) {
    for (int64_t rows : {1, 16, 4096}) {
      auto memory = allocate_or_exit(backend_, static_cast<size_t>(rows * (experts + 2 * top_k)) * 4, "logits");
      auto* const logits = static_cast<float*>(memory->data());
      std::vector<float> host(static_cast<size_t>(rows * experts));
      for (size_t i = 0; i < host.size(); i++) host[i] = static_cast<float>(static_cast<int>(i * 7919 % 2003) - 1001) * 0.003f;
      backend_.write(logits, host.data(), host.size() * 4);
      const MoeRoute op{.ids = Tensor::of(logits + rows * experts, Dtype::kI32, {rows, top_k}),
                        .weights = Tensor::of(logits + rows * (experts + top_k), Dtype::kF32, {rows, top_k}),
                        .logits = Tensor::of(logits, Dtype::kF32, {rows, experts}),
                        .score = score,
                        .group_score = GroupScore::kTopTwoSum,
                        .groups = groups,
                        .top_groups = (groups + 1) / 2,
                        .normalise = true,
                        .routed_scale = 1};
      constexpr int kCalls = 50;
      const auto step = [&] {
        backend_.replay(static_cast<uint64_t>(rows * 8 + groups), [&] {
          for (int i = 0; i < kCalls; i++) backend_.moe_route(op);
        });
      };
      for (int i = 0; i < 3; i++) step();
      backend_.synchronise();
      const Times times = best_times(options_.rounds, kCalls, [&] {
        step();
        backend_.synchronise();
      });
      fmt::print("{{\"model\": \"{}\", \"product\": \"route\", \"experts\": {}, \"rows\": {}, \"us\": {:.2f}}}\n", model, experts, rows,
                 times.wall_s * 1e6);
      std::fflush(stdout);
    }
  }

 private:
  void fill(std::vector<Matrix>& to, const Format& format, int64_t out, int64_t in, int64_t count) {
    to.reserve(static_cast<size_t>(count));
    to.emplace_back(backend_, format, out, in);
    for (int64_t i = 1; i < count; i++) to.emplace_back(backend_, to[0]);
    backend_.synchronise();
  }

  Backend& backend_;
  const Options& options_;
  const double read_rate_;
  std::unique_ptr<DeviceMemory> scratch_memory_;
  Arena scratch_{nullptr, 0};
};

}  // namespace

int run_products(const Options& options) {
  auto backend = load_backend(options.backend, {});
  if (!backend.ok()) {
    fmt::print(stderr, "bench_ops: {}\n", backend.error().message);
    return exit_code(backend.error().kind);
  }
  const double read_rate = (*backend)->measure().read_bytes_per_s();
  fmt::print(stderr, "{}, read {:.2f} TB/s\n", (*backend)->description(), read_rate * 1e-12);
  ProductBench bench(**backend, options, read_rate);
  const bool experts = options.mode == "experts";
  if (experts && options.filter.empty()) {
    bench.run_route("v3", 256, 8, 8, RouterScore::kSigmoid);
    bench.run_route("v2_lite", 64, 6, 1, RouterScore::kSoftmax);
  }
  for (const Case& c : kCases)
    if ((c.experts > 0 || !experts) &&
        (options.filter.empty() || fmt::format("{} {} {}", c.model, c.name, c.format).find(options.filter) != std::string::npos))
      bench.run(c, experts ? kExperts : kProducts);
  return 0;
}

}  // namespace dg::bench_ops
