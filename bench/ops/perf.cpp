// bench_ops perf: is any kernel slower than it was? Each op x format x instruction set at a few serving shapes, on one thread and in
// CPU time, so that others on the machine matter little and a row depends on its kernel alone. A figure is a ratio: the time that
// memory and an f32 multiply-add loop, measured just before it in the same process, need at least for its bytes and operations, over
// its own time. (int8 and bf16 rows may be above 1.) Rounds are interleaved: all rows once, then all again; medians count. A row that
// seems slower is measured again before it is reported.
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>

#include "backends/cpu/cpu.h"
#include "backends/cpu/machine_measure.h"
#include "base/file.h"
#include "base/json.h"
#include "bench_ops.h"
#include "device/cost.h"

namespace dg::bench_ops {
namespace {

constexpr double kTolerance = 0.15, kLeastSeconds = 0.003;

struct Case {
  std::string name;
  double bytes = 0, flops = 0;
  std::function<void(int64_t i)> run;  // i counts calls: copies of the weight take turns
  std::vector<double> ratios;

  double median() const { return measured(ratios).median; }
};

// The data of the cases of one instruction set; lives as long as they do.
class Cases {
 public:
  Cases(Backend& backend, const std::string& isa, const std::string& filter) : backend_(backend), isa_(isa), filter_(filter) {
    blocks_.resize(8192 / 16);
    for (size_t i = 0; i < blocks_.size(); i++) blocks_[i] = static_cast<int32_t>(i * 7 % blocks_.size());
    scratch_memory_ = allocate_or_exit(backend, size_t{64} << 20, "scratch");
    scratch_ = Arena(scratch_memory_->data(), scratch_memory_->bytes());
    products();
    experts();
    attention();
    rows();
  }
  std::vector<Case>& list() { return cases_; }

 private:
  // f(i) issues the op of call i. `op` gives the cost.
  template <class Op, class F>
  void add(const std::string& name, const Op& op, F f) {
    const std::string full = isa_ + "/" + name;
    if (!filter_.empty() && full.find(filter_) == std::string::npos) return;
    const Cost cost = cost_of(op);
    cases_.push_back({full, cost.bytes(), cost.flops, std::move(f), {}});
  }
  bool wanted(const std::string& name) const { return filter_.empty() || (isa_ + "/" + name).find(filter_) != std::string::npos; }

  Tensor floats(std::initializer_list<int64_t> shape) {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    auto memory = allocate_or_exit(backend_, static_cast<size_t>(n) * 4, "activations");
    auto* values = static_cast<float*>(memory->data());
    for (int64_t i = 0; i < n; i++) values[i] = static_cast<float>((i * 7919) % 251 - 125) * 0.008f;
    kept_.push_back(std::move(memory));
    return Tensor::of(values, Dtype::kF32, shape);
  }
  Tensor integers(int64_t n, const std::function<int64_t(int64_t)>& value) {
    auto memory = allocate_or_exit(backend_, static_cast<size_t>(n) * 4, "indices");
    auto* values = static_cast<int32_t*>(memory->data());
    for (int64_t i = 0; i < n; i++) values[i] = static_cast<int32_t>(value(i));
    kept_.push_back(std::move(memory));
    return Tensor::of(values, Dtype::kI32, {n});
  }
  // Copies of a weight, together larger than caches when decode streams them.
  std::vector<Weight> copies(const Format& format, int64_t out, int64_t in, bool many, bool product = true) {
    std::vector<Weight> result;
    weights_.push_back(std::make_unique<EncodedWeight>(backend_, format, out, in, product));
    const EncodedWeight& first = *weights_.back();
    result.push_back(first.weight);
    const int64_t count = many ? std::clamp<int64_t>((int64_t{128} << 20) / static_cast<int64_t>(first.storage->bytes()), 2, 64) : 1;
    for (int64_t i = 1; i < count; i++) {
      weights_.push_back(std::make_unique<EncodedWeight>(backend_, first));
      result.push_back(weights_.back()->weight);
    }
    return result;
  }
  PagedCache cache(Dtype dtype, int64_t width) {
    const int64_t elements = 512 * 16 * width;
    auto memory = allocate_or_exit(backend_, static_cast<size_t>(elements) * dtype_bytes(dtype), "a cache");
    for (int64_t i = 0; i < elements; i++) {  // values near 1 in all three types
      if (dtype == Dtype::kF32) static_cast<float*>(memory->data())[i] = 0.9f + static_cast<float>(i % 251) * 1e-3f;
      else static_cast<uint16_t*>(memory->data())[i] = static_cast<uint16_t>((dtype == Dtype::kBf16 ? 0x3f40 : 0x3a00) + i % 63);
    }
    kept_.push_back(std::move(memory));
    return {Tensor::of(kept_.back()->data(), dtype, {512, 16, width})};
  }

