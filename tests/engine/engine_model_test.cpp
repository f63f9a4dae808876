// The engine on mini-r1: a request's tokens do not depend on the batch, on speculation, on preemption or on the cache; logprobs
// and embeddings are those of the model.
#include <gtest/gtest.h>

#include <cmath>
#include <condition_variable>
#include <mutex>

#include "app/open_model.h"
#include "base/json.h"
#include "engine/engine.h"
#include "text/grammar.h"

namespace dg {
namespace {

class Answer : public RequestListener {
 public:
  void on_prompt_logprobs(std::span<const TokenInfo> tokens) override { prompt.assign(tokens.begin(), tokens.end()); }
  void on_embedding(std::span<const float> values) override { embedding.assign(values.begin(), values.end()); }
  void on_delta(const OutputDelta& delta) override {
    if (ids.size() <= static_cast<size_t>(delta.index)) ids.resize(static_cast<size_t>(delta.index) + 1);
    for (const TokenInfo& t : delta.tokens) ids[static_cast<size_t>(delta.index)].push_back(t.id), infos.push_back(t);
  }
  void on_end(const RequestUsage& u, const Error* e) override {
    std::lock_guard lock(mutex_);
    usage = u;
    if (e) error = e->message;
    ended_ = true;
    done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return ended_; });
  }
  std::vector<std::vector<int32_t>> ids;
  std::vector<TokenInfo> infos, prompt;
  std::vector<float> embedding;
  RequestUsage usage;
  std::string error;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  bool ended_ = false;
};

// The model's CPU behind the face of a device: nobody but its ops touches its memory, and it picks tokens. Counts the rows that
// were picked, and those that were read whole.
class DeviceLike : public Backend {
 public:
  explicit DeviceLike(Backend& inner) : inner_(inner) {}
  const char* name() const override { return "device-like"; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override { return inner_.allocate(bytes, purpose); }
  bool host_memory() const override { return false; }
  bool picks_rows() const override { return true; }
  bool supports(const Format& format) const override { return inner_.supports(format); }
  void synchronise() override { inner_.synchronise(); }
  void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) override { inner_.host_parallel(n, fn); }
  int host_workers() const override { return inner_.host_workers(); }
  void download(void* to, const void* from, size_t bytes) override {
    inner_.download(to, from, bytes);
    if (bytes % row_bytes == 0) whole_rows += static_cast<int64_t>(bytes / row_bytes);
  }
#define DG_FORWARD(method, Op) \
  void method(const Op& op) override { note(op), inner_.method(op); }
  DG_OPS(DG_FORWARD)
#undef DG_FORWARD

  int64_t picked_rows = 0, whole_rows = 0;
  size_t row_bytes = 1;

 private:
  template <class Op>
  void note(const Op&) {}
  void note(const PickRows& op) {
    for (int64_t i = 0; i < op.specs.rows(); i++) picked_rows += reinterpret_cast<const PickSpec*>(op.specs.i32(i))->candidates > 0;
  }
  Backend& inner_;
};

struct EngineSetup {
  int64_t sequences = 32, kv_bytes = 0, max_step_tokens = 128;
  SpeculationMethod speculation = SpeculationMethod::kNone;
  int draft_tokens = 1;
  bool deterministic = true;
  int tensor_parallel = 1;
  bool device = false;
};

