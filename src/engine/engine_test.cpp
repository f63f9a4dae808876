// The engine with a step runner that computes nothing: what listeners hear, and that everything is given back.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <random>
#include <thread>

#include "engine/sequence.h"

namespace dg {
namespace {

using namespace std::chrono_literals;

// The next token is a function of the sequence's length and seed; drafts are right while they follow the same rule.
class CountingRunner : public StepRunner {
 public:
  std::atomic<int64_t> steps{0}, following{0};
  std::atomic<int> fail_at{-1};
  ErrorKind fail_as = ErrorKind::kDevice;
  std::chrono::microseconds step_time{0};
  int32_t broken_token = -1;  // prompts that begin with this give logits that are not numbers

  static int32_t token(const Sequence& s, int64_t length) {
    return 300 + static_cast<int32_t>((static_cast<uint64_t>(length) * 7 + s.seed) % 100);
  }

  void hold(bool held) {
    {
      std::lock_guard lock(mutex_);
      held_ = held;
    }
    released_.notify_all();
  }

  void run(const StepPlan& plan, StepResults& results) override {
    {
      std::unique_lock lock(mutex_);
      released_.wait(lock, [&] { return !held_; });
    }
    if (step_time > 0us) std::this_thread::sleep_for(step_time);
    results.error.reset();
    results.waited_s = plan.follows ? 0.25 : 0;
    following += plan.follows;
    results.items.resize(std::max(results.items.size(), plan.items.size()));
    if (steps++ == fail_at) results.error = Error{fail_as, "the device is gone"};
    for (size_t i = 0; i < plan.items.size(); i++) {
      const StepItem& item = plan.items[i];
      ItemResult& r = results.items[i];
      const Sequence& s = *item.sequence;
      r.token_count = r.accepted = 0;
      r.end.reset();
      r.stop_id = -1;
      r.failed = item.wants_token && s.ids[0] == broken_token;
      r.drafts.clear();
      r.prompt_logprobs.clear();
      if (!item.wants_token || r.failed) continue;
      for (int j = 0; j <= item.drafts; j++) {
        int64_t length = static_cast<int64_t>(s.ids.size()) + j;
        if (r.tokens.size() <= static_cast<size_t>(j)) r.tokens.emplace_back();
        r.tokens[static_cast<size_t>(j)].id = token(s, length);
        r.token_count = j + 1;
        if (length + 1 - s.prompt_tokens >= s.request.request.max_tokens) {
          r.end = FinishReason::kLength;
          break;
        }
        if (j == item.drafts || s.drafts[static_cast<size_t>(j)] != token(s, length)) break;
        r.accepted++;
      }
      if (plan.draft)
        for (int j = 0; j < 2; j++) r.drafts.push_back(token(s, static_cast<int64_t>(s.ids.size()) + r.token_count + j));
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable released_;
  bool held_ = false;
};

class StepTimes : public EngineObserver {
 public:
  void on_step(int64_t, int64_t, double seconds, double waited) override { steps.push_back({seconds, waited}); }
  std::vector<std::pair<double, double>> steps;
};

class Collector : public RequestListener {
 public:
  void on_delta(const OutputDelta& delta) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(ended_) << "news after the end";
    text_ += delta.text;
    for (const TokenInfo& t : delta.tokens) ids_.push_back(t.id);
    if (delta.finished) reasons_.push_back(delta.reason), stop_text_ = delta.stop_text;
    if (hook) hook();
  }
  void on_end(const RequestUsage& usage, const Error* error) override {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(ended_) << "ended twice";
    ended_ = true;
    usage_ = usage;
    if (error) error_ = *error;
    done_.notify_all();
  }
  bool wait(std::chrono::milliseconds limit = 20s) {
    std::unique_lock lock(mutex_);
    return done_.wait_for(lock, limit, [&] { return ended_; });
  }
  bool ended() {
    std::lock_guard lock(mutex_);
    return ended_;
  }
  std::function<void()> hook;
  std::string text_, stop_text_;
  std::vector<int32_t> ids_;
  std::vector<FinishReason> reasons_;
  RequestUsage usage_;
  std::optional<Error> error_;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  bool ended_ = false;
};

class EngineTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto loaded = Tokenizer::load(std::string(DG_SOURCE_DIR) + "/models/mini-r1");
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = std::move(loaded).value();
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  void start(EngineOptions options, int64_t blocks = 256, EngineObserver* observer = nullptr) {
    allocator_ = std::make_unique<BlockAllocator>(blocks);
    EngineParts parts{.runner = &runner_,
                      .allocator = allocator_.get(),
                      .block_tokens = 4,
                      .vocab = 4096,
                      .max_logit_rows = 4 * options.max_running,
                      .tokenizer = tokenizer_.get()};
    engine_ = Engine::create(parts, options, observer);
  }
  static EngineOptions options() { return {.max_model_len = 512, .max_step_tokens = 64, .max_running = 8, .max_waiting = 64}; }
  static EngineRequest request(int prompt, int64_t max_tokens) {
    EngineRequest r;
    for (int i = 0; i < prompt; i++) r.prompt.push_back(300 + i);
    r.max_tokens = max_tokens;
    return r;
  }
  void expect_nothing_left() {
    ASSERT_TRUE(engine_->wait_idle(20s));
    for (int i = 0; i < 200 && engine_->stats().kv_free + engine_->stats().kv_cached != engine_->stats().kv_blocks; i++)
      std::this_thread::sleep_for(5ms);
    EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.kv_free + stats.kv_cached, stats.kv_blocks);
    EXPECT_EQ(stats.running + stats.waiting, 0);
    EXPECT_TRUE(engine_->requests().empty());
  }