  // One format for each way the products are computed; see quant/panel.h.
  void products() {
    constexpr int64_t kOut = 1408, kIn = 2048;  // an expert of V2-Lite
    for (const char* name : {"f32", "bf16", "fp8_block", "int8", "q8_0", "int4", "q4_0", "q4_k", "int4_asym", "iq4_nl"}) {
      const Format* format = find_format(name);
      if (!format || !backend_.supports(*format) || !(wanted(fmt::format("linear {}", name)) || wanted(fmt::format("linear_glu {}", name))))
        continue;
      std::vector<Weight> w = copies(*format, kOut, kIn, true);
      for (int64_t m : {1, 16, 64}) {
        Linear op{.out = floats({m, kOut}), .x = floats({m, kIn}), .weight = w[0]};
        add(fmt::format("linear {} {}x{} m={}", name, kIn, kOut, m), op, [this, op, w, m](int64_t i) mutable {
          op.weight = w[static_cast<size_t>(m == 64 ? i % 2 : i) % w.size()];
          backend_.linear(op);
        });
      }
      LinearGlu glu{.out = floats({16, kOut}), .x = floats({16, kIn}), .gate = w[0], .up = w[1], .scratch = &scratch_};
      add(fmt::format("linear_glu {} {}x{} m=16", name, kIn, kOut), glu, [this, glu, w](int64_t i) mutable {
        glu.gate = w[static_cast<size_t>(2 * i) % w.size()], glu.up = w[static_cast<size_t>(2 * i + 1) % w.size()];
        backend_.linear_glu(glu);
      });
    }
    for (const Format* format : all_formats()) {  // rows are decoded as they are published
      const std::string name = fmt::format("embed {} 2048 m=64", format->name);
      if (!wanted(name) || !backend_.supports(*format)) continue;
      Embed op{.out = floats({64, 2048}),
               .ids = integers(64, [](int64_t i) { return i * 37 % 2048; }),
               .table = copies(*format, 2048, 2048, false, false)[0]};
      add(name, op, [this, op](int64_t) { backend_.embed(op); });
    }
  }

