#include "backends/profile/profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <thread>

#include "backends/cpu/reference.h"
#include "backends/profile/report.h"
#include "base/json.h"
#include "quant/f32.h"
#include "quant/formats.h"

namespace dg {
namespace {

using testing::HasSubstr;

// Notes what reached it; ops take a known time.
class Recorder : public Backend {
 public:
  struct Block : DeviceMemory {};
  const char* name() const override { return "recorder"; }
  std::string description() const override { return "a recorder"; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override {
    log += fmt_line("allocate", static_cast<int64_t>(bytes)) + purpose;
    return std::unique_ptr<DeviceMemory>(std::make_unique<Block>());
  }
  bool executes() const override { return false; }
  bool supports(const Format& format) const override { return std::string_view(format.name) == "int8"; }
  int64_t prepared_bytes(const Format&, int64_t out, int64_t in) const override { return 64 * out + in; }
  void prepare(const Weight&, int64_t first, int64_t out, std::byte*) const override { prepared = first * 1000 + out; }
  void synchronise() override { synchronised++; }
  void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) override {
    for (int64_t i = n; i-- > 0;) fn(i, 7);
  }
  int host_workers() const override { return 9; }
#define DG_RECORD_OP(method, Op)                                                        \
  void method(const Op&) override {                                                     \
    log += #method " ";                                                                 \
    if (sleep_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(sleep_us)); \
  }
  DG_OPS(DG_RECORD_OP)
#undef DG_RECORD_OP
  static std::string fmt_line(const char* what, int64_t n) { return std::string(what) + " " + std::to_string(n) + " "; }

  std::string log;
  mutable int64_t prepared = 0;
  int synchronised = 0, sleep_us = 0;
};

struct Rows {
  explicit Rows(int64_t rows, int64_t cols) : values(static_cast<size_t>(rows * cols), 0.5f) {
    view = Tensor::of(values.data(), Dtype::kF32, {rows, cols});
  }
  std::vector<float> values;
  Tensor view;
};

struct Profiled {
  explicit Profiled(size_t events = 0) {
    auto made = std::make_unique<Recorder>();
    inner = made.get();
    profile = std::make_unique<ProfileBackend>(std::move(made), events);
  }
  Recorder* inner;
  std::unique_ptr<ProfileBackend> profile;
};

std::string fmt_percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, " %.1f", 100 * share);
  return text;
}

MachineLimits limits() {
  MachineLimits limits{.cpu = "test", .threads = 1};
  limits.read = {{1, {1e9, 1e9, 1e9}}};
  limits.peaks = {{"x", "fma", MathType::kF32, false, {1e9, 1e9, 1e9}, {1e9, 1e9, 1e9}},
                  {"x", "dot", MathType::kInt8, false, {4e9, 4e9, 4e9}, {4e9, 4e9, 4e9}}};
  return limits;
}

TEST(Profile, ForwardsEverything) {
  Profiled p;
  Backend& b = *p.profile;
  EXPECT_STREQ(b.name(), "recorder");
  EXPECT_EQ(b.description(), "a recorder");
  EXPECT_TRUE(b.allocate(12, "weights").ok());
  EXPECT_EQ(p.inner->log, "allocate 12 weights");
  EXPECT_FALSE(b.executes());
  EXPECT_TRUE(b.supports(*find_format("int8")));
  EXPECT_FALSE(b.supports(kF32));
  EXPECT_EQ(b.prepared_bytes(kF32, 2, 3), 131);
  b.prepare({}, 128, 256, nullptr);
  EXPECT_EQ(p.inner->prepared, 128256);
  EXPECT_EQ(b.host_workers(), 9);
  std::vector<int64_t> seen;
  b.host_parallel(3, [&](int64_t i, int worker) { seen.push_back(i * 10 + worker); });
  EXPECT_THAT(seen, testing::ElementsAre(27, 17, 7));
  b.synchronise();
  EXPECT_EQ(p.inner->synchronised, 1);
}

