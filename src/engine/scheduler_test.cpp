// The scheduler alone: no model, no threads. A step is simulated by taking the plan at its word: rows become computed, every
// item that ends its sequence gives a token.
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <random>

namespace dg {
namespace {

constexpr int kBlock = 4;

struct World {
  BlockAllocator allocator;
  Scheduler scheduler;
  StepPlan plan;
  uint64_t next_handle = 1;
  std::vector<uint64_t> ended;
  std::vector<std::unique_ptr<RequestState>> gone;  // of the last step: tests look at its plan

  World(int64_t blocks, SchedulerOptions options) : allocator(blocks), scheduler(allocator, kBlock, options) {}

  RequestState& add(std::vector<int32_t> prompt, int64_t max_tokens, std::string tenant = "", int priority = 0, int n = 1) {
    EngineRequest request;
    request.prompt = std::move(prompt);
    request.max_tokens = max_tokens;
    request.tenant = std::move(tenant);
    request.priority = priority;
    request.n = n;
    auto checked = scheduler.check(request);
    CHECK(checked.ok()) << checked.error().message;
    auto state = std::make_unique<RequestState>();
    state->handle = next_handle++;
    state->request = std::move(request);
    return scheduler.add(std::move(state));
  }

  // Runs one step; `accept` of each item's drafts are right. Returns the rows that ran.
  int64_t step(int accept = 0) {
    gone.clear();
    scheduler.plan(plan);
    int64_t rows = 0, decode_rows = 0;
    for (const StepItem& item : plan.items) decode_rows += item.decode ? item.rows : 0;
    EXPECT_LE(decode_rows, scheduler.options().max_logit_rows) << "the arena was made for so many generation rows";
    std::vector<RequestState*> done;
    for (const StepItem& item : plan.items) {
      Sequence& s = *item.sequence;
      rows += item.rows;
      EXPECT_EQ(s.state, Sequence::State::kRunning);
      EXPECT_EQ(item.begin, s.computed);
      EXPECT_LE(item.begin + item.rows, static_cast<int64_t>(s.blocks.blocks().size()) * kBlock);
      int good = std::min(accept, item.drafts);
      if (item.wants_token)
        for (int i = 0; i <= good; i++) s.ids.push_back(static_cast<int32_t>(1000 + s.generated()));
      scheduler.advance(s, item.begin + item.rows - item.drafts + good);
      if (item.wants_token && s.generated() >= s.request.request.max_tokens && scheduler.finish(s)) done.push_back(&s.request);
    }
    for (RequestState* r : done) {
      ended.push_back(r->handle);
      gone.push_back(scheduler.remove(*r));
    }
    scheduler.check_integrity();
    return rows;
  }
};

std::vector<int32_t> numbers(int count, int32_t first = 0) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; i++) ids.push_back(first + i);
  return ids;
}

SchedulerOptions small() { return {.max_model_len = 64, .max_step_tokens = 16, .max_running = 4, .max_logit_rows = 8}; }

TEST(Scheduler, RefusesWhatCanNeverRunAndNamesTheNumbers) {
  World w(8, small());  // 32 tokens
  EngineRequest request;
  EXPECT_FALSE(w.scheduler.check(request).ok());
  request.prompt = numbers(64);
  EXPECT_NE(w.scheduler.check(request).error().message.find("64 tokens"), std::string::npos);
  request.prompt = numbers(20);
  request.max_tokens = 50;
  EXPECT_NE(w.scheduler.check(request).error().message.find("at most 44"), std::string::npos) << w.scheduler.check(request).error().message;
  request.max_tokens = 20;  // 40 tokens: 10 blocks of 4
  EXPECT_NE(w.scheduler.check(request).error().message.find("10 KV cache blocks"), std::string::npos);
  request.max_tokens = 12;
  EXPECT_TRUE(w.scheduler.check(request).ok());
  request.n = 5;
  EXPECT_FALSE(w.scheduler.check(request).ok());
}

TEST(Scheduler, DecodesFirstThenPromptsInChunksWithinTheBudget) {
  World w(64, small());
  w.add(numbers(3), 10);
  EXPECT_EQ(w.step(), 3);
  w.add(numbers(40, 100), 4);
  EXPECT_EQ(w.step(), 16);  // one generated row and 15 of the prompt
  ASSERT_EQ(w.plan.items.size(), 2u);
  EXPECT_TRUE(w.plan.items[0].decode && w.plan.items[0].rows == 1);
  EXPECT_FALSE(w.plan.items[1].decode);
  EXPECT_EQ(w.plan.items[1].rows, 15);
  EXPECT_FALSE(w.plan.items[1].wants_token);
  EXPECT_EQ(w.step(), 16);
  EXPECT_EQ(w.step(), 1 + 10);
  EXPECT_TRUE(w.plan.items[1].wants_token);
  EXPECT_EQ(w.step(), 2);
}