  void experts() {
    constexpr int64_t kDim = 1024, kInner = 704, kExperts = 16, kTop = 4;
    for (const char* name : {"bf16", "int8", "int4"}) {
      const Format* format = find_format(name);
      if (!format || !backend_.supports(*format) || !wanted(fmt::format("moe_experts {}", name))) continue;
      std::vector<Expert> list;
      std::vector<Weight> up = copies(*format, kInner, kDim, false), down = copies(*format, kDim, kInner, false);
      for (int64_t e = 0; e < kExperts; e++) list.push_back({again(up[0]), again(up[0]), again(down[0])});
      experts_.push_back(std::move(list));
      for (int64_t m : {1, 32}) {
        Tensor ids = integers(m * kTop, [&](int64_t i) { return (i / kTop * 3 + i % kTop * 4) % kExperts; });
        MoeExperts op{.out = floats({m, kDim}),
                      .x = floats({m, kDim}),
                      .ids = Tensor::of(ids.data, Dtype::kI32, {m, kTop}),
                      .weights = floats({m, kTop}),
                      .experts = experts_.back(),
                      .first = 0,
                      .scratch = &scratch_};
        add(fmt::format("moe_experts {} {}x{}x{} top {} m={}", name, kExperts, kDim, kInner, kTop, m), op,
            [this, op](int64_t) { backend_.moe_experts(op); });
      }
    }
    MoeRoute route{.ids = Tensor::of(integers(64 * 6, [](int64_t) { return 0; }).data, Dtype::kI32, {64, 6}),
                   .weights = floats({64, 6}),
                   .logits = floats({64, 64}),
                   .score = RouterScore::kSoftmax,
                   .group_score = GroupScore::kMax,
                   .groups = 1,
                   .top_groups = 1,
                   .normalise = false,
                   .routed_scale = 1};
    add("moe_route 64 top 6 m=64", route, [this, route](int64_t) { backend_.moe_route(route); });
  }
  Weight again(const Weight& weight) {
    auto of = std::find_if(weights_.begin(), weights_.end(), [&](const auto& w) { return w->weight.data == weight.data; });
    weights_.push_back(std::make_unique<EncodedWeight>(backend_, **of));
    return weights_.back()->weight;
  }

  void attention() {
    struct Shape {
      const char* name;
      int rows, kv_len;
    };
    for (Dtype dtype : {Dtype::kBf16, Dtype::kF32})
      for (Shape s : {Shape{"decode", 1, 4096}, Shape{"prefill", 128, 256}}) {
        const char* type = dtype == Dtype::kBf16 ? "bf16" : "f32";
        const std::string gqa = fmt::format("attention 12/2x128 {} {} kv={}", type, s.name, s.kv_len);
        const std::string mla = fmt::format("mla_attention 16 heads 512+64 {} {} kv={}", type, s.name, s.kv_len);
        slices_.push_back(std::make_unique<SequenceSlice>(SequenceSlice{0, s.rows, s.kv_len, blocks_.data(), s.rows == 1}));
        if (wanted(gqa)) {
          Attention op{.out = floats({s.rows, 12, 128}),
                       .q = floats({s.rows, 12, 128}),
                       .k_cache = cache(dtype, 256),
                       .v_cache = cache(dtype, 256),
                       .sequences = {slices_.back().get(), 1},
                       .kv_heads = 2,
                       .scale = 0.09f,
                       .scratch = &scratch_};
          add(gqa, op, [this, op](int64_t) { backend_.attention(op); });
        }
        if (wanted(mla)) {
          MlaAttention op{.out = floats({s.rows, 16, 128}),
                          .q = floats({s.rows, 16, 192}),
                          .cache = cache(dtype, 576),
                          .kv_b = copies(*find_format("bf16"), 16 * 256, 512, false, false)[0],
                          .sequences = {slices_.back().get(), 1},
                          .nope = 128,
                          .rope = 64,
                          .v_dim = 128,
                          .kv_lora = 512,
                          .scale = 0.07f,
                          .scratch = &scratch_};
          add(mla, op, [this, op](int64_t) { backend_.mla_attention(op); });
        }
      }
  }

