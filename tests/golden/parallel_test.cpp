// Tensor and expert parallel on CPU backends: every oracle split over several ranks passes `verify` and gives the logits of one rank.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "app/open_model.h"
#include "app/verify.h"
#include "model/split.h"

namespace dg {
namespace {

std::string root() {
  const char* given = std::getenv("DOUGONG_SOURCE_DIR");
  return given ? given : DG_SOURCE_DIR;
}

std::vector<std::string> split_oracles() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(root() + "/tests/golden"))
    if (entry.is_directory() && std::filesystem::exists(entry.path() / "config.json")) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

OpenOptions options_for(int ranks, bool experts, const char* dtype = "float32") {
  return {.tensor_parallel = ranks,
          .expert_parallel = experts,
          .threads = 2,
          .dtype = dtype,
          .max_model_len = 64,
          .max_step_tokens = 64,
          .max_logit_rows = 64,
          .progress = false,
          .load_text = false};
}

// Logits of a prefill in two chunks and of two decode steps.
Result<std::vector<float>> logits(const std::string& path, const OpenOptions& options) {
  DG_ASSIGN(std::unique_ptr<OpenedModel> m, open_model(path, options));
  std::vector<int32_t> ids;
  for (int i = 0; i < 30; i++) ids.push_back((i * 37 + 11) % 300);
  BlockTable blocks(m->executor->kv());
  std::vector<float> all;
  auto step = [&](size_t first, size_t count, bool decode) -> Result<void> {
    const StepSequence s{.ids = std::span(ids).subspan(first, count),
                         .first_position = static_cast<int64_t>(first),
                         .blocks = &blocks,
                         .decode = decode,
                         .logits = LogitsWanted::kAll};
    DG_ASSIGN(StepResult result, m->executor->run({&s, 1}));
    EXPECT_EQ(result.logits.rows(), static_cast<int64_t>(count));
    EXPECT_EQ(result.logits.cols(), m->config.vocab);
    all.insert(all.end(), result.logits.f32(), result.logits.f32() + result.logits.elements());
    return {};
  };
  DG_TRY(step(0, 17, false));
  DG_TRY(step(17, 11, false));
  DG_TRY(step(28, 1, true));
  DG_TRY(step(29, 1, true));
  return all;
}

// `tolerance`: of the root mean square of the differences relative to that of b; one may be ten times as far off.
void expect_close(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
  ASSERT_EQ(a.size(), b.size());
  double square = 0, error = 0, worst = 0;
  for (size_t i = 0; i < a.size(); i++) {
    const double difference = std::fabs(static_cast<double>(a[i]) - b[i]);
    square += static_cast<double>(b[i]) * b[i];
    error += difference * difference;
    worst = std::max(worst, difference);
  }
  EXPECT_LT(std::sqrt(error), tolerance * std::sqrt(square));
  EXPECT_LT(worst, 10 * tolerance * std::sqrt(square / static_cast<double>(b.size())));
}

class ParallelGolden : public ::testing::TestWithParam<std::string> {};

TEST_P(ParallelGolden, RanksTogetherGiveTheLogitsOfOne) {
  const std::string path = root() + "/tests/golden/" + GetParam();
  auto config = read_model_config(path);
  ASSERT_TRUE(config.ok());
  auto one = logits(path, options_for(1, false));
  ASSERT_TRUE(one.ok()) << one.error().message;
  int worked = 0;
  for (int ranks : {2, 3, 4, 5, 6})
    for (bool experts : {false, true}) {
      if (experts && config->moe.experts == 0) continue;
      SCOPED_TRACE(GetParam() + ", ranks " + std::to_string(ranks) + (experts ? ", whole experts" : ""));
      auto several = logits(path, options_for(ranks, experts));
      // The heads of the FP8 oracle, 40 rows each, do not end where blocks of 128 x 128 can be cut.
      if (split_heads({.size = ranks}, config->heads, config->kv_heads).q.count == 0 || GetParam() == "deepseek_v3_fp8") {
        ASSERT_FALSE(several.ok());
        EXPECT_NE(several.error().message.find("split"), std::string::npos) << several.error().message;
        EXPECT_NE(several.error().message.find("--tensor-parallel-size"), std::string::npos) << several.error().message;
        continue;
      }
      ASSERT_TRUE(several.ok()) << several.error().message;
      expect_close(*several, *one, 1e-5);
      VerifyOptions verify{.open = options_for(ranks, experts), .chunk = 7};
      auto report = verify_checkpoint(path, verify);
      ASSERT_TRUE(report.ok()) << report.error().message;
      for (const VerifyPrompt& p : report->prompts) {
        EXPECT_TRUE(p.passed) << p.name << ": " << p.failure;
        EXPECT_EQ(p.greedy, p.expected_greedy) << p.name;
        EXPECT_TRUE(p.chunk_equal) << p.name;
      }
      worked++;
    }
  if (GetParam() != "deepseek_v3_fp8") {
    EXPECT_GT(worked, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ParallelGolden, ::testing::ValuesIn(split_oracles()), [](const auto& info) { return info.param; });

TEST(Parallel, Fp8CheckpointOfMiniR1) {
  const std::string path = root() + "/models/mini-r1";
  for (const char* dtype : {"float32", "auto"}) {
    auto one = logits(path, options_for(1, false, dtype));
    ASSERT_TRUE(one.ok()) << one.error().message;
    for (auto [ranks, experts] : {std::pair{2, false}, {2, true}, {3, false}}) {
      SCOPED_TRACE(std::string(dtype) + ", ranks " + std::to_string(ranks));
      auto several = logits(path, options_for(ranks, experts, dtype));
      ASSERT_TRUE(several.ok()) << several.error().message;
      expect_close(*several, *one, std::string(dtype) == "auto" ? 0.06 : 1e-5);  // auto rounds activations to bf16
    }
  }
}

// The reference backend computes in ranks too.
TEST(Parallel, ReferenceBackend) {
  OpenOptions options = options_for(2, true);
  options.backend = "reference";
  const std::string path = root() + "/tests/golden/deepseek_v2";
  auto two = logits(path, options);
  ASSERT_TRUE(two.ok()) << two.error().message;
  auto one = logits(path, options_for(1, false));
  ASSERT_TRUE(one.ok());
  expect_close(*two, *one, 1e-5);
}

TEST(Parallel, EachRankHasItsShareOfTheBytes) {
  const std::string path = root() + "/models/mini-r1";
  auto one = open_model(path, options_for(1, false, "auto")), two = open_model(path, options_for(2, false, "auto")),
       experts = open_model(path, options_for(2, true, "auto"));
  ASSERT_TRUE(one.ok() && two.ok() && experts.ok());
  const auto whole = static_cast<double>((*one)->store->bytes());
  for (auto* m : {two->get(), experts->get()}) {
    double sum = 0;
    for (int r = 0; r < 2; r++) sum += static_cast<double>(m->rank(r).store->bytes());
    EXPECT_GT(sum, whole);
    EXPECT_LT(sum, 1.35 * whole) << "the embedding, the first MLA products and the norms are on both";
    EXPECT_NEAR(static_cast<double>(m->rank(0).store->bytes()), sum / 2, sum / 20);
  }
}

TEST(Parallel, FaultsAreOneLine) {
  auto error = [&](const std::string& path, OpenOptions options) {
    auto opened = open_model(root() + path, options);
    EXPECT_FALSE(opened.ok());
    return opened.ok() ? "" : opened.error().message;
  };
  EXPECT_NE(error("/tests/golden/llama_mha", options_for(4, false))
                .find("/config.json: --tensor-parallel-size 4: 5 attention heads (num_key_value_heads 5) cannot be split so; use 1 or 5"),
            std::string::npos);
  EXPECT_NE(error("/tests/golden/deepseek_v3_fp8", options_for(2, false))
                .find("/config.json: --tensor-parallel-size 2: 4 attention heads of 40 rows or columns of weights that can be cut every 32 "
                      "cannot be split so; use 1"),
            std::string::npos);
  OpenOptions checked = options_for(2, false);
  checked.backend = "checked";
  EXPECT_EQ(error("/tests/golden/qwen3", checked), "--backend checked runs on one device: leave --tensor-parallel-size out");
}

TEST(Parallel, RandomWeightsHaveTheShapesOfTheRanks) {
  OpenOptions options = options_for(2, true, "auto");
  options.dummy_weights = true;
  auto values = logits(root() + "/models/mini-r1", options);
  ASSERT_TRUE(values.ok()) << values.error().message;
  for (float v : *values) ASSERT_TRUE(std::isfinite(v));
}

}  // namespace
}  // namespace dg