class EngineOnModel : public ::testing::Test {
 protected:
  void start(const EngineSetup& setup) {
    engine_.reset();
    executor_.reset();
    device_.reset();
    model_.reset();
    OpenOptions open{.tensor_parallel = setup.tensor_parallel,
                     .threads = 2,
                     .max_model_len = 512,
                     .max_step_tokens = setup.max_step_tokens,
                     .max_sequences = setup.sequences,
                     .max_logit_rows = setup.sequences * (1 + setup.draft_tokens),
                     .max_decode_rows = setup.sequences * (1 + setup.draft_tokens),
                     .kv_bytes = setup.kv_bytes,
                     .progress = false};
    auto opened = open_model(std::string(DG_SOURCE_DIR) + "/models/mini-r1", open);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    model_ = std::move(opened).value();
    EngineOptions options{.max_model_len = 512,
                          .max_step_tokens = setup.max_step_tokens,
                          .max_running = setup.sequences,
                          .speculation = setup.speculation,
                          .draft_tokens = setup.draft_tokens,
                          .adaptive_speculation = false,
                          .deterministic = setup.deterministic};
    if (setup.device) {
      device_ = std::make_unique<DeviceLike>(*model_->backend);
      device_->row_bytes = static_cast<size_t>(model_->config.vocab) * 4;
      auto executor = Executor::create(*device_, *model_->model, model_->executor->options());
      ASSERT_TRUE(executor.ok()) << executor.error().message;
      executor_ = std::move(executor).value();
    }
    auto engine = Engine::create(executor_ ? *executor_ : *model_->executor, *model_->tokenizer, options);
    ASSERT_TRUE(engine.ok()) << engine.error().message;
    engine_ = std::move(engine).value();
  }

  EngineRequest ask(const std::string& question, double temperature, uint64_t seed) {
    EngineRequest request;
    auto text = model_->prompt->render(Json::array({{{"role", "user"}, {"content", question}}}), nullptr, {});
    CHECK(text.ok());
    request.prompt = model_->tokenizer->encode(*text, {.add_special = false});
    request.sampling.temperature = temperature;
    request.sampling.seed = seed;
    request.stop_ids = model_->eos;
    request.max_tokens = 60;
    return request;
  }

  std::shared_ptr<Answer> submit(EngineRequest request) {
    auto answer = std::make_shared<Answer>();
    auto handle = engine_->submit(std::move(request), answer);
    EXPECT_TRUE(handle.ok()) << handle.error().message;
    if (!handle.ok()) answer->on_end({}, &handle.error());
    return answer;
  }
  std::shared_ptr<Answer> run(EngineRequest request) {
    auto answer = submit(std::move(request));
    answer->wait();
    EXPECT_EQ(answer->error, "");
    return answer;
  }

  std::vector<EngineRequest> questions() {
    std::vector<EngineRequest> list;
    for (int i = 0; i < 32; i++) {
      EngineRequest r =
          ask("What is " + std::to_string(11 + i * 7) + " + " + std::to_string(30 + i) + "?", i % 2 ? 0.9 : 0, static_cast<uint64_t>(i));
      if (i % 4 == 3) r.sampling.top_p = 0.8, r.sampling.repetition_penalty = 1.1;
      list.push_back(r);
    }
    return list;
  }

  std::unique_ptr<OpenedModel> model_;
  std::unique_ptr<DeviceLike> device_;
  std::unique_ptr<Executor> executor_;  // on device_, else the model's own is used
  std::unique_ptr<Engine> engine_;
};

TEST_F(EngineOnModel, TokensDependOnTheRequestAlone) {
  start({});
  std::vector<std::vector<int32_t>> alone;
  for (EngineRequest& r : questions()) alone.push_back(run(r)->ids[0]);

  auto compare = [&](const char* how) {
    std::vector<std::shared_ptr<Answer>> answers;
    for (EngineRequest& r : questions()) answers.push_back(submit(r));
    for (size_t i = 0; i < answers.size(); i++) {
      answers[i]->wait();
      ASSERT_EQ(answers[i]->error, "");
      EXPECT_EQ(answers[i]->ids[0], alone[i]) << how << ", question " << i;
    }
  };
  compare("in a batch of 32, behind the prefix cache");
  start({});
  compare("in a batch of 32");
  start({.speculation = SpeculationMethod::kMtp});
  compare("with one MTP draft");
  EXPECT_GT(engine_->stats().accepted_tokens, engine_->stats().draft_tokens / 2);
  start({.speculation = SpeculationMethod::kMtp, .draft_tokens = 3});
  compare("with three MTP drafts");
  start({.speculation = SpeculationMethod::kNgram, .draft_tokens = 3});
  compare("with n-gram drafts");
  EXPECT_GT(engine_->stats().draft_tokens, 0u);
  start({.kv_bytes = int64_t{680} * 2 * 160 * 7, .speculation = SpeculationMethod::kMtp});  // some 680 tokens of cache
  compare("with preemptions");
  EXPECT_GT(engine_->stats().preemptions, 0u);
  engine_->wait_idle(std::chrono::seconds(5));
  EngineStats stats = engine_->stats();
  EXPECT_EQ(stats.kv_free + stats.kv_cached, stats.kv_blocks);
}

