// Generation on the embedded model: the loop of engine/generate.h and the perplexity measure, with executors of all sizes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "app/model_options.h"
#include "app/perplexity.h"
#include "base/json.h"
#include "plan/sizing.h"

namespace dg {
namespace {

constexpr int64_t kContext = 160;

class GenerateTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto opened = open_model(DG_SOURCE_DIR "/models/mini-r1", {.threads = 2, .max_model_len = kContext, .progress = false});
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    model_ = std::move(*opened).release();
  }
  static void TearDownTestSuite() { delete model_; }

  static GenerateRequest request(const std::string& question, int64_t max_tokens = 0) {
    auto encoded = encode_chat(*model_, Json::array({{{"role", "user"}, {"content", question}}}), nullptr, {});
    EXPECT_TRUE(encoded.ok());
    return {.prompt = encoded->ids, .max_tokens = max_tokens, .eos = model_->eos};
  }

  // Another executor on the same weights.
  static std::unique_ptr<Executor> executor(int64_t kv_tokens, int64_t step_tokens, int64_t sequences, int64_t logit_rows) {
    ExecutorOptions options{
        .kv_tokens = kv_tokens, .max_step_tokens = step_tokens, .max_step_sequences = sequences, .max_logit_rows = logit_rows};
    options.arena_bytes = measure_arena_bytes(*model_->model, step_tokens, sequences, kContext, logit_rows);
    auto made = Executor::create(*model_->backend, *model_->model, options);
    EXPECT_TRUE(made.ok());
    return std::move(*made);
  }

  static GenerateResult run(Generator& generator, GenerateRequest request, const TokenCallback& on_token = {}) {
    auto result = generator.run(std::move(request), on_token, nullptr);
    EXPECT_TRUE(result.ok()) << result.error().message;
    return *result;
  }

  static OpenedModel* model_;
};
OpenedModel* GenerateTest::model_ = nullptr;

const std::vector<std::string> kQuestions = {
    "What is 12 + 30?",  "请算一下 515+4", "Is 17 a prime number?", "Calculate 9 plus 8.", "What is the capital of France?",
    "What is 7 times 6?"};

// --load-format dummy: every format of the product, experts and vectors included, give finite logits that differ.
TEST(DummyWeights, RunWithoutFiles) {
  for (const char* model : {"deepseek_v3_fp8", "qwen3"})
    for (const char* format : {"", "int4", "bf16"}) {
      OpenOptions options{.threads = 2, .dummy_weights = true, .quantization = format, .progress = false, .load_text = false};
      auto opened = open_model(DG_SOURCE_DIR "/tests/golden/" + std::string(model), options);
      ASSERT_TRUE(opened.ok()) << opened.error().message;
      EXPECT_EQ((*opened)->index, nullptr);
      Executor& executor = *(*opened)->executor;
      BlockTable blocks(executor.kv());
      const std::vector<int32_t> ids = {5, 17, 200, 3};
      const StepSequence step{.ids = ids, .blocks = &blocks};
      auto result = executor.run({&step, 1});
      ASSERT_TRUE(result.ok()) << result.error().message;
      const std::vector<float> logits(result->row(0), result->row(0) + result->logits.cols());
      const auto [low, high] = std::minmax_element(logits.begin(), logits.end());
      EXPECT_TRUE(std::isfinite(*low) && std::isfinite(*high)) << model << " " << format;
      EXPECT_GT(*high - *low, 0.5f) << model << " " << format;
    }
}

TEST_F(GenerateTest, AnswersAndReportsEveryToken) {
  Generator generator(*model_->executor, *model_->tokenizer, {.max_context = kContext});
  std::vector<int32_t> ids;
  std::string text;
  GenerateResult result = run(generator, request(kQuestions[0]), [&](int32_t id, std::string_view piece) {
    if (id >= 0) ids.push_back(id);
    text += piece;
  });
  EXPECT_THAT(result.text, ::testing::EndsWith("The answer is 42."));
  EXPECT_EQ(result.reason, FinishReason::kStop);
  EXPECT_EQ(ids, result.ids);
  EXPECT_EQ(text, result.text);
  EXPECT_EQ(ids.back(), model_->eos.front());
  EXPECT_GT(result.prefill_s, 0);
  EXPECT_GT(result.decode_s, 0);
}

