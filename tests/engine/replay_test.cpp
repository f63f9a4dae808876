// Executor on a backend that captures and replays steps and whose memory the host must not touch. And on several such backends that
// compute together, with failures. With drafts: replay_drafts_test.cpp.
#include <gtest/gtest.h>

#include <cmath>

#include "tape_backend.h"

namespace dg {
namespace {

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
  auto prepared = replaying.executor->prepare_replays(2048, [&](int64_t done, int64_t all) {
    EXPECT_EQ(done, ++last);
    EXPECT_EQ(all, 10);
  });
  EXPECT_TRUE(prepared.ok());
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

// From the end of a pass until the device has the next; not where the caller says that there was nothing to do.
TEST_P(ReplayTest, WaitsForTheHostAreMeasured) {
  using std::chrono::milliseconds, std::chrono::steady_clock;
  Loaded loaded = load(DG_SOURCE_DIR "/tests/golden/" + GetParam(), std::make_unique<TapeBackend>(cpu()));
  Executor& executor = *loaded.executor;
  BlockTable blocks(executor.kv());
  const std::vector<int32_t> ids = {1, 2, 3};
  for (int step = 0; step < 6; step++) {
    const bool prompt = step == 0;
    const StepSequence sequence{
        .ids = std::span(ids).first(prompt ? 3 : 1), .first_position = prompt ? 0 : 2 + step, .blocks = &blocks, .decode = !prompt};
    if (step == 4) executor.rest();
    const auto begin = steady_clock::now();
    ASSERT_TRUE(executor.run({&sequence, 1}).ok());
    const double took = std::chrono::duration<double>(steady_clock::now() - begin).count();
    if (prompt || step == 4) {
      EXPECT_EQ(executor.waited_s(), 0) << step;
    } else {
      EXPECT_GE(executor.waited_s(), 0.03) << step;
      EXPECT_LT(executor.waited_s() - took, 10) << step;
    }
    std::this_thread::sleep_for(milliseconds(30));
  }
}

// They stay within the arena that was measured for them and touch only the blocks there are; nothing captured is left.
TEST_P(ReplayTest, LargestStepsRunBeforeThereIsACache) {
  auto tape = std::make_unique<TapeBackend>(cpu());
  TapeBackend& taped = *tape;
  Loaded loaded = load(DG_SOURCE_DIR "/tests/golden/" + GetParam(), std::move(tape));
  const ExecutorOptions options = loaded.executor->options();
  for (int64_t longest : {40, 1500}) {  // shorter than a step's rows, and longer
    taped.memory_ = {};
    auto none = measure_step_memory(*loaded.ranks[0].backend, *loaded.ranks[0].model, options, longest);
    ASSERT_TRUE(none.ok());
    EXPECT_EQ(none->replays, 0);
    taped.memory_ = {int64_t{1} << 40, int64_t{1} << 40};
    auto measured = measure_step_memory(*loaded.ranks[0].backend, *loaded.ranks[0].model, options, longest);
    ASSERT_TRUE(measured.ok());
    EXPECT_EQ(measured->workspace_bytes, 0);
    EXPECT_EQ(measured->replays, longest > 1024 ? 10 : 5) << "as prepare_replays captures";
    EXPECT_EQ(taped.keys(), 0u);
  }
  taped.fails_in = 2;
  EXPECT_FALSE(measure_step_memory(*loaded.ranks[0].backend, *loaded.ranks[0].model, options, 40).ok());
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

TEST(ParallelExecutor, ReplaysOnEveryRankAndReadsLogitsFromDevices) {
  const std::string path = DG_SOURCE_DIR "/tests/golden/qwen2_tied";
  Loaded one = load(path, cpu()), plain = load_ranks(path, 2, false), taped = load_ranks(path, 2, true);
  auto prepared = taped.executor->prepare_replays(1024, {});
  ASSERT_TRUE(prepared.ok());
  for (int count : {1, 3, 11}) {
    const std::vector<float> expected = decode(*one.executor, count, 3), found = decode(*plain.executor, count, 3);
    EXPECT_EQ(decode(*taped.executor, count, 3), found) << "a device and a replay change nothing";
    ASSERT_EQ(found.size(), expected.size());
    double square = 0, worst = 0;
    for (size_t i = 0; i < found.size(); i++) {
      square += std::pow(expected[i], 2);
      worst = std::max(worst, static_cast<double>(std::fabs(found[i] - expected[i])));
    }
    EXPECT_LT(worst, 0.1 * std::sqrt(square / static_cast<double>(found.size())));
  }
  for (Loaded::Rank& rank : taped.ranks) {
    auto& tape = static_cast<TapeBackend&>(*rank.backend);
    EXPECT_EQ(tape.keys(), 5u);
    EXPECT_GE(tape.replayed, 9);
  }
}

// Forwards to another, but fails or comes late in the third norm.
class FailingBackend : public Backend {
 public:
  FailingBackend(std::unique_ptr<Backend> inner, LocalGroup& group, bool late) : inner_(std::move(inner)), group_(group), late_(late) {}
  const char* name() const override { return "failing"; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override { return inner_->allocate(bytes, purpose); }
  bool supports(const Format& format) const override { return inner_->supports(format); }
#define DG_FORWARD(method, Op) \
  void method(const Op& op) override { forward(&Backend::method, op); }
  DG_OPS(DG_FORWARD)
#undef DG_FORWARD

 private:
  template <class Op>
  void forward(void (Backend::*method)(const Op&), const Op& op) {
    if (std::is_same_v<Op, AddRmsNorm> && ++norms_ == 3) {
      if (late_) std::this_thread::sleep_for(std::chrono::milliseconds(600));
      else group_.fail(1, resource_error("out of memory"));
    }
    (inner_.get()->*method)(op);
  }
  std::unique_ptr<Backend> inner_;
  LocalGroup& group_;
  bool late_;
  int norms_ = 0;
};

// Rank 1 fails in the middle of a step, or does not come in time: the step fails on all, later ones at once.
TEST(ParallelExecutor, AFailingOrMissingRankFailsTheStep) {
  for (bool late : {false, true}) {
    auto group = std::make_unique<LocalGroup>(3, late ? std::chrono::milliseconds(200) : std::chrono::milliseconds(30000));
    std::vector<std::unique_ptr<Backend>> backends;
    for (int r = 0; r < 3; r++) backends.push_back(cpu(group.get(), r));
    backends[1] = std::make_unique<FailingBackend>(std::move(backends[1]), *group, late);
    Loaded l = load(DG_SOURCE_DIR "/tests/golden/deepseek_v3", std::move(group), std::move(backends));
    BlockTable blocks(l.executor->kv());
    const std::vector<int32_t> ids = {1, 2, 3};
    const StepSequence step{.ids = ids, .blocks = &blocks};
    const auto begin = std::chrono::steady_clock::now();
    for (int again = 0; again < 2; again++) {
      auto result = l.executor->run({&step, 1});
      ASSERT_FALSE(result.ok());
      EXPECT_EQ(result.error().kind, ErrorKind::kDevice) << "the engine gives up";
      EXPECT_NE(result.error().message.find(late ? "waited 0.2 s for rank" : "rank 1 of 3: out of memory"), std::string::npos)
          << result.error().message;
    }
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ReplayTest, ::testing::Values("qwen2_tied", "deepseek_v3_fp8"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace dg