TEST(Scheduler, PrefixCacheIsSharedInsideATenantOnly) {
  World w(64, small());
  w.add(numbers(16), 1, "a");
  while (w.scheduler.requests() > 0) w.step();
  RequestState& same = w.add(numbers(16), 1, "a");
  EXPECT_EQ(w.step(), 4);  // three whole blocks come from the cache: the last token must be computed
  EXPECT_EQ(w.ended.size(), 2u);
  (void)same;
  w.add(numbers(16), 1, "b");
  EXPECT_EQ(w.step(), 16);
}

TEST(Scheduler, RequestsBehindARunningPromptShareWhatIsComputed) {
  World w(64, small());
  w.add(numbers(32), 4, "a");
  EXPECT_EQ(w.step(), 16);
  w.add(numbers(32), 4, "a");
  EXPECT_EQ(w.step(), 16);  // the rest of the first; nothing is left for the second
  EXPECT_EQ(w.step(), 1 + 4);
}

TEST(Scheduler, PreemptsTheLastInRunOrderAndFinishesEverything) {
  SchedulerOptions options = small();
  options.prefix_cache = false;
  World w(8, options);  // 32 tokens for two requests that need 24 each
  w.add(numbers(8), 16, "a", 0);
  w.add(numbers(8, 50), 16, "a", 1);
  int steps = 0;
  while (w.scheduler.requests() > 0 && steps++ < 200) {
    w.step();
    // The one with the better priority is never the victim.
    for (const StepItem& item : w.plan.items) {
      bool again = item.begin < item.sequence->prompt_tokens && item.sequence->generated() > 1;
      EXPECT_TRUE(!again || item.sequence->request.request.priority == 1);
    }
  }
  EXPECT_EQ(w.ended, (std::vector<uint64_t>{1, 2}));
  EXPECT_GE(w.scheduler.preemptions(), 1u);
  EXPECT_EQ(w.allocator.free_blocks(), 8);
}

TEST(Scheduler, ReplaysGeneratedTokensAsGeneratedRows) {
  SchedulerOptions options = small();
  options.prefix_cache = false;
  World w(8, options);
  w.add(numbers(8), 16, "", 0);
  w.add(numbers(8, 50), 16, "", 1);
  bool replayed = false;
  for (int i = 0; i < 200 && w.scheduler.requests() > 0; i++) {
    w.step();
    for (const StepItem& item : w.plan.items) {
      bool behind_prompt = item.begin >= item.sequence->prompt_tokens;
      EXPECT_EQ(item.decode, behind_prompt);
      EXPECT_TRUE(behind_prompt || item.begin + item.rows <= item.sequence->prompt_tokens);
      replayed |= behind_prompt && item.rows > 1;
    }
  }
  EXPECT_TRUE(replayed);
}

TEST(Scheduler, FairShareBetweenTenants) {
  SchedulerOptions options = small();
  options.max_running = 1;
  World w(64, options);
  for (int i = 0; i < 6; i++) w.add(numbers(8, i * 100), 8, "greedy");
  w.add(numbers(8, 900), 8, "modest");
  std::vector<std::string> order;
  while (w.scheduler.requests() > 0) {
    size_t before = w.ended.size();
    std::string tenant;
    w.scheduler.plan(w.plan);
    ASSERT_FALSE(w.plan.items.empty());
    tenant = w.plan.items[0].sequence->request.request.tenant;
    w.step();
    if (w.ended.size() > before) order.push_back(tenant);
  }
  ASSERT_EQ(order.size(), 7u);
  EXPECT_EQ(order[1], "modest");  // second, although six others came before
}

TEST(Scheduler, PriorityGoesFirst) {
  SchedulerOptions options = small();
  options.max_running = 1;
  World w(64, options);
  w.add(numbers(4), 2, "", 5);
  w.add(numbers(4, 10), 2, "", 0);
  w.add(numbers(4, 20), 2, "", -3);
  while (w.scheduler.requests() > 0) w.step();
  EXPECT_EQ(w.ended, (std::vector<uint64_t>{3, 2, 1}));
}

TEST(Scheduler, AnswersOfOneRequestShareThePromptsBlocks) {
  for (bool cache : {true, false}) {
    SchedulerOptions options = small();
    options.prefix_cache = cache;
    World w(64, options);
    w.add(numbers(13), 3, "", 0, 4);
    EXPECT_EQ(w.step(), 13);
    EXPECT_EQ(w.step(), 1 + 3);  // the last row of the prompt for each of the others
    EXPECT_EQ(64 - w.allocator.free_blocks(), 3 + 4) << "three shared blocks and one of each answer";
    while (w.scheduler.requests() > 0) w.step();
  }
}

TEST(Scheduler, DraftsTakeOnlyWhatIsLeft) {
  World w(64, small());
  RequestState& r = w.add(numbers(3), 10);
  w.step();
  r.sequences[0]->drafts = {7, 8, 9};
  EXPECT_EQ(w.step(2), 4);
  EXPECT_EQ(r.sequences[0]->generated(), 4);
  EXPECT_EQ(r.sequences[0]->remaining(), 1);
  r.sequences[0]->drafts = {1, 2, 3, 4, 5, 6, 7, 8, 9};  // 6 tokens are left: at most 5 drafts
  EXPECT_EQ(w.step(0), 6);
}

