#include "model/config.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "model/rope.h"

namespace dg {
namespace {

// DeepSeek-V3 as published.
constexpr const char* kV3 = R"({"architectures":["DeepseekV3ForCausalLM"],"model_type":"deepseek_v3","hidden_size":7168,
 "intermediate_size":18432,"moe_intermediate_size":2048,"num_hidden_layers":61,"num_attention_heads":128,"num_key_value_heads":128,
 "q_lora_rank":1536,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"v_head_dim":128,"n_routed_experts":256,
 "n_shared_experts":1,"num_experts_per_tok":8,"first_k_dense_replace":3,"moe_layer_freq":1,"n_group":8,"topk_group":4,
 "topk_method":"noaux_tc","scoring_func":"sigmoid","norm_topk_prob":true,"routed_scaling_factor":2.5,"num_nextn_predict_layers":1,
 "rope_theta":10000,"rope_scaling":{"type":"yarn","factor":40,"original_max_position_embeddings":4096,"beta_fast":32,"beta_slow":1,
 "mscale":1.0,"mscale_all_dim":1.0},"max_position_embeddings":163840,"rms_norm_eps":1e-6,"vocab_size":129280,"bos_token_id":0,
 "eos_token_id":1,"tie_word_embeddings":false,"hidden_act":"silu","attention_bias":false,"torch_dtype":"bfloat16",
 "quantization_config":{"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic","weight_block_size":[128,128]}})";

Json v3() { return *parse_json(kV3, "test"); }

Result<ModelConfig> with(const std::function<void(Json&)>& change) {
  Json json = v3();
  change(json);
  return parse_model_config(json, "m/config.json");
}

std::string message(const std::function<void(Json&)>& change) {
  auto result = with(change);
  EXPECT_FALSE(result.ok());
  return result.ok() ? "" : result.error().message;
}

TEST(ModelConfig, ReadsV3) {
  auto c = parse_model_config(v3(), "m/config.json");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(c->mla.kv_lora + c->mla.rope, 576);
  EXPECT_EQ(c->moe.top_groups, 4);
  EXPECT_FALSE(c->is_moe_layer(2));
  EXPECT_TRUE(c->is_moe_layer(3));
  EXPECT_EQ(c->eos, std::vector<int64_t>{1});
  EXPECT_EQ(c->rope.type, RopeType::kYarn);
  EXPECT_EQ(c->mtp_modules, 1);
}

TEST(ModelConfig, ErrorsNameFieldExpectedAndFound) {
  EXPECT_EQ(message([](Json& j) { j["hidden_size"] = "7168"; }),
            "m/config.json: hidden_size: expected an integer from 1 to 1048576, found \"7168\"");
  EXPECT_EQ(message([](Json& j) { j["num_hidden_layers"] = 1000000; }),
            "m/config.json: num_hidden_layers: expected an integer from 1 to 1000, found 1000000");
  EXPECT_EQ(message([](Json& j) { j.erase("vocab_size"); }), "m/config.json: vocab_size is missing");
  EXPECT_EQ(message([](Json& j) { j["hidden_act"] = "gelu"; }), "m/config.json: hidden_act: expected \"silu\", found \"gelu\"");
  EXPECT_EQ(message([](Json& j) { j["num_key_value_heads"] = 3; }),
            "m/config.json: num_key_value_heads 3 does not divide num_attention_heads 128");
  EXPECT_EQ(message([](Json& j) { j["rope_scaling"]["type"] = "su"; }),
            "m/config.json: rope_scaling: rope type \"su\" is not supported (default, linear, llama3, yarn)");
  EXPECT_EQ(message([](Json& j) { j["rope_scaling"] = 7; }), "m/config.json: rope_scaling: expected an object, found 7");
  EXPECT_EQ(message([](Json& j) { j["quantization_config"]["quant_method"] = "bitsandbytes"; }),
            "m/config.json: quantization_config: quant_method: expected \"fp8\", \"awq\", \"gptq\" or \"compressed-tensors\", found "
            "\"bitsandbytes\"; use the bf16 or FP8 checkpoint");
  EXPECT_EQ(message([](Json& j) {
              j["quantization_config"]["weight_block_size"] = {64, 64};
            }),
            "m/config.json: quantization_config: weight_block_size: expected [128,128] or [32,32], found [64,64]");
  EXPECT_EQ(message([](Json& j) { j["n_group"] = 7; }), "m/config.json: n_group 7 does not divide n_routed_experts 256");
  EXPECT_EQ(message([](Json& j) { j["eos_token_id"] = "x"; }),
            "m/config.json: eos_token_id: expected a token id or a list of them, found \"x\"");
  EXPECT_EQ(message([](Json& j) { j["topk_group"] = 1, j["n_group"] = 64; }),
            "m/config.json: num_experts_per_tok 8 exceeds the 4 experts of topk_group 1 groups");
  EXPECT_EQ(message([](Json& j) { j["qk_rope_head_dim"] = 63; }), "m/config.json: qk_rope_head_dim: expected an even number, found 63");
  EXPECT_EQ(message([](Json& j) { j["architectures"] = Json::array(); }),
            "m/config.json: architectures: expected a list with one name such as [\"DeepseekV3ForCausalLM\"], found []");
  EXPECT_EQ(parse_model_config(Json::array(), "c").error().message, "c: expected a JSON object, found []");
}

