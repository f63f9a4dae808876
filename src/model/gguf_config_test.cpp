#include "model/gguf_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "io/gguf_write.h"
#include "io/test_files.h"
#include "model/rope.h"
#include "quant/f32.h"

namespace dg {
namespace {

// Metadata of a small model of `arch`, before `more` is added.
GgufMetadata basic(std::string_view arch) {
  GgufMetadata m;
  const std::string prefix = std::string(arch) + ".";
  m.add_text("general.architecture", arch);
  m.add_u32(prefix + "block_count", 2);
  m.add_u32(prefix + "embedding_length", 64);
  m.add_u32(prefix + "feed_forward_length", 128);
  m.add_u32(prefix + "attention.head_count", 4);
  m.add_u32(prefix + "context_length", 4096);
  m.add_f32(prefix + "attention.layer_norm_rms_epsilon", 1e-6f);
  m.add_u32(prefix + "vocab_size", 100);
  return m;
}

class GgufConfigTest : public ::testing::Test {
 protected:
  Result<ModelConfig> read(const GgufMetadata& metadata, std::vector<std::pair<std::string, std::vector<float>>> tensors = {}) {
    std::vector<GgufTensorToWrite> list;
    for (auto& [name, values] : tensors) list.push_back({name, &kF32, {static_cast<int64_t>(values.size())}});
    auto writer = GgufWriter::create(dir_.file("m.gguf"), metadata, list);
    EXPECT_TRUE(writer.ok());
    for (auto& [name, values] : tensors) EXPECT_TRUE(writer->write(std::as_bytes(std::span(values))).ok());
    EXPECT_TRUE(writer->commit().ok());
    return read_model_config(dir_.file("m.gguf"));
  }
  TestDirectory dir_;
};

GgufMetadata deepseek() {
  GgufMetadata m = basic("deepseek2");
  m.add_u32("deepseek2.attention.kv_lora_rank", 32);
  m.add_u32("deepseek2.rope.dimension_count", 8);
  m.add_u32("deepseek2.expert_count", 16);
  m.add_u32("deepseek2.expert_used_count", 4);
  m.add_u32("deepseek2.expert_shared_count", 1);
  m.add_u32("deepseek2.expert_feed_forward_length", 48);
  m.add_u32("deepseek2.leading_dense_block_count", 1);
  return m;
}

TEST_F(GgufConfigTest, AbsorbedAndLegacyLengthsMeanTheSame) {
  GgufMetadata absorbed = deepseek(), legacy = deepseek();
  absorbed.add_u32("deepseek2.attention.key_length", 40);
  absorbed.add_u32("deepseek2.attention.value_length", 32);
  absorbed.add_u32("deepseek2.attention.key_length_mla", 24);
  absorbed.add_u32("deepseek2.attention.value_length_mla", 16);
  legacy.add_u32("deepseek2.attention.key_length", 24);
  legacy.add_u32("deepseek2.attention.value_length", 16);
  for (const GgufMetadata& m : {absorbed, legacy}) {
    auto c = read(m);
    ASSERT_TRUE(c.ok()) << c.error().message;
    EXPECT_EQ(c->architecture, "DeepseekV2ForCausalLM") << "without a gating function: V2";
    EXPECT_EQ(c->mla.nope, 16);
    EXPECT_EQ(c->mla.rope, 8);
    EXPECT_EQ(c->mla.v_dim, 16);
    EXPECT_EQ(c->mla.q_lora, 0);
    EXPECT_EQ(c->moe.topk_method, "greedy");
    EXPECT_EQ(c->moe.routed_scale, 1.0f);
    EXPECT_TRUE(c->tie_embeddings) << "no output.weight";
  }
}

TEST_F(GgufConfigTest, SigmoidGatingIsV3WithYarn) {
  GgufMetadata m = deepseek();
  m.add_u32("deepseek2.attention.key_length_mla", 24);
  m.add_u32("deepseek2.attention.value_length_mla", 16);
  m.add_u32("deepseek2.expert_gating_func", 2);
  m.add_u32("deepseek2.expert_group_count", 4);
  m.add_u32("deepseek2.expert_group_used_count", 2);
  m.add_f32("deepseek2.expert_weights_scale", 2.5f);
  m.add_bool("deepseek2.expert_weights_norm", true);
  m.add_text("deepseek2.rope.scaling.type", "yarn");
  m.add_f32("deepseek2.rope.scaling.factor", 40);
  m.add_u32("deepseek2.rope.scaling.original_context_length", 4096);
  m.add_f32("deepseek2.rope.scaling.yarn_log_multiplier", 0.1f);
  m.add_u32("tokenizer.ggml.eos_token_id", 1);
  m.add_u32("tokenizer.ggml.eot_token_id", 7);
  auto c = read(m);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(c->moe.groups, 4);
  EXPECT_EQ(c->moe.top_groups, 2);
  EXPECT_TRUE(c->moe.normalise);
  EXPECT_EQ(c->moe.routed_scale, 2.5f);
  EXPECT_EQ(c->rope.mscale_all_dim, 1.0);
  // DeepSeek-V3: softmax scale of 192-dimensional queries times (0.1 ln 40 + 1)^2.
  EXPECT_FLOAT_EQ(mla_softmax_scale(c->rope, 192), static_cast<float>(std::pow(0.1 * std::log(40.0) + 1, 2) / std::sqrt(192.0)));
  EXPECT_EQ(make_rope_table(c->rope, 8).magnitude, 1.0f);
  EXPECT_EQ(c->eos, (std::vector<int64_t>{1, 7}));
  EXPECT_EQ(read_generation_config(dir_.file("m.gguf"))->eos, (std::vector<int64_t>{1, 7}));
}

TEST_F(GgufConfigTest, PublishedGroupsAreFilledIn) {
  GgufMetadata m;
  m.add_text("general.architecture", "deepseek2");
  const std::pair<const char*, uint32_t> kV3[] = {{"block_count", 61},
                                                  {"embedding_length", 7168},
                                                  {"feed_forward_length", 18432},
                                                  {"attention.head_count", 128},
                                                  {"context_length", 163840},
                                                  {"vocab_size", 129280},
                                                  {"attention.kv_lora_rank", 512},
                                                  {"rope.dimension_count", 64},
                                                  {"attention.key_length", 192},
                                                  {"attention.value_length", 128},
                                                  {"expert_count", 256},
                                                  {"expert_used_count", 8},
                                                  {"expert_shared_count", 1},
                                                  {"expert_feed_forward_length", 2048},
                                                  {"expert_gating_func", 2}};
  for (auto [key, value] : kV3) m.add_u32(std::string("deepseek2.") + key, value);
  auto c = read(m);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->moe.groups, 8);
  EXPECT_EQ(c->moe.top_groups, 4);
}

TEST_F(GgufConfigTest, PredictionLayersAreNotCountedTwice) {
  GgufMetadata m = basic("qwen2");
  m.add_u32("qwen2.nextn_predict_layers", 1);
  EXPECT_EQ(read(m, {{"blk.1.attn_norm.weight", {1}}, {"blk.1.nextn.eh_proj.weight", {1}}})->layers, 1);
  EXPECT_EQ(read(m, {{"blk.0.attn_norm.weight", {1}}, {"blk.1.attn_norm.weight", {1}}})->layers, 2) << "only announced";
}

TEST_F(GgufConfigTest, RopeDivisorsScaleTheFrequencies) {
  GgufMetadata m = basic("llama");
  m.add_f32("llama.rope.freq_base", 500000);
  m.add_u32("llama.attention.head_count_kv", 2);
  auto c = read(m, {{"rope_freqs.weight", {1, 1, 1, 1, 2, 4, 8, 8}}, {"output.weight", {1}}});
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->kv_heads, 2);
  EXPECT_FALSE(c->tie_embeddings);
  const RopeTable table = make_rope_table(c->rope, 16);
  for (size_t i = 0; i < 8; i++) {
    const double plain = std::pow(500000.0, -static_cast<double>(i) / 8);
    EXPECT_FLOAT_EQ(table.inv_freq[i], static_cast<float>(plain / (i < 4 ? 1 : i == 4 ? 2 : i == 5 ? 4 : 8))) << i;
  }
  auto wrong = read(m, {{"rope_freqs.weight", {1, 1, 1}}});
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("rope_freqs.weight: expected 8 numbers in F32"), std::string::npos) << wrong.error().message;
  wrong = read(m, {{"rope_freqs.weight", {1, 1, 1, 0, 1, 1, 1, 1}}});
  ASSERT_FALSE(wrong.ok());
  EXPECT_NE(wrong.error().message.find("expected divisors from 0.001 to 1e6, found 0 at [3]"), std::string::npos) << wrong.error().message;
}