TEST(Scheduler, PausedRequestsKeepTheirBlocksAndGetNoRows) {
  World w(64, small());
  RequestState& r = w.add(numbers(3), 10);
  w.step();
  r.paused = true;
  EXPECT_EQ(w.step(), 0);
  EXPECT_GT(w.allocator.used_blocks(), 0);
  r.paused = false;
  EXPECT_EQ(w.step(), 1);
}

TEST(Scheduler, PausedRequestsMakeRoomForNewcomers) {
  SchedulerOptions options = small();
  options.max_running = 2;
  World w(12, options);
  RequestState& slow = w.add(numbers(8), 20);
  RequestState& other = w.add(numbers(8, 100), 20);
  w.step();
  slow.paused = other.paused = true;
  w.add(numbers(20, 200), 4);  // needs a place and more blocks than are free
  EXPECT_GT(w.step(), 0);
  while (w.scheduler.requests() > 2) ASSERT_GT(w.step(), 0);
  EXPECT_EQ(w.step(), 0);
  slow.paused = other.paused = false;
  for (int i = 0; i < 200 && w.scheduler.requests() > 0; i++) w.step();
  EXPECT_EQ(w.ended.size(), 3u);
}

TEST(Scheduler, DeadlinesExpireInOrder) {
  World w(64, small());
  auto t0 = EngineClock::time_point{} + std::chrono::hours(1);
  auto add = [&](int after_s) {
    EngineRequest request;
    request.prompt = numbers(3);
    request.max_tokens = 5;
    request.deadline = t0 + std::chrono::seconds(after_s);
    auto state = std::make_unique<RequestState>();
    state->handle = w.next_handle++;
    state->request = request;
    w.scheduler.add(std::move(state));
  };
  add(5), add(2), add(9);
  std::vector<RequestState*> expired;
  w.scheduler.expired(t0 + std::chrono::seconds(1), expired);
  EXPECT_TRUE(expired.empty());
  w.scheduler.expired(t0 + std::chrono::seconds(5), expired);
  ASSERT_EQ(expired.size(), 2u);
  for (RequestState* r : expired) w.scheduler.remove(*r);
  EXPECT_EQ(w.scheduler.next_deadline(), t0 + std::chrono::seconds(9));
}

TEST(Scheduler, RandomOperationsKeepTheBooks) {
  for (uint32_t seed = 1; seed <= 12; seed++) {
    std::mt19937 random(seed);
    auto up_to = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
    SchedulerOptions options = small();
    options.prefix_cache = seed % 3 != 0;
    options.deterministic = seed % 2 == 0;
    options.max_prefill_chunk = seed % 4 == 1 ? 5 : 0;
    World w(12 + up_to(20), options);
    std::vector<uint64_t> live;
    int64_t added = 0;
    for (int i = 0; i < 1500; i++) {
      int what = up_to(10);
      if (what < 3 && w.scheduler.requests() < 12) {
        int prompt = 1 + up_to(30);
        std::vector<int32_t> ids;
        for (int k = 0; k < prompt; k++) ids.push_back(k % 7 == 0 ? up_to(2) : 0);  // many common prefixes
        EngineRequest request;
        request.prompt = ids;
        request.max_tokens = 1 + up_to(16);
        request.n = 1 + up_to(3);
        request.tenant = std::string(1, static_cast<char>('a' + up_to(3)));
        request.priority = up_to(3);
        request.prompt_logprobs = up_to(6) == 0 ? 0 : -1;
        if (!w.scheduler.check(request).ok()) continue;
        auto state = std::make_unique<RequestState>();
        state->handle = w.next_handle++;
        state->request = request;
        live.push_back(w.scheduler.add(std::move(state)).handle);
        added++;
      } else if (what == 3 && !live.empty()) {
        size_t at = static_cast<size_t>(up_to(static_cast<int>(live.size())));
        if (RequestState* r = w.scheduler.find(live[at])) w.scheduler.remove(*r), w.ended.push_back(live[at]);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
      } else if (what == 4 && !live.empty()) {
        if (RequestState* r = w.scheduler.find(live[static_cast<size_t>(up_to(static_cast<int>(live.size())))])) r->paused = !r->paused;
      } else if (what == 5 && up_to(20) == 0) {
        w.scheduler.drop_cache();
      } else {
        for (uint64_t handle : live)
          if (RequestState* r = w.scheduler.find(handle))
            for (auto& s : r->sequences)
              if (s->state == Sequence::State::kRunning && s->decoding()) s->drafts.assign(static_cast<size_t>(up_to(4)), 5);
        w.step(up_to(4));
      }
      w.scheduler.check_integrity();
    }
    w.scheduler.for_each([](RequestState& r) { r.paused = false; });
    for (int i = 0; i < 5000 && w.scheduler.requests() > 0; i++) w.step();
    EXPECT_EQ(w.scheduler.requests(), 0) << "seed " << seed;
    EXPECT_EQ(static_cast<int64_t>(w.ended.size()), added);
    EXPECT_EQ(w.allocator.free_blocks() + w.allocator.cached_blocks(), w.allocator.blocks());
  }
}

}  // namespace
}  // namespace dg