  void rows() {
    constexpr int64_t kRows = 64, kDim = 2048;
    Tensor a = floats({kRows, kDim}), b = floats({kRows, kDim}), out = floats({kRows, kDim}), weight = floats({kDim});
    Tensor heads = floats({kRows, 16, 128}), norm = floats({128}), frequencies = floats({64});
    Tensor positions = integers(kRows, [](int64_t i) { return i; });
    const std::string shape = fmt::format("{} m={}", kDim, kRows);
    RmsNorm rms{.out = out, .x = a, .weight = weight, .eps = 1e-6f};
    add("rms_norm " + shape, rms, [this, rms](int64_t) { backend_.rms_norm(rms); });
    Tensor residual = floats({kRows, kDim}), zero = floats({kRows, kDim});
    for (int64_t i = 0; i < zero.elements(); i++) zero.f32()[i] = 0;  // the residual must not grow from call to call
    AddRmsNorm add_rms{.out = out, .residual = residual, .delta = zero, .weight = weight, .eps = 1e-6f};
    add("add_rms_norm " + shape, add_rms, [this, add_rms](int64_t) { backend_.add_rms_norm(add_rms); });
    for (bool interleaved : {false, true}) {
      Rope rope{.x = heads, .positions = positions, .inv_freq = frequencies, .interleaved = interleaved, .magnitude = 1};
      add(fmt::format("rope {} 16x128 m={}", interleaved ? "interleaved" : "halves", kRows), rope,
          [this, rope](int64_t) { backend_.rope(rope); });
    }
    HeadNormRope head_norm{
        .x = heads, .weight = norm, .eps = 1e-6f, .positions = positions, .inv_freq = frequencies, .interleaved = false, .magnitude = 1};
    add(fmt::format("head_norm_rope 16x128 m={}", kRows), head_norm, [this, head_norm](int64_t) { backend_.head_norm_rope(head_norm); });
    ActMul act{.out = out, .gate = a, .up = b};
    add("act_mul " + shape, act, [this, act](int64_t) { backend_.act_mul(act); });
    Add sum{.out = out, .a = a, .b = b};
    add("add " + shape, sum, [this, sum](int64_t) { backend_.add(sum); });
    GatherRows gather{.out = out, .x = a, .rows = integers(kRows, [](int64_t i) { return i * 5 % kRows; })};
    add("gather_rows " + shape, gather, [this, gather](int64_t) { backend_.gather_rows(gather); });
    Fill fill{.out = out, .value = 1};
    add("fill " + shape, fill, [this, fill](int64_t) { backend_.fill(fill); });
    PagedCache half = cache(Dtype::kBf16, 576);
    Copy to_half{.out = Tensor::of(half.data.data, Dtype::kBf16, {kRows, kDim}), .x = a};
    add("copy f32 to bf16 " + shape, to_half, [this, to_half](int64_t) { backend_.copy(to_half); });
    KvWrite write{.cache = half, .values = floats({kRows, 576}), .slots = integers(kRows, [](int64_t i) { return i * 97; })};
    add(fmt::format("kv_write bf16 576 m={}", kRows), write, [this, write](int64_t) { backend_.kv_write(write); });
  }

