// The dry run of real shapes against closed forms and against the published parameter counts.
#include "plan/sizing.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "quant/bf16.h"
#include "quant/fp8_block.h"

namespace dg {
namespace {

struct Dry {
  DryBackend backend;
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<Model> model;
};

std::unique_ptr<Dry> dry_model(const char* json, const Format& published) {
  auto dry = std::make_unique<Dry>();
  auto config = parse_model_config(*parse_json(json, "test"), "test");
  EXPECT_TRUE(config.ok());
  dry->store = std::make_unique<WeightStore>(dry->backend, nullptr, WeightPolicy{}, &published);
  dry->model = *make_model(*config, *dry->store);
  EXPECT_TRUE(dry->store->bind_dry().ok());
  return dry;
}

constexpr const char* kV3 = R"({"architectures":["DeepseekV3ForCausalLM"],"hidden_size":7168,"intermediate_size":18432,
 "moe_intermediate_size":2048,"num_hidden_layers":61,"num_attention_heads":128,"q_lora_rank":1536,"kv_lora_rank":512,"qk_nope_head_dim":128,
 "qk_rope_head_dim":64,"v_head_dim":128,"n_routed_experts":256,"n_shared_experts":1,"num_experts_per_tok":8,"first_k_dense_replace":3,
 "n_group":8,"topk_group":4,"topk_method":"noaux_tc","scoring_func":"sigmoid","norm_topk_prob":true,"routed_scaling_factor":2.5,
 "num_nextn_predict_layers":0,"vocab_size":129280,"max_position_embeddings":163840})";

constexpr const char* kV2Lite = R"({"architectures":["DeepseekV2ForCausalLM"],"hidden_size":2048,"intermediate_size":10944,
 "moe_intermediate_size":1408,"num_hidden_layers":27,"num_attention_heads":16,"q_lora_rank":null,"kv_lora_rank":512,"qk_nope_head_dim":128,
 "qk_rope_head_dim":64,"v_head_dim":128,"n_routed_experts":64,"n_shared_experts":2,"num_experts_per_tok":6,"first_k_dense_replace":1,
 "topk_method":"greedy","scoring_func":"softmax","vocab_size":102400,"max_position_embeddings":163840})";

constexpr const char* kQwen15 = R"({"architectures":["Qwen2ForCausalLM"],"hidden_size":1536,"intermediate_size":8960,"num_hidden_layers":28,
 "num_attention_heads":12,"num_key_value_heads":2,"vocab_size":151936,"max_position_embeddings":131072})";

int64_t parameters(const WeightStore& store) {
  int64_t n = store.vector_total().parameters;
  for (int c = 0; c < kWeightClassCount; c++) n += store.total(static_cast<WeightClass>(c)).parameters;
  return n;
}

TEST(Sizing, ParameterCountsArePublishedOnes) {
  auto v3 = dry_model(kV3, kFp8BlockFormat);
  EXPECT_NEAR(static_cast<double>(parameters(*v3->store)) / 1e9, 671.03, 0.01);
  EXPECT_NEAR(static_cast<double>(v3->model->active_parameters()) / 1e9, 36.63, 0.01);
  EXPECT_NEAR(static_cast<double>(v3->store->total(WeightClass::kExpert).parameters) / 1e9, 653.91, 0.01);
  auto lite = dry_model(kV2Lite, kBf16);
  EXPECT_NEAR(static_cast<double>(parameters(*lite->store)) / 1e9, 15.706, 0.001);
  EXPECT_NEAR(static_cast<double>(lite->model->active_parameters()) / 1e9, 2.451, 0.001);
  auto qwen = dry_model(kQwen15, kBf16);
  EXPECT_NEAR(static_cast<double>(parameters(*qwen->store)) / 1e9, 1.777, 0.001);
}

TEST(Sizing, CacheBytesPerTokenArePublishedOnes) {
  CacheLayout v3, lite, qwen;
  dry_model(kV3, kFp8BlockFormat)->model->register_cache(v3);
  dry_model(kV2Lite, kBf16)->model->register_cache(lite);
  dry_model(kQwen15, kBf16)->model->register_cache(qwen);
  EXPECT_EQ(v3.bytes_per_token(Dtype::kBf16), 70272);
  EXPECT_EQ(lite.bytes_per_token(Dtype::kBf16), 31104);
  EXPECT_EQ(qwen.bytes_per_token(Dtype::kBf16), 28672);
}

TEST(Sizing, DecodeReadsEveryWeightOnceAndOnlyTheChosenExperts) {
  auto dry = dry_model(kQwen15, kBf16);
  StepCost one = dry_run_step(*dry->model, {.tokens = 1, .kv_len = 1000, .decode = true}, Dtype::kBf16);
  // All matrices but the embedding table (one row of it), all vectors.
  double weights = static_cast<double>(dry->store->bytes_by_format().at("bf16")) - 151936.0 * 1536 * 2 + 1536 * 2;
  EXPECT_NEAR(one.total.weight_bytes, weights + static_cast<double>(dry->store->vector_total().bytes), 28 * 2048 * 4 + 1);
  EXPECT_NEAR(one.total.kv_bytes, 1001.0 * 28672, 1);
  EXPECT_NEAR(one.total.flops, 2.0 * 1543.6e6 + 4.0 * 1000 * 28 * 12 * 128, 0.01 * one.total.flops);

  auto moe = dry_model(kV2Lite, kBf16);
  StepCost token = dry_run_step(*moe->model, {.tokens = 1, .kv_len = 1, .decode = true}, Dtype::kBf16);
  double experts = 26.0 * 6 * 3 * 1408 * 2048 * 2;
  EXPECT_NEAR(token.by_op.at("moe_experts").cost.weight_bytes, experts, 1);
  StepCost many = dry_run_step(*moe->model, {.tokens = 4096, .kv_len = 4096}, Dtype::kBf16);
  EXPECT_NEAR(many.by_op.at("moe_experts").cost.weight_bytes, 26.0 * 64 * 3 * 1408 * 2048 * 2, 1e3);
}

TEST(Sizing, ArenaGrowsWithTokensNotWithContext) {
  auto dry = dry_model(kV3, kFp8BlockFormat);
  size_t small = measure_arena_bytes(*dry->model, 128, 8, 1024, 8), large = measure_arena_bytes(*dry->model, 256, 8, 1024, 8);
  size_t longer = measure_arena_bytes(*dry->model, 128, 8, 65536, 8);
  EXPECT_GT(large, small * 3 / 2);
  EXPECT_LT(static_cast<double>(longer), 1.1 * static_cast<double>(small));
}

}  // namespace
}  // namespace dg