TEST_F(GenerateTest, BatchGivesEveryRequestItsOwnAnswer) {
  std::vector<std::vector<int32_t>> expected;
  auto make = [&](size_t i) {
    GenerateRequest r = request(kQuestions[i % kQuestions.size()], 5 + static_cast<int64_t>(i) * 3);
    if (i % 2) r.sampling = {.temperature = 0.8, .top_p = 0.9, .repetition_penalty = 1.1, .seed = i};
    return r;
  };
  constexpr size_t kCount = 13;
  Generator generator(*model_->executor, *model_->tokenizer, {.max_context = kContext});
  for (size_t i = 0; i < kCount; i++) {
    generator.reset();
    expected.push_back(run(generator, make(i)).ids);
  }
  struct Shape {
    int64_t kv_tokens, step_tokens, sequences, logit_rows, chunk;
  };
  // Roomy; one row at a time; a pool that holds less than two of the longest; fewer logit rows than sequences.
  for (Shape shape : {Shape{4096, 256, 8, 8, 0}, {4096, 1, 1, 1, 0}, {96, 32, 8, 8, 5}, {2048, 24, 8, 3, 7}}) {
    auto small = executor(shape.kv_tokens, shape.step_tokens, shape.sequences, shape.logit_rows);
    std::vector<std::vector<int32_t>> got(kCount);
    BatchCallbacks callbacks{.make_request = [&](size_t i) -> Result<GenerateRequest> { return make(i); },
                             .done = [&](size_t i, GenerateResult result) -> Result<void> {
                               EXPECT_TRUE(got[i].empty()) << "finished twice";
                               got[i] = std::move(result.ids);
                               return {};
                             }};
    auto done =
        generate_batch(*small, *model_->tokenizer, {.max_context = kContext, .chunk_tokens = shape.chunk}, kCount, callbacks, nullptr);
    ASSERT_TRUE(done.ok()) << done.error().message;
    EXPECT_EQ(got, expected) << shape.kv_tokens << " " << shape.step_tokens;
    EXPECT_EQ(small->kv().free_blocks(), small->kv().blocks());
    small->kv().check_integrity();
  }
}

TEST_F(GenerateTest, BatchThatCanNeverFitIsAnError) {
  auto small = executor(32, 32, 2, 2);
  BatchCallbacks callbacks{.make_request = [&](size_t) -> Result<GenerateRequest> { return request(kQuestions[0], 100); },
                           .done = [](size_t, GenerateResult) -> Result<void> { return {}; }};
  auto done = generate_batch(*small, *model_->tokenizer, {.max_context = kContext}, 1, callbacks, nullptr);
  ASSERT_FALSE(done.ok());
  EXPECT_EQ(exit_code(done.error().kind), 3);
  EXPECT_THAT(done.error().message, ::testing::HasSubstr("--max-tokens"));
}

TEST_F(GenerateTest, ReusesTheCommonPrefixAndForgetsItOnReset) {
  Generator generator(*model_->executor, *model_->tokenizer, {.max_context = kContext});
  GenerateResult first = run(generator, request(kQuestions[0]));
  EXPECT_EQ(first.cached_tokens, 0);
  GenerateResult same = run(generator, request(kQuestions[0]));
  EXPECT_EQ(same.cached_tokens, same.prompt_tokens - 1) << "the last token is run for its logits";
  EXPECT_EQ(same.ids, first.ids);
  GenerateRequest longer = request(kQuestions[0]);
  longer.prompt.insert(longer.prompt.end(), same.ids.begin(), same.ids.end() - 3);
  GenerateResult continued = run(generator, longer);
  EXPECT_EQ(continued.cached_tokens, continued.prompt_tokens - 1) << "the answer's rows are cached as well";
  EXPECT_EQ(continued.ids, std::vector<int32_t>(same.ids.end() - 3, same.ids.end()));
  GenerateResult other = run(generator, request(kQuestions[1]));
  EXPECT_LT(other.cached_tokens, 4);
  generator.reset();
  EXPECT_EQ(model_->executor->kv().free_blocks(), model_->executor->kv().blocks());
  EXPECT_EQ(run(generator, request(kQuestions[1])).ids, other.ids);
}