TEST(ModelConfig, ReadsQuantizationConfigs) {
  auto quantization = [](const char* text) {
    auto c = with([&](Json& j) { j["quantization_config"] = *parse_json(text, "q"); });
    EXPECT_TRUE(c.ok()) << c.error().message;
    return c.ok() ? c->quantization : QuantConfig{};
  };
  QuantConfig awq = quantization(R"({"quant_method":"awq","bits":4,"group_size":128,"zero_point":true,"version":"GEMM",
                                     "modules_to_not_convert":["visual"]})");
  EXPECT_EQ(awq.method, QuantConfig::Method::kAwq);
  EXPECT_EQ(awq.group, 128);
  EXPECT_FALSE(awq.symmetric);
  QuantConfig gptq = quantization(R"({"quant_method":"gptq","bits":8,"group_size":-1,"desc_act":true,"sym":false,
                                      "checkpoint_format":"gptq_v2"})");
  EXPECT_EQ(gptq.method, QuantConfig::Method::kGptq);
  EXPECT_EQ(gptq.bits, 8);
  EXPECT_EQ(gptq.group, -1);
  EXPECT_TRUE(gptq.act_order && !gptq.symmetric && !gptq.zero_minus_one);
  EXPECT_TRUE(quantization(R"({"quant_method":"gptq","bits":4,"group_size":32})").zero_minus_one);
  QuantConfig packed = quantization(R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":{"group_0":{}},
                                        "ignore":["lm_head"],"sparsity_config":{"format":"dense"}})");
  EXPECT_EQ(packed.method, QuantConfig::Method::kCompressedTensors);
  EXPECT_EQ(quantization(R"({"quant_method":"fp8","weight_block_size":[32,32]})").method, QuantConfig::Method::kFp8);

  auto fault = [](const char* text) {
    std::string m = message([&](Json& j) { j["quantization_config"] = *parse_json(text, "q"); });
    const std::string prefix = "m/config.json: quantization_config: ";
    EXPECT_EQ(m.find(prefix), 0u) << m;
    return m.substr(std::min(m.size(), prefix.size()));
  };
  EXPECT_EQ(fault(R"({"quant_method":"gptq","bits":3,"group_size":128})"), "bits: expected 4 or 8, found 3");
  EXPECT_EQ(fault(R"({"quant_method":"gptq","group_size":128})"), "bits is missing");
  EXPECT_EQ(fault(R"({"quant_method":"gptq","bits":4,"group_size":0})"), "group_size: expected -1 or a multiple of 32, found 0");
  EXPECT_EQ(fault(R"({"quant_method":"awq","group_size":16})"), "group_size: expected -1 or a multiple of 32, found 16");
  EXPECT_EQ(fault(R"({"quant_method":"awq","bits":8})"), "bits: AWQ has 4, found 8");
  EXPECT_EQ(fault(R"({"quant_method":"awq","version":"gemv"})"),
            "version: expected \"gemm\", found \"gemv\"; it packs weights differently, use the gemm checkpoint");
  EXPECT_EQ(fault(R"({"quant_method":"gptq","bits":4,"checkpoint_format":"marlin"})"),
            "checkpoint_format: expected \"gptq\" or \"gptq_v2\", found \"marlin\"");
  EXPECT_EQ(fault(R"({"quant_method":"compressed-tensors","format":"nvfp4-pack-quantized"})"),
            "format: expected pack-quantized, int-quantized or float-quantized, found \"nvfp4-pack-quantized\"");
  EXPECT_EQ(fault(R"({"quant_method":"compressed-tensors","sparsity_config":{"format":"sparse-24-bitmask"}})"),
            "sparsity_config: format: expected \"dense\", found \"sparse-24-bitmask\"");
}

