// Executor on a backend that captures and replays steps and whose memory the host must not touch: the CPU behind a tape of its ops.
// What is replayed is exactly what was issued, with the sequences of begin_step(), as a CUDA graph does it.
#include <gtest/gtest.h>

#include <map>

#include "backends/cpu/cpu.h"
#include "engine/warm_up.h"
#include "io/tensor_index.h"
#include "plan/sizing.h"

namespace dg {
namespace {

class TapeBackend : public Backend {
 public:
  explicit TapeBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  const char* name() const override { return "tape"; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override { return inner_->allocate(bytes, purpose); }
  bool host_memory() const override { return false; }
  bool supports(const Format& format) const override { return inner_->supports(format); }
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override { return inner_->prepared_bytes(format, out, in); }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override { inner_->prepare(rows, first, out, to); }

  Result<void> status() const override {
    if (fails_in >= 0) return {};
    return Error{ErrorKind::kDevice, "GPU 0 failed: an illegal memory access was encountered"};
  }
  void synchronise() override {
    inner_->synchronise();
    if (fails_in > 0 && fails_in != kNever && --fails_in == 0) fails_in = -1;
  }
  static constexpr int kNever = 1 << 30;
  int fails_in = kNever;  // steps; below 0: it has failed

  Memory memory() const override { return memory_; }
  Memory memory_;
  bool replays() const override { return true; }
  void forget_replays() override { tapes_.clear(); }
  void begin_step(std::span<const SequenceSlice> slices, int64_t, int64_t longest_kv) override {
    slices_.assign(slices.begin(), slices.end());
    for (const SequenceSlice& s : slices) EXPECT_LE(s.kv_len, longest_kv);
  }
  void replay(uint64_t key, const std::function<void()>& issue) override {
    auto& tape = tapes_[key];
    if (tape.empty()) {
      recording_ = &tape;
      issue();
      recording_ = nullptr;
      return;
    }
    replayed++;
    for (const auto& op : tape) op();
  }

#define DG_TAPE(method, Op) \
  void method(const Op& op) override { run(&Backend::method, op); }
  DG_OPS(DG_TAPE)
#undef DG_TAPE

  int replayed = 0;
  size_t keys() const { return tapes_.size(); }

 private:
  template <class Op>
  void run(void (Backend::*method)(const Op&), const Op& op) {
    if (recording_) {
      size_t mark = 0;
      if constexpr (requires { op.scratch; }) mark = op.scratch ? op.scratch->mark() : 0;
      recording_->push_back([this, method, op, mark] {
        Op copy = op;
        if constexpr (requires { copy.scratch; })
          if (copy.scratch) copy.scratch->release(mark);
        if constexpr (requires { copy.sequences; }) copy.sequences = slices_;
        (inner_.get()->*method)(copy);
      });
    }
    (inner_.get()->*method)(op);
  }

  std::unique_ptr<Backend> inner_;
  std::vector<SequenceSlice> slices_;
  std::map<uint64_t, std::vector<std::function<void()>>> tapes_;
  std::vector<std::function<void()>>* recording_ = nullptr;
};

struct Loaded {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<TensorIndex> index;
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<Model> model;
  std::unique_ptr<Executor> executor;
};

Loaded load(const std::string& path, std::unique_ptr<Backend> backend) {
  Loaded l;
  l.backend = std::move(backend);
  auto config = read_model_config(path);
  auto index = TensorIndex::open(path);
  EXPECT_TRUE(config.ok() && index.ok());
  l.index = std::make_unique<TensorIndex>(std::move(*index));
  l.store = std::make_unique<WeightStore>(*l.backend, l.index.get(), WeightPolicy{});
  auto model = make_model(*config, *l.store);
  EXPECT_TRUE(model.ok());
  l.model = std::move(*model);
  EXPECT_TRUE(l.store->load({.threads = 2}).ok());
  ExecutorOptions options{.kv_tokens = 4096, .max_step_tokens = 64, .max_step_sequences = 11, .max_logit_rows = 11};
  options.arena_bytes = measure_arena_bytes(*l.model, 64, 11, 2048, 11);
  auto executor = Executor::create(*l.backend, *l.model, options);
  EXPECT_TRUE(executor.ok());
  l.executor = std::move(*executor);
  return l;
}

std::unique_ptr<Backend> cpu() {
  auto made = make_cpu_backend({.threads = 2, .pin = false});
  EXPECT_TRUE(made.ok());
  return std::move(*made);
}

// Logits and hidden states of `steps` steps of `count` sequences behind prompts of different lengths.
std::vector<float> decode(Executor& executor, int count, int steps) {
  std::vector<BlockTable> tables;
  std::vector<int32_t> prompt;
  for (int i = 0; i < 40; i++) prompt.push_back((i * 37 + 11) % 300);
  std::vector<float> all;
  for (int i = 0; i < count; i++) {
    tables.emplace_back(executor.kv());
    const StepSequence step{.ids = std::span(prompt).first(static_cast<size_t>(5 + 3 * i)), .blocks = &tables.back()};
    EXPECT_TRUE(executor.run({&step, 1}).ok());
  }
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int s = 0; s < steps; s++) {
    std::vector<StepSequence> sequences;
    for (int i = 0; i < count; i++) {
      ids[static_cast<size_t>(i)] = (s * 13 + i * 5) % 300;
      sequences.push_back({.ids = std::span(ids).subspan(static_cast<size_t>(i), 1),
                           .first_position = 5 + 3 * i + s,
                           .blocks = &tables[static_cast<size_t>(i)],
                           .decode = true});
    }
    auto result = executor.run(sequences);
    EXPECT_TRUE(result.ok());
    EXPECT_EQ(result->logits.rows(), count);
    all.insert(all.end(), result->logits.f32(), result->logits.f32() + result->logits.elements());
    Tensor hidden = executor.read_hidden(*result, 0, count);
    all.insert(all.end(), hidden.f32(), hidden.f32() + hidden.elements());
  }
  return all;
}

class ReplayTest : public ::testing::TestWithParam<std::string> {};

// Batches of every size, padded and not, give the bits that they give where nothing is replayed or padded.
TEST_P(ReplayTest, PaddedAndReplayedStepsAreTheSame) {
  const std::string path = DG_SOURCE_DIR "/tests/golden/" + GetParam();
  Loaded plain = load(path, cpu());
  auto tape = std::make_unique<TapeBackend>(cpu());
  TapeBackend& taped = *tape;
  Loaded replaying = load(path, std::move(tape));
  for (int count : {1, 2, 3, 5, 9, 11}) {
    const int before = taped.replayed;
    EXPECT_EQ(decode(*replaying.executor, count, 4), decode(*plain.executor, count, 4)) << count << " sequences";
    EXPECT_EQ(taped.replayed - before, count == 11 ? 4 : 3) << count << " sequences: the first step of a size records";
  }
  EXPECT_EQ(taped.keys(), 5u) << "sizes 1, 2, 4, 8 and 11 of one class of contexts";
  EXPECT_EQ(replaying.executor->kv().free_blocks(), replaying.executor->kv().blocks()) << "the padding block is nobody's";
}

TEST_P(ReplayTest, EverySizeIsCapturedBeforehand) {
  auto tape = std::make_unique<TapeBackend>(cpu());
  TapeBackend& taped = *tape;
  Loaded replaying = load(DG_SOURCE_DIR "/tests/golden/" + GetParam(), std::move(tape));
  int64_t last = 0;
  replaying.executor->prepare_replays(2048, [&](int64_t done, int64_t all) {
    EXPECT_EQ(done, ++last);
    EXPECT_EQ(all, 10);
  });
  EXPECT_EQ(taped.keys(), 10u) << "1, 2, 4, 8, 11 for contexts to 1024 and 2048";
  for (int count : {1, 3, 11}) decode(*replaying.executor, count, 2);
  EXPECT_EQ(taped.keys(), 10u);
}

// They stay within the arena that was measured for them and touch only the blocks there are; nothing captured is left.
TEST_P(ReplayTest, LargestStepsRunBeforeThereIsACache) {
  auto tape = std::make_unique<TapeBackend>(cpu());
  TapeBackend& taped = *tape;
  Loaded loaded = load(DG_SOURCE_DIR "/tests/golden/" + GetParam(), std::move(tape));
  const ExecutorOptions options = loaded.executor->options();
  for (int64_t longest : {40, 1500}) {  // shorter than a step's rows, and longer
    taped.memory_ = {};
    auto none = measure_step_memory(*loaded.backend, *loaded.model, options, longest);
    ASSERT_TRUE(none.ok());
    EXPECT_EQ(none->replays, 0);
    taped.memory_ = {int64_t{1} << 40, int64_t{1} << 40};
    auto measured = measure_step_memory(*loaded.backend, *loaded.model, options, longest);
    ASSERT_TRUE(measured.ok());
    EXPECT_EQ(measured->workspace_bytes, 0);
    EXPECT_EQ(measured->replays, longest > 1024 ? 10 : 5) << "as prepare_replays captures";
    EXPECT_EQ(taped.keys(), 0u);
  }
  taped.fails_in = 2;
  EXPECT_FALSE(measure_step_memory(*loaded.backend, *loaded.model, options, 40).ok());
}

// A device that fails in its third step: that step and all later ones are errors, and nothing waits.
TEST_P(ReplayTest, StepOfAFailedDeviceIsAnError) {
  auto tape = std::make_unique<TapeBackend>(cpu());
  TapeBackend& taped = *tape;
  Loaded loaded = load(DG_SOURCE_DIR "/tests/golden/" + GetParam(), std::move(tape));
  taped.fails_in = 3;
  BlockTable blocks(loaded.executor->kv());
  const std::vector<int32_t> ids = {1, 2, 3};
  for (int step = 0; step < 5; step++) {
    const StepSequence sequence{.ids = ids, .first_position = 3 * step, .blocks = &blocks};
    const auto result = loaded.executor->run({&sequence, 1});
    EXPECT_EQ(result.ok(), step < 2) << step;
    if (!result.ok()) {
      EXPECT_EQ(result.error().kind, ErrorKind::kDevice);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ReplayTest, ::testing::Values("qwen2_tied", "deepseek_v3_fp8"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace dg