TEST_F(GenerateTest, StopTextsMaxTokensContextAndCancel) {
  Generator generator(*model_->executor, *model_->tokenizer, {.max_context = kContext, .chunk_tokens = 4});
  GenerateRequest stop = request(kQuestions[0]);
  stop.stop = {"unseen", "answer is"};
  GenerateResult stopped = run(generator, stop);
  EXPECT_EQ(stopped.stop, "answer is");
  EXPECT_EQ(stopped.reason, FinishReason::kStop);
  EXPECT_THAT(stopped.text, ::testing::EndsWith("The "));
  EXPECT_EQ(run(generator, request(kQuestions[0], 3)).reason, FinishReason::kLength);
  GenerateRequest endless = request("Tell me a story.");
  endless.eos.clear();
  GenerateResult full = run(generator, endless);
  EXPECT_EQ(full.reason, FinishReason::kContext);
  EXPECT_EQ(full.prompt_tokens + static_cast<int64_t>(full.ids.size()), kContext);

  std::atomic<bool> cancel{false};
  auto result = generator.run(
      endless, [&](int32_t, std::string_view) { cancel = true; }, &cancel);
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->reason, FinishReason::kCancelled);
  EXPECT_EQ(result->ids.size(), 1u);
}

TEST_F(GenerateTest, PromptsThatCannotRun) {
  Generator generator(*model_->executor, *model_->tokenizer, {.max_context = kContext});
  auto message = [&](std::vector<int32_t> prompt) {
    auto result = generator.run({.prompt = std::move(prompt)}, {}, nullptr);
    return result.ok() ? "" : result.error().message;
  };
  EXPECT_THAT(message({}), ::testing::HasSubstr("no tokens"));
  EXPECT_THAT(message(std::vector<int32_t>(kContext, 5)), ::testing::HasSubstr("160 tokens"));
  EXPECT_THAT(message({5, 4096}), ::testing::HasSubstr("token id 4096"));
  EXPECT_THAT(message({-1}), ::testing::HasSubstr("token id -1"));
}

TEST_F(GenerateTest, PerplexityDoesNotDependOnTheExecutor) {
  std::vector<std::vector<int32_t>> sequences;
  for (const std::string& q : kQuestions) sequences.push_back(request(q).prompt);
  sequences.push_back({0});  // one token: nothing to predict
  sequences.push_back(std::vector<int32_t>(70, 9));
  auto one = executor(4096, 1, 1, 1), many = executor(4096, 64, 8, 33);
  auto slow = measure_perplexity(*one, sequences, kContext, {}, nullptr),
       fast = measure_perplexity(*many, sequences, kContext, {}, nullptr);
  ASSERT_TRUE(slow.ok() && fast.ok());
  int64_t tokens = 0;
  for (const auto& ids : sequences) tokens += static_cast<int64_t>(ids.size()) - 1;
  EXPECT_EQ(fast->tokens, tokens);
  EXPECT_EQ(slow->nll, fast->nll);
  EXPECT_EQ(many->kv().free_blocks(), many->kv().blocks());
  EXPECT_GT(fast->value(), 1.0);
  EXPECT_FALSE(measure_perplexity(*many, {std::vector<int32_t>(kContext + 2, 1)}, kContext, {}, nullptr).ok());
}

}  // namespace
}  // namespace dg