// Fused ops must reach the override of the backend behind it: its default body would undo the fusion.
TEST(Profile, EveryOpReachesItsOwnOverride) {
  Profiled p;
  Rows x(2, 8);
  int32_t ids[4] = {};
  Tensor two = Tensor::of(ids, Dtype::kI32, {2}), top = Tensor::of(ids, Dtype::kI32, {2, 2}), heads = x.view;
  heads.rank = 3, heads.shape = {2, 2, 4}, heads.stride = {8, 4, 1};
  Rows scores(2, 2);
  Tensor t = x.view;
  Weight w{.format = &kF32, .data = reinterpret_cast<std::byte*>(x.values.data()), .out = 8, .in = 8};
  PagedCache cache{Tensor::of(x.values.data(), Dtype::kF32, {1, 2, 8})};
  int32_t blocks[1] = {0};
  SequenceSlice slice{0, 2, 2, blocks, false};
  Expert experts[2] = {{w, w, w}, {w, w, w}};
  Backend& b = *p.profile;
  b.embed({.out = t, .ids = two, .table = w});
  b.linear({.out = t, .x = t, .weight = w});
  b.linear_several({.x = t, .parts = {{t, w}, {t, w}}, .count = 2});
  b.linear_glu({.out = t, .x = t, .gate = w, .up = w, .scratch = nullptr});
  b.rms_norm({.out = t, .x = t, .weight = t, .eps = 0});
  b.all_reduce({.x = t});
  b.add_rms_norm({.out = t, .residual = t, .delta = t, .weight = t, .eps = 0});
  b.rope({.x = heads, .positions = two, .inv_freq = t, .interleaved = false, .magnitude = 1});
  b.head_norm_rope({.x = heads, .weight = {}, .eps = 0, .positions = two, .inv_freq = t, .interleaved = false, .magnitude = 1});
  b.act_mul({.out = t, .gate = t, .up = t});
  b.add({.out = t, .a = t, .b = t});
  b.gather_rows({.out = t, .x = t, .rows = two});
  b.fill({.out = t, .value = 1});
  b.copy({.out = t, .x = t});
  b.kv_write({.cache = cache, .values = t, .slots = two});
  b.rope_kv_write({.q = heads,
                   .k = t,
                   .v = t,
                   .eps = 0,
                   .positions = two,
                   .inv_freq = t,
                   .slots = two,
                   .magnitude = 1,
                   .k_cache = cache,
                   .v_cache = cache});
  b.latent_kv_write({.latent = t, .weight = t, .eps = 0, .positions = two, .inv_freq = t, .slots = two, .magnitude = 1, .cache = cache});
  b.attention({.out = heads,
               .q = heads,
               .k_cache = cache,
               .v_cache = cache,
               .sequences = {&slice, 1},
               .kv_heads = 2,
               .scale = 1,
               .scratch = nullptr});
  b.mla_attention({.out = heads,
                   .q = heads,
                   .cache = cache,
                   .kv_b = w,
                   .sequences = {&slice, 1},
                   .nope = 2,
                   .rope = 2,
                   .v_dim = 4,
                   .kv_lora = 6,
                   .scale = 1,
                   .scratch = nullptr});
  b.moe_route({.ids = top,
               .weights = scores.view,
               .logits = t,
               .score = RouterScore::kSoftmax,
               .group_score = GroupScore::kMax,
               .groups = 1,
               .top_groups = 1,
               .normalise = false,
               .routed_scale = 1});
  b.moe_experts({.out = t, .x = t, .ids = top, .weights = scores.view, .experts = experts, .first = 0, .scratch = nullptr});
  b.adjust_logits({.logits = t, .specs = two, .changes = two, .masks = two});
  b.pick_rows({.out = two, .logits = t, .specs = two, .most = 1, .draw = false, .scratch = t});
  std::string all;
#define DG_NAME(method, Op) all += #method " ";
  DG_OPS(DG_NAME)
#undef DG_NAME
  EXPECT_EQ(p.inner->log, all);
  EXPECT_EQ(p.profile->rows().size(), 23u) << "each op is a class of its own";
  for (const ProfileRow& row : p.profile->rows()) EXPECT_THAT(all, HasSubstr(row.shape.op));
}

TEST(Profile, RowsThatFallInOnePowerOfTwoAreOneClass) {
  Profiled p;
  Rows x(1024, 4);
  Weight w{.format = &kF32, .data = reinterpret_cast<std::byte*>(x.values.data()), .out = 4, .in = 4};
  for (int64_t m : {1, 512, 300, 257, 513, 1}) {
    Tensor t = x.view.slice(0, 0, m);
    p.profile->linear({.out = t, .x = t, .weight = w});
  }
  std::vector<std::string> labels;
  for (const ProfileRow& row : p.profile->rows()) labels.push_back(row.label() + " x" + std::to_string(row.calls));
  EXPECT_THAT(labels, testing::ElementsAre("linear 4x4 f32 m=1 x2", "linear 4x4 f32 m=257-512 x3", "linear 4x4 f32 m=513 x1"));
  EXPECT_EQ(size_class(0), 0);
  for (int64_t n = 1; n < 5000; n++) {
    int c = size_class(n);
    EXPECT_LE(n, int64_t{1} << (c - 1));
    EXPECT_GT(n, c == 1 ? 0 : int64_t{1} << (c - 2));
  }
}