  static inline std::unique_ptr<Tokenizer> tokenizer_;
  CountingRunner runner_;
  std::unique_ptr<BlockAllocator> allocator_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineTest, ManyRequestsGetTheirOwnTokensInOrder) {
  start(options());
  std::vector<std::shared_ptr<Collector>> listeners;
  for (int i = 0; i < 50; i++) {
    EngineRequest r = request(3 + i % 20, 5 + i % 7);
    r.sampling.seed = static_cast<uint64_t>(i);
    listeners.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(engine_->submit(r, listeners.back()).ok());
  }
  for (int i = 0; i < 50; i++) {
    Collector& c = *listeners[static_cast<size_t>(i)];
    ASSERT_TRUE(c.wait());
    EXPECT_FALSE(c.error_) << c.error_->message;
    ASSERT_EQ(c.ids_.size(), static_cast<size_t>(5 + i % 7));
    for (size_t k = 0; k < c.ids_.size(); k++)
      EXPECT_EQ(c.ids_[k],
                300 + static_cast<int32_t>((static_cast<uint64_t>(3 + i % 20 + static_cast<int>(k)) * 7 + static_cast<uint64_t>(i)) % 100));
    EXPECT_EQ(c.reasons_, std::vector<FinishReason>{FinishReason::kLength});
    EXPECT_EQ(c.usage_.generated_tokens, static_cast<int64_t>(c.ids_.size()));
    EXPECT_EQ(c.text_, tokenizer_->decode(c.ids_, true));
  }
  expect_nothing_left();
}

// A step follows the one before unless the engine had nothing to do in between: that is no wait of the device for the host.
TEST_F(EngineTest, TimesOfStepsLeaveIdlenessOut) {
  StepTimes times;
  runner_.step_time = 2000us;
  start(options(), 256, &times);
  for (int i = 0; i < 3; i++) {
    auto c = std::make_shared<Collector>();
    ASSERT_TRUE(engine_->submit(request(5, 10), c).ok());
    ASSERT_TRUE(c->wait());
    expect_nothing_left();
    std::this_thread::sleep_for(300ms);
  }
  const int64_t steps = runner_.steps, following = runner_.following;
  engine_.reset();
  ASSERT_EQ(times.steps.size(), static_cast<size_t>(steps));
  EXPECT_EQ(steps - following, 3);
  double waited = 0, all = 0, shortest = 1;
  for (auto [seconds, wait] : times.steps) all += seconds, waited += wait, shortest = std::min(shortest, seconds);
  EXPECT_DOUBLE_EQ(waited, 0.25 * static_cast<double>(following));
  EXPECT_GE(shortest, 0.002);
  EXPECT_LT(all, 0.002 * static_cast<double>(steps) + 0.5) << "without 0.9 s of idleness";
}

TEST_F(EngineTest, SpeculationGivesTheSameTokensInFewerSteps) {
  std::vector<int32_t> plain;
  int64_t plain_steps = 0;
  for (bool speculate : {false, true}) {
    EngineOptions o = options();
    o.speculation = speculate ? SpeculationMethod::kMtp : SpeculationMethod::kNone;
    o.draft_tokens = 2;
    o.adaptive_speculation = false;
    int64_t before = runner_.steps;
    start(o);
    auto c = std::make_shared<Collector>();
    ASSERT_TRUE(engine_->submit(request(9, 60), c).ok());
    ASSERT_TRUE(c->wait());
    if (!speculate) plain = c->ids_, plain_steps = runner_.steps - before;
    else {
      EXPECT_EQ(c->ids_, plain);
      EXPECT_LT(runner_.steps - before, plain_steps / 2);
      EXPECT_GT(c->usage_.accepted_tokens, 30);
    }
    engine_.reset();
  }
}

TEST_F(EngineTest, CancelWhileAStepRunsFreesEverything) {
  start(options());
  runner_.hold(true);
  auto c = std::make_shared<Collector>(), other = std::make_shared<Collector>();
  auto handle = engine_->submit(request(9, 50), c);
  ASSERT_TRUE(handle.ok());
  ASSERT_TRUE(engine_->submit(request(5, 3), other).ok());
  std::this_thread::sleep_for(20ms);
  engine_->cancel(*handle);
  EXPECT_FALSE(c->ended());
  runner_.hold(false);
  ASSERT_TRUE(c->wait());
  ASSERT_TRUE(c->error_);
  EXPECT_EQ(c->error_->kind, ErrorKind::kCancelled);
  ASSERT_TRUE(other->wait());
  EXPECT_FALSE(other->error_);
  engine_->cancel(*handle);  // long gone
  engine_->cancel(987654);
  expect_nothing_left();
}

TEST_F(EngineTest, DeadlineEndsARequestThatWaitsAndOneThatRuns) {
  EngineOptions o = options();
  o.max_running = 1;
  start(o);
  runner_.step_time = 2ms;
  auto running = std::make_shared<Collector>(), waiting = std::make_shared<Collector>();
  EngineRequest r = request(5, 400);
  r.deadline = EngineClock::now() + 60ms;
  ASSERT_TRUE(engine_->submit(r, running).ok());
  r.deadline = EngineClock::now() + 30ms;
  ASSERT_TRUE(engine_->submit(r, waiting).ok());
  ASSERT_TRUE(waiting->wait());
  EXPECT_TRUE(waiting->ids_.empty());
  ASSERT_TRUE(running->wait());
  EXPECT_FALSE(running->ids_.empty());
  for (Collector* c : {running.get(), waiting.get()}) {
    EXPECT_EQ(c->reasons_, std::vector<FinishReason>{FinishReason::kDeadline});
    ASSERT_TRUE(c->error_);
    EXPECT_NE(c->error_->message.find("deadline"), std::string::npos);
  }
  expect_nothing_left();
}

TEST_F(EngineTest, StopTextAcrossTokensEndsTheAnswerAndIsNotShown) {
  start(options());
  auto whole = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->submit(request(5, 30), whole).ok());
  ASSERT_TRUE(whole->wait());
  ASSERT_GT(whole->text_.size(), 12u);
  size_t at = whole->text_.size() / 2;
  std::string stop = whole->text_.substr(at, 4);
  at = whole->text_.find(stop);
  EngineRequest r = request(5, 30);
  r.stop = {stop};
  auto cut = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->submit(r, cut).ok());
  ASSERT_TRUE(cut->wait());
  EXPECT_EQ(cut->text_, whole->text_.substr(0, at));
  EXPECT_EQ(cut->reasons_, std::vector<FinishReason>{FinishReason::kStop});
  EXPECT_LT(cut->usage_.generated_tokens, 30);
  EXPECT_FALSE(cut->error_);
  r.include_stop_text = true;
  auto with = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->submit(r, with).ok());
  ASSERT_TRUE(with->wait());
  EXPECT_EQ(with->text_, whole->text_.substr(0, at + 4));
  expect_nothing_left();
}

