#include "app/eval_compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace dg {
namespace {

using ::testing::HasSubstr;

const std::string kMiniR1 = DG_SOURCE_DIR "/models/mini-r1";

TEST(EvalCompare, KlOfKnownDistributions) {
  // p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln(2/3), whatever is added to the logits.
  const float log3 = std::log(3.0f);
  std::vector<float> p = {5, 5}, q = {-100, -100 + log3};
  EXPECT_NEAR(kl_of_logits(p, q), 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3), 1e-6);
  EXPECT_NEAR(kl_of_logits(q, p), 0.25 * std::log(0.5) + 0.75 * std::log(1.5), 1e-6);
  EXPECT_EQ(kl_of_logits(p, p), 0);
  std::vector<float> sure = {0, -INFINITY}, nan = {0, NAN};
  EXPECT_NEAR(kl_of_logits(sure, p), std::log(2.0), 1e-6) << "0 log 0 is 0";
  EXPECT_TRUE(std::isnan(kl_of_logits(p, nan)));
}

TEST(EvalCompare, ItemsAreDtypesFormatsOrModels) {
  OpenOptions open{.dtype = "float32"};
  auto items = parse_compare("int4,bfloat16," + kMiniR1, "here", open);
  ASSERT_TRUE(items.ok()) << items.error().message;
  ASSERT_EQ(items->size(), 3u);
  EXPECT_EQ((*items)[0].open.quantization, "int4");
  EXPECT_EQ((*items)[0].open.dtype, "auto") << "float32 cannot be combined with a format";
  EXPECT_EQ((*items)[0].path, "here");
  EXPECT_EQ((*items)[1].open.dtype, "bfloat16");
  EXPECT_EQ((*items)[2].path, kMiniR1);
  EXPECT_EQ((*items)[2].open.dtype, "float32");
  for (const char* bad : {"", "int8,", ",int8", "int8,,int4", "int3", "/no/such/model"}) {
    auto wrong = parse_compare(bad, "here", open);
    ASSERT_FALSE(wrong.ok()) << bad;
    EXPECT_EQ(wrong.error().message.find('\n'), std::string::npos);
    EXPECT_THAT(wrong.error().message, HasSubstr("--compare"));
  }
}

TEST(EvalCompare, CoarserWeightsDivergeMore) {
  auto open = [&](const std::string& quantization, const std::string& dtype) {
    auto model = open_model(kMiniR1, {.threads = 2,
                                      .dtype = dtype,
                                      .quantization = quantization,
                                      .max_model_len = 160,
                                      .max_step_tokens = 64,
                                      .max_sequences = 4,
                                      .max_logit_rows = 64,
                                      .progress = false});
    EXPECT_TRUE(model.ok()) << model.error().message;
    return std::move(*model);
  };
  std::unique_ptr<OpenedModel> exact = open("", "float32"), same = open("", "float32"), int8 = open("int8", "auto"),
                               int4 = open("int4", "auto");
  std::vector<std::vector<int32_t>> sequences;
  for (const char* text : {"What is 12 + 30? The answer is 42.", "The capital of France is Paris, and that of Italy is Rome.", "x"})
    sequences.push_back(exact->tokenizer->encode(text));
  sequences.push_back({5});  // predicts nothing
  int64_t tokens = 0, seen = 0;
  for (const auto& ids : sequences) tokens += static_cast<int64_t>(ids.size()) - 1;
  auto divergence = [&](OpenedModel& candidate) {
    auto d = measure_divergence(
        *exact->executor, *candidate.executor, sequences, 160, [&](int64_t done) { seen = done; }, nullptr);
    EXPECT_TRUE(d.ok()) << d.error().message;
    return *d;
  };
  Divergence none = divergence(*same), d8 = divergence(*int8), d4 = divergence(*int4);
  EXPECT_EQ(none.tokens, tokens);
  EXPECT_EQ(seen, tokens);
  EXPECT_EQ(none.mean_kl, 0);
  EXPECT_EQ(none.agreement_percent(), 100);
  EXPECT_GT(d8.mean_kl, 0);
  EXPECT_GT(d4.mean_kl, d8.mean_kl);
  EXPECT_GE(d4.max_kl, d4.p99_kl);
  EXPECT_LT(d8.mean_kl, 0.05);
  EXPECT_EQ(d8.reference.nll, none.candidate.nll) << "the reference's figures do not depend on the candidate";
  auto alone = measure_perplexity(*int8->executor, sequences, 160, {}, nullptr);
  ASSERT_TRUE(alone.ok());
  EXPECT_DOUBLE_EQ(alone->nll, d8.candidate.nll) << "as measured alone";
  std::atomic<bool> cancel{true};
  auto cancelled = measure_divergence(*exact->executor, *same->executor, sequences, 160, {}, &cancel);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().kind, ErrorKind::kCancelled);
}

}  // namespace
}  // namespace dg