TEST_F(EngineOnModel, GrammarsHoldWithAndWithoutSpeculation) {
  std::vector<std::vector<int32_t>> plain;
  for (SpeculationMethod method : {SpeculationMethod::kNone, SpeculationMethod::kMtp, SpeculationMethod::kNgram}) {
    start({.speculation = method, .draft_tokens = 2});
    GrammarCompiler compiler(*model_->tokenizer, model_->config.vocab, model_->eos);
    auto grammar = compiler.compile({.kind = GrammarKind::kJsonSchema,
                                     .text = R"({"type": "object", "properties": {"answer": {"type": "integer"},
      "unit": {"enum": ["apples", "pears"]}}, "required": ["answer", "unit"], "additionalProperties": false})",
                                     .start_after = "</think>"});
    ASSERT_TRUE(grammar.ok()) << grammar.error().message;
    std::vector<std::shared_ptr<Answer>> answers;
    for (int i = 0; i < 8; i++) {
      EngineRequest r = ask("What is " + std::to_string(20 + i) + " + 30?", i % 2 ? 0.8 : 0, static_cast<uint64_t>(i));
      r.grammar = *grammar;
      r.max_tokens = 200;
      answers.push_back(submit(r));
    }
    for (size_t i = 0; i < answers.size(); i++) {
      answers[i]->wait();
      ASSERT_EQ(answers[i]->error, "");
      if (method == SpeculationMethod::kNone) plain.push_back(answers[i]->ids[0]);
      EXPECT_EQ(answers[i]->ids[0], plain[i]) << i;
      std::string text = model_->tokenizer->decode(answers[i]->ids[0], true);
      size_t end = text.find("</think>");
      if (end == std::string::npos) continue;  // still thinking at max_tokens
      auto json = parse_json(text.substr(end + 8), "answer");
      ASSERT_TRUE(json.ok()) << text;
      EXPECT_TRUE((*json)["answer"].is_number_integer()) << text;
      EXPECT_TRUE((*json)["unit"] == "apples" || (*json)["unit"] == "pears") << text;
    }
    EXPECT_TRUE(method != SpeculationMethod::kMtp || engine_->stats().accepted_tokens > 0);
  }
}