TEST_F(GgufConfigTest, FaultsNameTheKey) {
  struct Case {
    std::function<void(GgufMetadata&)> add;
    const char* expected;
  };
  const Case cases[] = {
      {[](GgufMetadata& m) { m.add_text("qwen2.rope.scaling.type", "longrope"); },
       "qwen2.rope.scaling.type: expected none, linear or yarn"},
      {[](GgufMetadata& m) { m.add_text("qwen2.rope.scaling.type", "yarn"); },
       "qwen2.rope.scaling.factor: expected a number, found nothing"},
      {[](GgufMetadata& m) { m.add_text("qwen2.rope.freq_base", "x"); }, "qwen2.rope.freq_base: expected a number, found the string \"x\""},
      {[](GgufMetadata& m) { m.add_f32("qwen2.rope.freq_base", INFINITY); }, "qwen2.rope.freq_base: expected a number"},
      {[](GgufMetadata& m) { m.add_u32("qwen2.rope.dimension_count", 8); },
       "qwen2.rope.dimension_count: expected the head size 16, found u32 8"},
      {[](GgufMetadata& m) { m.add_u32("qwen2.attention.head_count_kv", 3); }, "does not divide"},
      {[](GgufMetadata& m) {
         m.add_i32s("qwen2.attention.head_count_kv", std::vector<int32_t>{2, 4});
       },
       "the same number for all layers"},
      {[](GgufMetadata& m) { m.add_text("tokenizer.ggml.eos_token_id", "x"); }, "tokenizer.ggml.eos_token_id: expected a whole number"},
      {[](GgufMetadata& m) { m.add_f32("qwen2.attention.key_length", 1e30f); }, "qwen2.attention.key_length: expected a whole number"},
  };
  for (const Case& c : cases) {
    GgufMetadata m = basic("qwen2");
    c.add(m);
    auto config = read(m);
    ASSERT_FALSE(config.ok()) << c.expected;
    EXPECT_NE(config.error().message.find(c.expected), std::string::npos) << config.error().message;
    EXPECT_NE(config.error().message.find("m.gguf"), std::string::npos) << config.error().message;
    EXPECT_EQ(config.error().message.find('\n'), std::string::npos);
  }
  auto other = read(basic("mamba"));
  ASSERT_FALSE(other.ok());
  EXPECT_NE(other.error().message.find("general.architecture: expected llama, qwen2, qwen3 or deepseek2, found \"mamba\""),
            std::string::npos);
}

}  // namespace
}  // namespace dg