  Backend& backend_;
  const std::string isa_, filter_;
  std::vector<Case> cases_;
  std::vector<std::unique_ptr<DeviceMemory>> kept_;
  std::vector<std::unique_ptr<EncodedWeight>> weights_;
  std::vector<std::vector<Expert>> experts_;
  std::vector<std::unique_ptr<SequenceSlice>> slices_;
  std::vector<int32_t> blocks_;
  std::unique_ptr<DeviceMemory> scratch_memory_;
  Arena scratch_;
};

void measure(Case& c, Calibration& calibration) {
  const double f32 = calibration.f32_operations_per_s(), read = calibration.read_bytes_per_s();
  const double begin = process_cpu_s();
  double ran = 0;
  int64_t calls = 0;
  do {
    c.run(calls++);
    ran = process_cpu_s() - begin;
  } while (ran < kLeastSeconds);
  const double least = std::max(read > 0 ? c.bytes / read : 0, f32 > 0 ? c.flops / f32 : 0);
  c.ratios.push_back(least * static_cast<double>(calls) / ran);
}

using Ratios = std::map<std::string, double>;

// The rows of one processor in the baseline file; nothing when it has none. Errors: not readable, not what it should be.
Result<std::optional<Ratios>> read_baseline(const std::string& path, const std::string& cpu, Json* whole) {
  *whole = Json::object();
  if (!file_exists(path)) return std::optional<Ratios>();
  DG_ASSIGN(*whole, read_json_file(path));
  if (!whole->is_object() || !whole->contains(cpu)) return std::optional<Ratios>();
  Ratios ratios;
  for (auto& [name, value] : (*whole)[cpu].items()) {
    if (!value.is_number()) return input_error(fmt::format("{}: {}: expected a ratio, found {}", path, name, value.dump()));
    ratios[name] = value.get<double>();
  }
  return std::optional<Ratios>(std::move(ratios));
}

}  // namespace

int run_perf(const Options& options) {
  auto fail = [](const Error& error) {
    fmt::print(stderr, "bench_ops perf: {}\n", error.message);
    return exit_code(error.kind);
  };
  const std::string cpu = cpu_model_name();
  Json file;
  auto baseline = read_baseline(options.baseline, cpu, &file);
  if (!baseline.ok()) return fail(baseline.error());
  auto calibration = Calibration::create();
  if (!calibration.ok()) return fail(calibration.error());
  fmt::print("{}; one thread, CPU time; medians of {} rounds\n", cpu, options.rounds);
  fmt::print("{:<64} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "isa/op", "us", "GB/s", "GFLOP/s", "ratio", "of base");
  Ratios ratios;
  std::vector<std::string> slower;
  for (const std::string& isa : usable_cpu_isas()) {
    if (options.isa != "auto" && options.isa != isa) continue;
    auto backend = make_cpu_backend({.threads = 1, .isa = isa, .pin = false});
    if (!backend.ok()) return fail(backend.error());
    Cases cases(**backend, isa, options.filter);
    for (Case& c : cases.list()) c.run(0);  // first touches
    for (int round = 0; round < options.rounds; round++)
      for (Case& c : cases.list()) measure(c, **calibration);
    for (Case& c : cases.list()) {
      std::optional<double> base;
      if (*baseline && (**baseline).contains(c.name)) base = (**baseline)[c.name];
      // What looks slow may have had bad neighbours: twice as many rounds again, up to three times.
      for (int again = 0; base && again < 3 && c.median() < *base * (1 - kTolerance); again++) {
        const double before = c.median();
        c.ratios.clear();
        for (int round = 0; round < 2 * options.rounds; round++) measure(c, **calibration);
        if (c.median() < before) c.ratios.assign(1, before);
      }
      ratios[c.name] = c.median();
      const double begin = process_cpu_s();
      int64_t calls = 0;
      do c.run(calls++);
      while (process_cpu_s() - begin < kLeastSeconds);
      const double seconds = (process_cpu_s() - begin) / static_cast<double>(calls);
      const bool bad = base && c.median() < *base * (1 - kTolerance);
      if (bad) slower.push_back(fmt::format("{}: {:.3f} of the baseline's {:.3f}", c.name, c.median(), *base));
      fmt::print("{:<64} {:>8.1f} {:>8.2f} {:>8.1f} {:>8.3f} {:>7}{}\n", c.name, seconds * 1e6, c.bytes / seconds * 1e-9,
                 c.flops / seconds * 1e-9, c.median(), base ? fmt::format("{:.2f}", c.median() / *base) : "-", bad ? "  SLOWER" : "");
      std::fflush(stdout);
    }
  }
  if (ratios.empty())
    return fail(input_error(fmt::format("no row has \"{}\" in its name and instruction set {}", options.filter, options.isa)));
  if (options.update) {
    Json& rows = file[cpu];
    if (!rows.is_object()) rows = Json::object();
    for (auto& [name, ratio] : ratios) rows[name] = std::round(ratio * 1e4) / 1e4;
    auto written = write_file(options.baseline, file.dump(1) + "\n");
    if (!written.ok()) return fail(written.error());
    fmt::print("{} rows written to {}\n", ratios.size(), options.baseline);
    return 0;
  }
  if (!*baseline) fmt::print("{} has no rows of this processor; `bench_ops perf --update` adds them\n", options.baseline);
  for (const std::string& line : slower) fmt::print("slower: {}\n", line);
  fmt::print("{} rows, {} slower by more than {:.0f} %\n", ratios.size(), slower.size(), 100 * kTolerance);
  return slower.empty() ? 0 : 1;
}

}  // namespace dg::bench_ops