// Requests of every kind of sampling, picked on the device: the tokens and logprobs of the host's path, bit for bit.
TEST_F(EngineOnModel, PickingOnTheDeviceChangesNothing) {
  auto requests = [&] {
    GrammarCompiler compiler(*model_->tokenizer, model_->config.vocab, model_->eos);
    auto grammar = compiler.compile({.kind = GrammarKind::kRegex, .text = "(the answer is )?[0-9]+( apples| pears)*"});
    EXPECT_TRUE(grammar.ok());
    const std::vector<SamplingParams> settings = {
        {},
        {.repetition_penalty = 1.3, .presence_penalty = 0.5, .frequency_penalty = 0.3},
        {.logit_bias = {{20, 8.0f}, {300, -100.0f}, {20, 1.0f}}},
        {.temperature = 1},
        {.temperature = 0.6, .top_p = 0.95},
        {.temperature = 1.5, .top_p = 0.99},  // often beyond the candidates
        {.temperature = 0.9, .top_k = 20},
        {.temperature = 0.9, .top_k = 40, .top_p = 0.9, .min_p = 0.01},
        {.temperature = 0.8, .min_p = 0.05},
        {.temperature = 1.2, .top_k = 1000},     // more than the device gives
        {.temperature = 0.8, .typical_p = 0.9},  // needs whole rows
        {.temperature = 0.8, .top_p = 0.9, .typical_p = 0.9, .repetition_penalty = 1.1, .logit_bias = {{40, 2.0f}}},
        {.temperature = 1.1, .repetition_penalty = 1.2, .frequency_penalty = 0.2},
    };
    std::vector<EngineRequest> all;
    for (size_t i = 0; i < 2 * settings.size(); i++) {
      EngineRequest r = ask("What is " + std::to_string(17 + i * 5) + " + " + std::to_string(30 + i) + "?", 0, 0);
      r.sampling = settings[i / 2];
      r.sampling.seed = i;
      r.max_tokens = 40;
      if (i % 2) r.logprobs = static_cast<int>(i % 5), r.min_tokens = 10;
      if (i % 4 == 3) r.grammar = *grammar, r.min_tokens = 0;
      if (i % 7 == 6) r.prompt_logprobs = 2;
      all.push_back(r);
    }
    return all;
  };
  struct Heard {
    std::vector<std::vector<int32_t>> ids;
    std::vector<float> logprobs;
    bool operator==(const Heard&) const = default;
  };
  std::vector<Heard> expected;
  for (SpeculationMethod method : {SpeculationMethod::kNone, SpeculationMethod::kMtp, SpeculationMethod::kNgram})
    for (bool device : {false, true}) {
      if (!device && !expected.empty()) continue;
      start({.speculation = method, .draft_tokens = 2, .device = device});
      std::vector<std::shared_ptr<Answer>> answers;
      for (EngineRequest& r : requests()) answers.push_back(submit(r));
      int64_t tokens = 0;
      for (size_t i = 0; i < answers.size(); i++) {
        answers[i]->wait();
        ASSERT_EQ(answers[i]->error, "");
        Heard heard{answers[i]->ids, {}};
        for (const auto* infos : {&answers[i]->infos, &answers[i]->prompt})
          for (const TokenInfo& t : *infos) {
            if (!std::isnan(t.logprob)) heard.logprobs.push_back(t.logprob);
            for (const TokenLogprob& l : t.top) heard.logprobs.push_back(static_cast<float>(l.id)), heard.logprobs.push_back(l.logprob);
          }
        tokens += static_cast<int64_t>(heard.ids[0].size());
        if (!device) expected.push_back(heard);
        EXPECT_EQ(heard.ids, expected[i].ids) << "request " << i << ", speculation " << static_cast<int>(method);
        EXPECT_EQ(heard.logprobs, expected[i].logprobs) << "request " << i << ", speculation " << static_cast<int>(method);
      }
      if (!device) continue;
      EXPECT_GT(device_->picked_rows, tokens / 2);
      EXPECT_GT(device_->whole_rows, 0);
      if (method == SpeculationMethod::kNone) {
        EXPECT_LT(device_->whole_rows, tokens / 2);
      }
      EXPECT_TRUE(method != SpeculationMethod::kMtp || engine_->stats().accepted_tokens > 0);
      std::printf("%lld tokens, %lld rows picked, %lld read\n", static_cast<long long>(tokens),
                  static_cast<long long>(device_->picked_rows), static_cast<long long>(device_->whole_rows));
    }
}

TEST_F(EngineOnModel, SeveralAnswersAreThoseOfTheirSeeds) {
  start({});
  EngineRequest r = ask("Name a color.", 1.0, 100);
  std::vector<std::vector<int32_t>> single;
  for (uint64_t i = 0; i < 3; i++) {
    r.sampling.seed = 100 + i;
    single.push_back(run(r)->ids[0]);
  }
  r.sampling.seed = 100;
  r.n = 3;
  EXPECT_EQ(run(r)->ids, single);
}