TEST_F(EngineTest, OneBrokenRequestAndABrokenStepDoNotHurtOthers) {
  runner_.broken_token = 999;
  runner_.fail_as = ErrorKind::kResource;
  start(options());
  auto bad = std::make_shared<Collector>(), good = std::make_shared<Collector>();
  EngineRequest r = request(5, 10);
  r.prompt[0] = 999;
  ASSERT_TRUE(engine_->submit(r, bad).ok());
  ASSERT_TRUE(engine_->submit(request(5, 10), good).ok());
  ASSERT_TRUE(bad->wait() && good->wait());
  ASSERT_TRUE(bad->error_);
  EXPECT_EQ(bad->error_->kind, ErrorKind::kDevice);
  EXPECT_FALSE(good->error_);
  runner_.fail_at = static_cast<int>(runner_.steps);
  auto failed = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->submit(request(5, 10), failed).ok());
  ASSERT_TRUE(failed->wait());
  ASSERT_TRUE(failed->error_);
  auto after = std::make_shared<Collector>();
  ASSERT_TRUE(engine_->submit(request(5, 10), after).ok());
  ASSERT_TRUE(after->wait());
  EXPECT_FALSE(after->error_);
  expect_nothing_left();
}

TEST_F(EngineTest, LostDeviceFailsEveryRequest) {
  EngineOptions o = options();
  o.max_running = 2;
  runner_.fail_at = 5;
  runner_.step_time = 1ms;
  start(o);
  EXPECT_FALSE(engine_->failure());
  std::vector<std::shared_ptr<Collector>> listeners;  // running, waiting, and with several answers
  for (int i = 0; i < 9; i++) {
    EngineRequest r = request(5 + 20 * i, 100);
    r.n = 1 + i % 2;
    listeners.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(engine_->submit(r, listeners.back()).ok());
  }
  for (const auto& listener : listeners) {
    ASSERT_TRUE(listener->wait());
    ASSERT_TRUE(listener->error_);
    EXPECT_EQ(listener->error_->kind, ErrorKind::kDevice);
    EXPECT_EQ(listener->error_->message, "the device is gone");
  }
  ASSERT_TRUE(engine_->failure());
  EXPECT_EQ(engine_->failure()->message, "the device is gone");
  auto late = engine_->submit(request(5, 4), std::make_shared<Collector>());
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().kind, ErrorKind::kDevice);
  expect_nothing_left();
}