TEST(Profile, TimesAndCostsAreThoseOfTheOps) {
  Profiled p(100);
  p.inner->sleep_us = 3000;
  Rows x(8, 16);
  Weight w{.format = &kF32, .data = reinterpret_cast<std::byte*>(x.values.data()), .out = 8, .in = 16};
  Rows y(8, 8);
  Linear op{.out = y.view, .x = x.view, .weight = w};
  for (int i = 0; i < 3; i++) p.profile->linear(op);
  p.profile->synchronise();
  p.profile->synchronise();  // no ops in between: no step
  ASSERT_EQ(p.profile->rows().size(), 1u);
  const ProfileRow& row = p.profile->rows()[0];
  EXPECT_EQ(row.calls, 3);
  EXPECT_GE(row.seconds, 0.009);
  EXPECT_LE(row.seconds, p.profile->elapsed_s() + 1e-9);
  EXPECT_EQ(row.cost.flops, 3 * cost_of(op).flops);
  EXPECT_EQ(row.cost.bytes(), 3 * cost_of(op).bytes());
  EXPECT_EQ(p.profile->steps(), 1);
  ASSERT_EQ(p.profile->events().size(), 4u);
  const ProfileEvent& step = p.profile->events().back();
  EXPECT_EQ(step.row, -1);
  EXPECT_EQ(step.tokens, 8);
  for (int i = 0; i < 3; i++) {
    const ProfileEvent& e = p.profile->events()[static_cast<size_t>(i)];
    EXPECT_GE(e.start_ns, step.start_ns);
    EXPECT_LE(e.start_ns + e.duration_ns, step.start_ns + step.duration_ns);
  }
  p.profile->reset();
  EXPECT_TRUE(p.profile->rows().empty());
  EXPECT_EQ(p.profile->elapsed_s(), 0);
}

// What is counted of the experts is what the tokens chose, not what chance would give.
TEST(Profile, ExpertsAreCounted) {
  Rows x(3, 8);
  Weight w{.format = &kF32, .data = reinterpret_cast<std::byte*>(x.values.data()), .out = 8, .in = 8};
  std::vector<Expert> experts(16, {w, w, w});
  int32_t ids[6] = {20, 25, 20, 25, 99, 20};  // 99 lives on another shard
  MoeExperts op{
      .out = x.view, .x = x.view, .ids = Tensor::of(ids, Dtype::kI32, {3, 2}), .weights = x.view, .experts = experts, .first = 16};
  EXPECT_EQ(measured_cost(op).weight_bytes, 2.0 * 3 * 8 * 8 * 4);
  EXPECT_EQ(measured_cost(op).flops, cost_of(op).flops);
}

TEST(Profile, TableIsSortedAndSums) {
  Profiled p;
  Rows x(64, 64);
  Weight w{.format = &kF32, .data = reinterpret_cast<std::byte*>(x.values.data()), .out = 64, .in = 64};
  p.inner->sleep_us = 40000;  // far apart: a busy machine may take milliseconds for nothing
  p.profile->add({.out = x.view, .a = x.view, .b = x.view});
  p.inner->sleep_us = 120000;
  p.profile->linear({.out = x.view, .x = x.view, .weight = w});
  p.inner->sleep_us = 0;
  for (int64_t m = 1; m <= 32; m *= 2) p.profile->fill({.out = x.view.slice(0, 0, m), .value = 0});
  std::string table = profile_table(*p.profile, limits(), "x", 2);
  size_t linear = table.find("linear 64x64 f32 m=64"), add = table.find("add 64 m=64"), rest = table.find("6 more"),
         all = table.find("all ops");
  ASSERT_NE(rest, std::string::npos) << table;
  EXPECT_LT(linear, add) << table;
  EXPECT_LT(add, rest);
  EXPECT_LT(rest, all);
  EXPECT_THAT(table, HasSubstr("read 1.0 GB/s; x: int8 0.00 TOP/s"));
  // linear: 2 * 64^3 operations at 1e9/s and 48 KiB at 1e9 B/s: 524 us of some 120 ms.
  const ProfileRow& row = p.profile->rows()[1];
  EXPECT_THAT(table.substr(linear, table.find('\n', linear) - linear), testing::EndsWith(fmt_percent(524.288e-6 / row.seconds)));
}