TEST_F(EngineOnModel, LogprobsOfPromptAndAnswerAgree) {
  start({});
  EngineRequest r = ask("What is 12 + 30?", 0, 0);
  r.logprobs = 3;
  r.max_tokens = 12;
  auto first = run(r);
  ASSERT_EQ(first->infos.size(), first->ids[0].size());
  for (const TokenInfo& t : first->infos) {
    ASSERT_EQ(t.top.size(), 3u);
    EXPECT_EQ(t.top[0].id, t.id) << "greedy";
    EXPECT_FLOAT_EQ(t.top[0].logprob, t.logprob);
    EXPECT_LE(t.logprob, 0);
  }
  // The same tokens as a prompt: the same probabilities, up to the rounding between the two ways of attention.
  EngineRequest again = r;
  again.prompt.insert(again.prompt.end(), first->ids[0].begin(), first->ids[0].end());
  again.max_tokens = 1;
  again.prompt_logprobs = 3;
  auto second = run(again);
  ASSERT_EQ(second->prompt.size(), again.prompt.size());
  EXPECT_TRUE(std::isnan(second->prompt[0].logprob));
  for (size_t i = 0; i < first->infos.size(); i++) {
    const TokenInfo& t = second->prompt[r.prompt.size() + i];
    EXPECT_EQ(t.id, first->infos[i].id);
    EXPECT_NEAR(t.logprob, first->infos[i].logprob, 0.02);
  }
}

TEST_F(EngineOnModel, EmbeddingsOfTheSameTextAreEqualAndOfOthersNot) {
  start({});
  auto embed = [&](const std::string& text, Pooling pooling) {
    EngineRequest r;
    r.prompt = model_->tokenizer->encode(text);
    r.pooling = pooling;
    return run(r)->embedding;
  };
  for (Pooling pooling : {Pooling::kLast, Pooling::kMean}) {
    auto a = embed("the cat sat on the mat and looked at the moon for a long time", pooling);
    ASSERT_EQ(a.size(), 384u);
    EXPECT_EQ(a, embed("the cat sat on the mat and looked at the moon for a long time", pooling));
    EXPECT_NE(a, embed("12 + 30 = 42", pooling));
  }
}

TEST_F(EngineOnModel, RanksTogetherGiveTheTextOfOneWithAndWithoutDrafts) {
  auto answers = [&](const EngineSetup& setup) {
    start(setup);
    std::vector<std::vector<int32_t>> ids;
    for (const char* question : {"What is 12 + 30?", "Calculate 515 plus 4.", "What is the capital of France?"})
      ids.push_back(run(ask(question, 0, 0))->ids[0]);
    return ids;
  };
  const auto one = answers({});
  EXPECT_EQ(answers({.tensor_parallel = 2}), one);
  EXPECT_EQ(answers({.speculation = SpeculationMethod::kMtp, .draft_tokens = 3, .tensor_parallel = 2}), one);
}

TEST_F(EngineOnModel, PrefixCacheSkipsThePrompt) {
  start({.deterministic = false});
  EngineRequest r = ask("What is 12 + 30? " + std::string(300, '.'), 0, 0);
  r.tenant = "a";
  auto first = run(r);
  EXPECT_EQ(first->usage.cached_tokens, 0);
  auto second = run(r);
  EXPECT_GT(second->usage.cached_tokens, static_cast<int64_t>(r.prompt.size()) - 17);
  EXPECT_EQ(first->ids, second->ids);
  r.tenant = "b";
  EXPECT_EQ(run(r)->usage.cached_tokens, 0);
  engine_->reset_prefix_cache();
  r.tenant = "a";
  EXPECT_EQ(run(r)->usage.cached_tokens, 0);
}

}  // namespace
}  // namespace dg