TEST_F(EngineTest, FullQueueAndDrainRefuse) {
  EngineOptions o = options();
  o.max_waiting = 2;
  o.max_running = 1;
  start(o);
  runner_.hold(true);
  std::vector<std::shared_ptr<Collector>> listeners;
  auto submit = [&] {
    listeners.push_back(std::make_shared<Collector>());
    return engine_->submit(request(5, 4), listeners.back());
  };
  ASSERT_TRUE(submit().ok());
  for (int i = 0; i < 100 && engine_->stats().waiting > 0; i++) std::this_thread::sleep_for(2ms);
  ASSERT_TRUE(submit().ok());
  ASSERT_TRUE(submit().ok());
  auto full = submit();
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().kind, ErrorKind::kResource);
  engine_->drain();
  EXPECT_FALSE(submit().ok());
  runner_.hold(false);
  for (size_t i = 0; i < 3; i++) EXPECT_TRUE(listeners[i]->wait() && !listeners[i]->error_);
  expect_nothing_left();
}

TEST_F(EngineTest, DestructionAnswersWhatIsLeft) {
  start(options());
  runner_.step_time = 1ms;
  std::vector<std::shared_ptr<Collector>> listeners;
  for (int i = 0; i < 20; i++) {
    listeners.push_back(std::make_shared<Collector>());
    ASSERT_TRUE(engine_->submit(request(5, 400), listeners.back()).ok());
  }
  std::this_thread::sleep_for(10ms);
  engine_.reset();
  for (auto& c : listeners) {
    EXPECT_TRUE(c->ended());
    EXPECT_TRUE(c->error_);
  }
}

TEST_F(EngineTest, RandomClientsLeaveNothingBehind) {
  EngineOptions o = options();
  o.speculation = SpeculationMethod::kMtp;
  o.draft_tokens = 2;
  start(o, 60);  // few blocks: preemptions
  std::mt19937 random(5);
  std::vector<std::shared_ptr<Collector>> listeners;
  std::vector<uint64_t> handles;
  for (int i = 0; i < 600; i++) {
    EngineRequest r = request(1 + static_cast<int>(random() % 40), 1 + static_cast<int64_t>(random() % 40));
    r.n = 1 + static_cast<int>(random() % 3);
    r.tenant = std::string(1, static_cast<char>('a' + random() % 3));
    r.priority = static_cast<int>(random() % 3);
    if (random() % 8 == 0) r.deadline = EngineClock::now() + std::chrono::microseconds(random() % 5000);
    listeners.push_back(std::make_shared<Collector>());
    auto handle = engine_->submit(r, listeners.back());
    if (!handle.ok()) {
      listeners.pop_back();
      std::this_thread::sleep_for(1ms);
      continue;
    }
    handles.push_back(*handle);
    if (random() % 3 == 0) engine_->cancel(handles[random() % handles.size()]);
    if (random() % 5 == 0) {
      uint64_t h = handles[random() % handles.size()];
      engine_->pause(h, true);
      engine_->pause(h, false);
    }
    if (random() % 50 == 0) engine_->reset_prefix_cache();
    if (random() % 20 == 0) engine_->requests();
  }
  for (auto& c : listeners) ASSERT_TRUE(c->wait());
  expect_nothing_left();
  EXPECT_GT(engine_->stats().preemptions, 0u);
}

}  // namespace
}  // namespace dg
