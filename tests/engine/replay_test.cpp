// Executor on a backend that captures and replays steps and whose memory the host must not touch: the CPU behind a tape of its ops.
// What is replayed is exactly what was issued, with the sequences of begin_step(), as a CUDA graph does it.
#include <gtest/gtest.h>

#include <map>

#include "backends/cpu/cpu.h"
#include "engine/executor.h"
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
  bool picks_rows() const override { return true; }
  bool supports(const Format& format) const override { return inner_->supports(format); }
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override { return inner_->prepared_bytes(format, out, in); }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override { inner_->prepare(rows, first, out, to); }

  bool replays() const override { return true; }
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
      if constexpr (requires { op.scratch->mark(); }) mark = op.scratch ? op.scratch->mark() : 0;
      recording_->push_back([this, method, op, mark] {
        Op copy = op;
        if constexpr (requires { copy.scratch->mark(); })
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

// Behind a replayed and padded step too, only the rows of sequences are picked.
TEST_P(ReplayTest, RowsOfReplayedStepsArePicked) {
  Loaded replaying = load(DG_SOURCE_DIR "/tests/golden/" + GetParam(), std::make_unique<TapeBackend>(cpu()));
  Executor& executor = *replaying.executor;
  const std::vector<int32_t> prompt = {1, 5, 9, 2, 7};
  std::vector<BlockTable> tables;
  for (int i = 0; i < 3; i++) tables.emplace_back(executor.kv());
  const SamplingParams greedy;
  const DescribeRows describe = [&](const StepResult& result, DevicePicks& picks) {
    for (size_t i = 0; i < result.first_row.size(); i++)
      if (i != 1) picks.add(result.first_row[i], {.params = &greedy, .logprobs = 3});
  };
  for (int step = 0; step < 4; step++) {
    std::vector<StepSequence> sequences;
    for (BlockTable& table : tables)
      sequences.push_back(
          step == 0 ? StepSequence{.ids = prompt, .blocks = &table}
                    : StepSequence{.ids = std::span(prompt).first(1), .first_position = 4 + step, .blocks = &table, .decode = true});
    auto result = executor.run(sequences, describe);
    ASSERT_TRUE(result.ok());
    for (int64_t i = 0; i < 3; i++) {
      ASSERT_EQ(result->picked(i) != nullptr, i != 1);
      if (i == 1) continue;
      const PickedRow& picked = *result->picked(i);
      ASSERT_EQ(picked.ids.size(), 3u);
      const int64_t row[] = {i};
      executor.read_logits(*result, row);
      const std::span<const float> logits(result->row(i), static_cast<size_t>(picked.vocab));
      EXPECT_EQ(picked.ids[0], argmax(logits));
      EXPECT_EQ(picked.header.max, logits[static_cast<size_t>(picked.ids[0])]);
      EXPECT_EQ(picked.logits[2], logits[static_cast<size_t>(picked.ids[2])]);
    }
    EXPECT_EQ(argmax({result->row(1), static_cast<size_t>(result->picked(0)->vocab)}), result->picked(0)->ids[0]) << "equal sequences";
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ReplayTest, ::testing::Values("qwen2_tied", "deepseek_v3_fp8"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace dg