// A step ends where its results are read, too; what the device waited for the host afterwards stands between the steps.
TEST(Profile, WaitsStandBetweenSteps) {
  const std::string path = (std::filesystem::temp_directory_path() / ("dougong waits " + std::to_string(::getpid()) + ".json")).string();
  Profiled p(100);
  Rows x(4, 4);
  float to[16];
  const auto before = std::chrono::steady_clock::now();
  for (int step = 0; step < 3; step++) {
    p.profile->fill({.out = x.view, .value = 0});
    if (step == 1) p.profile->download_rows(to, 16, x.values.data(), 16, 4);
    else p.profile->download(to, x.values.data(), 64);
    EXPECT_EQ(p.profile->steps(), step + 1);
    const auto end = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    if (step < 2) p.profile->note_wait(end, std::chrono::steady_clock::now());
  }
  EXPECT_GE(p.profile->waited_s(), 0.04);
  EXPECT_THAT(profile_table(*p.profile, limits(), "x"), testing::ContainsRegex("the device waited 0\\.0[4-9][0-9] s for the host"));
  p.profile->note_wait(before, before + std::chrono::seconds(1));  // of before the first op
  EXPECT_LT(p.profile->waited_s(), 1);
  ASSERT_TRUE(write_profile_trace(*p.profile, path).ok());
  auto json = read_json_file(path);
  ASSERT_TRUE(json.ok()) << json.error().message;
  std::vector<std::string> names;
  double end = 0;
  for (const Json& event : (*json)["traceEvents"]) {
    if (event["ph"] != "X" || event["cat"] == "op") continue;
    names.push_back(event["name"]);
    EXPECT_GE(event["ts"].get<double>(), end - 0.002) << "they do not overlap";
    end = event["ts"].get<double>() + event["dur"].get<double>();
  }
  EXPECT_THAT(names, testing::ElementsAre("step", "device waits for the host", "step", "device waits for the host", "step"));
  std::filesystem::remove(path);
}

TEST(Profile, TraceIsJsonWithNestedSteps) {
  std::string path = (std::filesystem::temp_directory_path() / ("dougong trace " + std::to_string(::getpid()) + ".json")).string();
  Profiled p(5);
  Rows x(4, 4);
  for (int step = 0; step < 2; step++) {
    for (int i = 0; i < 2; i++) p.profile->fill({.out = x.view, .value = 0});
    p.profile->synchronise();
  }
  ASSERT_TRUE(write_profile_trace(*p.profile, path).ok());
  auto json = read_json_file(path);
  ASSERT_TRUE(json.ok()) << json.error().message;
  std::vector<std::string> names;
  double last = -1;
  for (const Json& event : (*json)["traceEvents"]) {
    if (event["ph"] != "X") continue;
    names.push_back(event["name"]);
    EXPECT_GE(event["ts"].get<double>(), last);
    EXPECT_GE(event["dur"].get<double>(), 0);
    last = event["ts"];
  }
  EXPECT_THAT(names, testing::ElementsAre("step", "fill 4", "fill 4", "fill 4", "fill 4"))
      << "a parent before its children; the sixth dropped";
  EXPECT_EQ((*json)["otherData"]["dropped_events"], "1");
  std::filesystem::remove(path);
  Result<void> failed = write_profile_trace(*p.profile, "/nowhere/trace.json");
  ASSERT_FALSE(failed.ok());
  EXPECT_THAT(failed.error().message, HasSubstr("/nowhere/trace.json: cannot be written"));
}

// The same numbers come out of the reference with and without it, and it costs little.
TEST(Profile, ComputesTheSameAtLittleCost) {
  std::unique_ptr<Backend> plain = make_reference_backend();
  ProfileBackend profiled(make_reference_backend(), 1 << 16);
  Rows x(1, 4), a(1, 4), b(1, 4);
  for (float& v : x.values) v = 0.37f;
  plain->add({.out = a.view, .a = x.view, .b = x.view});
  profiled.add({.out = b.view, .a = x.view, .b = x.view});
  EXPECT_EQ(a.values, b.values);
  auto seconds = [&](Backend& backend) {
    double best = 1e9;
    for (int round = 0; round < 20; round++) {
      auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < 1000; i++) backend.add({.out = a.view, .a = x.view, .b = x.view});
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 1000);
    }
    return best;
  };
  double overhead = seconds(profiled) - seconds(*plain);
  RecordProperty("overhead_ns", static_cast<int>(overhead * 1e9));
  std::printf("profile: %.0f ns for each op\n", overhead * 1e9);
  // Generous for sanitizers and shared machines; the release build takes about 0.1 us.
  EXPECT_LT(overhead, 20e-6);
}

}  // namespace
}  // namespace dg