TEST(ModelConfig, ReadsRopeParametersOfTransformers5) {
  auto c = with([](Json& j) {
    j.erase("rope_scaling");
    j.erase("rope_theta");
    j["rope_parameters"] = {{"rope_type", "linear"}, {"factor", 4.0}, {"rope_theta", 100000.0}};
    j["eos_token_id"] = {1, 5};
  });
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->rope.type, RopeType::kLinear);
  EXPECT_EQ(c->rope.theta, 100000);
  EXPECT_EQ(c->eos.size(), 2u);
}

void expect_close(double found, double expected) { EXPECT_NEAR(found / expected, 1, 2e-6) << found << " " << expected; }

// The check values are those of the specification (computed from the papers' formulas).
TEST(Rope, YarnOfV3) {
  RopeTable t = make_rope_table(parse_model_config(v3(), "c")->rope, 64);
  expect_close(t.inv_freq[10], 5.623413e-2);
  expect_close(t.inv_freq[11], 3.900693e-2);
  expect_close(t.inv_freq[16], 5.5e-3);
  expect_close(t.inv_freq[22], 1.778279e-4);
  expect_close(t.inv_freq[31], 3.333804e-6);
  EXPECT_EQ(t.magnitude, 1);
  expect_close(mla_softmax_scale(parse_model_config(v3(), "c")->rope, 192), 0.1352337789);
}

TEST(Rope, Llama3) {
  RopeConfig c{
      .type = RopeType::kLlama3, .theta = 5e5, .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_max_position = 8192};
  RopeTable t = make_rope_table(c, 128);
  expect_close(t.inv_freq[28], 3.211446e-3);
  expect_close(t.inv_freq[29], 2.166571e-3);
  expect_close(t.inv_freq[33], 3.126938e-4);
  expect_close(t.inv_freq[35], 9.556212e-5);
  expect_close(t.inv_freq[63], 3.068926e-7);
}

TEST(Rope, QwenDistillYarnKeepsMagnitudeOne) {
  RopeConfig c{.type = RopeType::kYarn, .theta = 1e6, .factor = 4, .original_max_position = 32768};
  c.attn_factor = 0.8782488562869419;
  RopeTable t = make_rope_table(c, 128);
  expect_close(t.inv_freq[24], 5.375321e-3);
  expect_close(t.inv_freq[40], 4.445699e-5);
  EXPECT_NEAR(t.magnitude, 1, 1e-6);
  c.attn_factor.reset();
  EXPECT_NEAR(make_rope_table(c, 128).magnitude, yarn_mscale(4, 1), 1e-6);
  c.attention_factor = 0.5;
  EXPECT_EQ(make_rope_table(c, 128).magnitude, 0.5f);
}

TEST(Rope, LinearDividesFrequencies) {
  RopeTable t = make_rope_table({.type = RopeType::kLinear, .theta = 1e5, .factor = 4}, 128);
  expect_close(t.inv_freq[0], 0.25);
}

}  // namespace
}  // namespace dg
