// Steps that verify drafts and passes of the MTP module, captured and replayed: the same bits as op by op, whatever each sequence has
// drafted and accepted, and the same text.
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <set>

#include "engine/engine.h"
#include "tape_backend.h"

namespace dg {
namespace {

const std::string kMiniR1 = DG_SOURCE_DIR "/models/mini-r1", kQwen = DG_SOURCE_DIR "/tests/golden/qwen2_tied";

ExecutorOptions with_drafts(int64_t drafts, bool mtp) {
  return {.kv_tokens = 4096,
          .max_step_tokens = 64,
          .max_step_sequences = 11,
          .max_logit_rows = 11 * (1 + drafts),
          .max_decode_rows = 11 * (1 + drafts),
          .draft_tokens = drafts,
          .mtp_drafts = mtp};
}

std::unique_ptr<TapeBackend> tape() { return std::make_unique<TapeBackend>(cpu()); }
TapeBackend& tape_of(Loaded& l, size_t rank = 0) { return static_cast<TapeBackend&>(*l.ranks[rank].backend); }

void append(std::vector<float>& all, const float* x, int64_t n) { all.insert(all.end(), x, x + n); }

using DraftCount = std::function<int(int step, int sequence)>;

// Logits and hidden states of `steps` steps of `count` sequences that verify drafts and accept some, as ModelStepRunner runs them. With
// the MTP module behind each step, `again` + 1 passes deep. `passes` counts the passes without prompts.
std::vector<float> speculate(Executor& executor, int count, int steps, const DraftCount& drafts, int again, int* passes) {
  std::vector<BlockTable> tables;
  std::vector<int64_t> at;
  std::vector<int32_t> prompt;
  for (int i = 0; i < 40; i++) prompt.push_back((i * 37 + 11) % 300);
  std::vector<float> all;
  for (int i = 0; i < count; i++) {
    tables.emplace_back(executor.kv());
    at.push_back(5 + 3 * i);
    StepSequence step{.ids = std::span(prompt).first(static_cast<size_t>(at.back())), .blocks = &tables.back()};
    auto result = executor.run({&step, 1});
    EXPECT_TRUE(result.ok());
    step.logits = LogitsWanted::kNone;
    if (again >= 0) {
      EXPECT_TRUE(executor.run_mtp({&step, 1}, result->hidden).ok());
    }
  }
  for (int s = 0; s < steps; s++) {
    std::vector<std::vector<int32_t>> ids(static_cast<size_t>(count));
    std::vector<StepSequence> sequences;
    std::vector<int64_t> accepted;
    for (int i = 0; i < count; i++) {
      const auto k = static_cast<size_t>(i);
      const int drafted = drafts(s, i);
      for (int j = 0; j <= drafted; j++) ids[k].push_back((s * 13 + i * 5 + j * 7) % 300);
      accepted.push_back((s + i) % (drafted + 1));
      sequences.push_back({.ids = ids[k],
                           .first_position = at[k],
                           .blocks = &tables[k],
                           .decode = true,
                           .logits = drafted > 0 ? LogitsWanted::kAll : LogitsWanted::kLast});
    }
    auto result = executor.run(sequences);
    EXPECT_TRUE(result.ok());
    ++*passes;
    append(all, result->logits.f32(), result->logits.elements());
    for (size_t k = 0; k < sequences.size(); k++) {
      const Tensor hidden = executor.read_hidden(*result, result->first_hidden[k], static_cast<int64_t>(ids[k].size()));
      append(all, hidden.f32(), hidden.elements());
    }
    if (again >= 0) {
      std::vector<size_t> wanting;
      for (size_t k = 0; k < sequences.size(); k++) {
        const bool wants = s % 5 != 4 && (s + static_cast<int>(k)) % 4 != 3;  // in some steps nobody
        sequences[k].logits = wants ? LogitsWanted::kRow : LogitsWanted::kNone;
        sequences[k].logit_row = accepted[k];
        if (wants) wanting.push_back(k);
      }
      auto draft = executor.run_mtp(sequences, result->hidden);
      EXPECT_TRUE(draft.ok());
      ++*passes;
      EXPECT_EQ(draft->logits.rows(), static_cast<int64_t>(wanting.size()));
      append(all, draft->logits.f32(), draft->logits.elements());
      for (int depth = 0; depth < again && !wanting.empty(); depth++) {
        std::vector<StepSequence> next;
        std::vector<int32_t> rows, next_ids;
        next_ids.reserve(wanting.size());
        std::vector<size_t> still;
        for (size_t i = 0; i < wanting.size(); i++) {
          if (depth > 0 && i % 3 == 2) continue;  // a chain that has ended
          const size_t k = wanting[i];
          still.push_back(k);
          rows.push_back(static_cast<int32_t>(depth == 0 ? draft->first_hidden[k] + accepted[k] : draft->first_hidden[i]));
          next_ids.push_back(static_cast<int32_t>((17 * k + static_cast<size_t>(depth)) % 300));
          next.push_back(
              {.ids = {&next_ids.back(), 1}, .first_position = at[k] + 1 + accepted[k] + depth, .blocks = &tables[k], .decode = true});
        }
        wanting = still;
        draft = executor.run_mtp_again(next, draft->hidden, rows);
        EXPECT_TRUE(draft.ok());
        ++*passes;
        append(all, draft->logits.f32(), draft->logits.elements());
      }
    }
    for (size_t k = 0; k < at.size(); k++) at[k] += 1 + accepted[k];
  }
  return all;
}

struct Case {
  const char* name;
  std::string model;
  int drafts;
  bool mtp;
};

class DraftReplay : public ::testing::TestWithParam<Case> {};

// Full, uneven, few and no drafts, in batches of several sizes that take turns.
TEST_P(DraftReplay, SameBitsAsOpByOp) {
  const Case& c = GetParam();
  const ExecutorOptions options = with_drafts(c.drafts, c.mtp);
  Loaded plain = load(c.model, cpu(), options), replaying = load(c.model, tape(), options);
  TapeBackend& taped = tape_of(replaying);
  int64_t last = 0;
  const auto shapes = static_cast<int64_t>(replay_shapes(options, 1024).size());
  ASSERT_TRUE(replaying.executor
                  ->prepare_replays(1024,
                                    [&](int64_t done, int64_t all) {
                                      EXPECT_EQ(done, ++last);
                                      EXPECT_EQ(all, shapes);
                                    })
                  .ok());
  EXPECT_EQ(last, shapes);
  EXPECT_EQ(taped.keys(), static_cast<size_t>(shapes));
  const std::pair<const char*, DraftCount> patterns[] = {
      {"all have drafts", [&](int, int) { return c.drafts; }},
      {"uneven", [&](int s, int i) { return (s + 2 * i) % (c.drafts + 1); }},
      {"few", [&](int s, int i) { return i == s % 4 ? c.drafts : 0; }},
      {"now and then", [&](int s, int i) { return s % 3 == 0 ? (i + 1) % (c.drafts + 1) : 0; }},
  };
  for (int count : {1, 3, 11, 2, 9}) {
    for (const auto& [what, drafts] : patterns) {
      int passes = 0, none = 0;
      const int before = taped.replayed;
      const std::vector<float> found = speculate(*replaying.executor, count, 6, drafts, c.mtp ? c.drafts - 1 : -1, &passes);
      EXPECT_EQ(taped.replayed - before, passes) << count << ", " << what << ": a pass was issued op by op";
      EXPECT_EQ(found, speculate(*plain.executor, count, 6, drafts, c.mtp ? c.drafts - 1 : -1, &none)) << count << ", " << what;
      EXPECT_EQ(passes, none);
    }
  }
  EXPECT_EQ(taped.keys(), static_cast<size_t>(shapes)) << "nothing is captured later";
  EXPECT_EQ(replaying.executor->kv().free_blocks(), replaying.executor->kv().blocks());
}

// What was not captured at start is captured when it comes.
TEST_P(DraftReplay, SameBitsWithoutPreparation) {
  const Case& c = GetParam();
  const ExecutorOptions options = with_drafts(c.drafts, c.mtp);
  Loaded plain = load(c.model, cpu(), options), replaying = load(c.model, tape(), options);
  int passes = 0;
  const DraftCount drafts = [&](int s, int i) { return (s + i) % (c.drafts + 1); };
  for (int count : {3, 4, 3, 5})
    EXPECT_EQ(speculate(*replaying.executor, count, 5, drafts, c.mtp ? 0 : -1, &passes),
              speculate(*plain.executor, count, 5, drafts, c.mtp ? 0 : -1, &passes));
  EXPECT_GT(tape_of(replaying).replayed, 0);
}

TEST_P(DraftReplay, LargestStepsAreMeasured) {
  const Case& c = GetParam();
  Loaded l = load(c.model, tape(), with_drafts(c.drafts, c.mtp));
  tape_of(l).memory_ = {int64_t{1} << 40, int64_t{1} << 40};
  for (int64_t longest : {40, 1500}) {
    auto measured = measure_step_memory(*l.ranks[0].backend, *l.ranks[0].model, l.executor->options(), longest);
    ASSERT_TRUE(measured.ok());
    EXPECT_EQ(measured->replays, static_cast<int64_t>(replay_shapes(l.executor->options(), longest).size()));
    EXPECT_EQ(tape_of(l).keys(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, DraftReplay,
                         ::testing::Values(Case{"mtp1", kMiniR1, 1, true}, Case{"mtp3", kMiniR1, 3, true}, Case{"text3", kMiniR1, 3, false},
                                           Case{"qwen_text4", kQwen, 4, false}),
                         [](const auto& info) { return info.param.name; });

TEST(DraftReplayOfRanks, SameBitsAsOpByOp) {
  const ExecutorOptions options = with_drafts(2, true);
  Loaded plain = load_ranks(kMiniR1, 2, false, options), taped = load_ranks(kMiniR1, 2, true, options);
  ASSERT_TRUE(taped.executor->prepare_replays(1024, {}).ok());
  const size_t keys = tape_of(taped, 1).keys();
  for (int count : {2, 5}) {
    int passes = 0, none = 0;
    const int before = tape_of(taped, 1).replayed;
    const DraftCount drafts = [](int s, int i) { return (s + i) % 3; };
    EXPECT_EQ(speculate(*taped.executor, count, 4, drafts, 1, &passes), speculate(*plain.executor, count, 4, drafts, 1, &none));
    EXPECT_EQ(tape_of(taped, 1).replayed - before, passes);
  }
  EXPECT_EQ(tape_of(taped, 1).keys(), keys);
}

StepLayout layout_of(const ExecutorOptions& options, BlockTable& blocks, const std::vector<std::pair<int64_t, int64_t>>& sequences,
                     bool decode = true, int64_t longest = 4096) {
  static const std::vector<int32_t> ids(64, 1);
  std::vector<StepSequence> steps;
  for (auto [first, rows] : sequences)
    steps.push_back({.ids = std::span(ids).first(static_cast<size_t>(rows)), .first_position = first, .blocks = &blocks, .decode = decode});
  return choose_layout(options, steps, longest);
}

TEST(StepLayout, FollowsTheDrafts) {
  const ExecutorOptions options = with_drafts(3, true);
  BlockAllocator allocator(4);
  BlockTable b(allocator, 16);
  EXPECT_EQ(layout_of(options, b, {{9, 1}, {70, 1}, {3, 1}}), (StepLayout{.slices = 4, .width = 1, .longest = 1024}));
  EXPECT_EQ(layout_of(options, b, {{9, 4}, {70, 4}, {3, 4}}), (StepLayout{.slices = 4, .width = 4, .longest = 1024}));
  EXPECT_EQ(layout_of(options, b, {{9, 2}, {70, 3}, {3, 4}}), (StepLayout{.slices = 4, .width = 4, .longest = 1024})) << "9 of 16 rows";
  EXPECT_EQ(layout_of(options, b, {{9, 1}, {70, 3}, {3, 1}}), (StepLayout{.slices = 8, .width = 1, .longest = 1024, .split = true}))
      << "half the rows";
  EXPECT_FALSE(layout_of(options, b, {{9, 5}}).padded()) << "more than drafts and one";
  EXPECT_FALSE(layout_of(options, b, {{9, 1}}, false).padded()) << "a prompt";
  // At the edge of a class of contexts, the rows that fill up count too.
  EXPECT_EQ(layout_of(options, b, {{1020, 4}}).longest, 1024);
  EXPECT_EQ(layout_of(options, b, {{1021, 3}}), (StepLayout{.slices = 1, .width = 4, .longest = 2048}));
  EXPECT_EQ(layout_of(options, b, {{1021, 3}}, true, 1024), (StepLayout{.slices = 4, .width = 1, .longest = 1024, .split = true}))
      << "the wide one was not captured";
  EXPECT_FALSE(layout_of(options, b, {{1022, 3}}, true, 1024).padded());
  // Only as many slices as logits and rows of a step there are.
  ExecutorOptions narrow = options;
  narrow.max_logit_rows = 11;
  EXPECT_EQ(layout_of(narrow, b, {{9, 4}, {9, 4}}).slices, 2);
  EXPECT_FALSE(layout_of(narrow, b, {{9, 4}, {9, 4}, {9, 4}}).padded());
  std::set<uint64_t> keys;
  const std::vector<ReplayShape> shapes = replay_shapes(options, 5000);
  for (const ReplayShape& shape : shapes) keys.insert(shape.key());
  EXPECT_EQ(keys.size(), shapes.size());
  EXPECT_EQ(shapes.size(), 4u * 5 * 6) << "four classes, 1, 2, 4, 8, 11; main twice, module with drafts, without, for its cache, again";
  for (size_t i = 1; i < shapes.size(); i++) EXPECT_LE(shapes[i].layout.longest, shapes[i - 1].layout.longest);
}

class Answer : public RequestListener {
 public:
  void on_delta(const OutputDelta& delta) override {
    for (const TokenInfo& t : delta.tokens) ids.push_back(t.id);
  }
  void on_end(const RequestUsage&, const Error* e) override {
    std::lock_guard lock(mutex_);
    if (e) error = e->message;
    ended_ = true;
    done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return ended_; });
  }
  std::vector<int32_t> ids;
  std::string error;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  bool ended_ = false;
};

// Answers of several requests at once, some of which want no drafts.
std::vector<std::vector<int32_t>> answers(Executor& executor, const EngineOptions& options, EngineStats* stats) {
  auto tokenizer = Tokenizer::load(kMiniR1);
  CHECK(tokenizer.ok());
  auto engine = Engine::create(executor, **tokenizer, options);
  CHECK(engine.ok()) << engine.error().message;
  std::vector<std::shared_ptr<Answer>> list;
  for (int i = 0; i < 9; i++) {
    EngineRequest request;
    request.prompt = (*tokenizer)->encode("What is " + std::to_string(11 + 7 * i) + " + 30? It is 1 2 3 4 1 2 3 4 1 2 3", {});
    request.sampling.temperature = i % 3 == 2 ? 0.8 : 0;
    request.sampling.seed = static_cast<uint64_t>(i);
    if (i % 4 == 1) request.sampling.repetition_penalty = 1.2;
    request.max_tokens = 20 + 6 * i;
    request.speculate = i % 5 != 4;
    list.push_back(std::make_shared<Answer>());
    CHECK((*engine)->submit(std::move(request), list.back()).ok());
  }
  std::vector<std::vector<int32_t>> ids;
  for (auto& answer : list) {
    answer->wait();
    EXPECT_EQ(answer->error, "");
    ids.push_back(answer->ids);
  }
  *stats = (*engine)->stats();
  return ids;
}

TEST(EngineReplays, TextIsTheSameWithDrafts) {
  EngineOptions engine{.max_model_len = 512, .max_step_tokens = 64, .max_running = 11, .deterministic = true};
  EngineStats stats;
  Loaded plain = load(kMiniR1, cpu(), with_drafts(3, false));
  const auto expected = answers(*plain.executor, engine, &stats);
  for (const auto& ids : expected) EXPECT_GE(ids.size(), 20u);
  for (auto [method, drafts, adaptive] : {std::tuple{SpeculationMethod::kMtp, 1, false},
                                          {SpeculationMethod::kMtp, 1, true},
                                          {SpeculationMethod::kMtp, 3, false},
                                          {SpeculationMethod::kNgram, 3, false}}) {
    const bool mtp = method == SpeculationMethod::kMtp;
    Loaded l = load(kMiniR1, tape(), with_drafts(drafts, mtp));
    ASSERT_TRUE(l.executor->prepare_replays(512, {}).ok());
    TapeBackend& taped = tape_of(l);
    const size_t keys = taped.keys();
    const int before = taped.replayed;
    engine.speculation = method, engine.draft_tokens = drafts, engine.adaptive_speculation = adaptive;
    EXPECT_EQ(answers(*l.executor, engine, &stats), expected) << (mtp ? "mtp " : "text ") << drafts;
    EXPECT_EQ(taped.keys(), keys);
    EXPECT_GT(stats.accepted_tokens, 0u);
    EXPECT_GT(static_cast<uint64_t>(taped.replayed - before), stats.steps / 2 * (mtp ? 2 : 1)) << stats.steps << " steps";
  }
}

}  // namespace
}  // namespace dg
