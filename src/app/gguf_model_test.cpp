// The embedded model as one GGUF file: the same configuration, tokens, prompts and answers as from its published form.
#include <gtest/gtest.h>

#include "app/model_options.h"
#include "app/model_tokenizer.h"
#include "app/synth_gguf.h"
#include "base/file.h"
#include "base/json.h"
#include "io/test_files.h"
#include "model/gguf_config.h"
#include "quant/f32.h"

namespace dg {
namespace {

constexpr const char* kPublished = DG_SOURCE_DIR "/models/mini-r1";

class GgufModelTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = new TestDirectory();
    auto config = read_model_config(kPublished);
    ASSERT_TRUE(config.ok());
    auto index = TensorIndex::open(kPublished);
    ASSERT_TRUE(index.ok());
    auto vocabulary = read_gguf_vocabulary(kPublished, config->vocab);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.error().message;
    auto generation = read_generation_config(kPublished);
    ASSERT_TRUE(generation.ok());
    CheckpointWeightRows weights(*index);
    auto written = export_gguf({.config = *config,
                                .weights = weights,
                                .vocabulary = *vocabulary,
                                .format = &kF32,
                                .path = path(),
                                .progress = false,
                                .generation = &*generation});
    ASSERT_TRUE(written.ok()) << written.error().message;
  }
  static void TearDownTestSuite() { delete directory_; }
  static std::string path() { return directory_->file("mini.gguf"); }

  static TestDirectory* directory_;
};
TestDirectory* GgufModelTest::directory_ = nullptr;

TEST_F(GgufModelTest, ConfigurationIsThePublishedOne) {
  auto a = read_model_config(kPublished), b = read_model_config(path());
  ASSERT_TRUE(b.ok()) << b.error().message;
  EXPECT_EQ(b->architecture, a->architecture);
  EXPECT_EQ(b->model_type, a->model_type);
  for (auto field : {&ModelConfig::hidden, &ModelConfig::intermediate, &ModelConfig::layers, &ModelConfig::heads, &ModelConfig::vocab,
                     &ModelConfig::max_position})
    EXPECT_EQ((*b).*field, (*a).*field);
  EXPECT_EQ(b->rms_eps, a->rms_eps);
  EXPECT_EQ(b->tie_embeddings, a->tie_embeddings);
  EXPECT_EQ(b->mla.q_lora, a->mla.q_lora);
  EXPECT_EQ(b->mla.kv_lora, a->mla.kv_lora);
  EXPECT_EQ(b->mla.nope, a->mla.nope);
  EXPECT_EQ(b->mla.rope, a->mla.rope);
  EXPECT_EQ(b->mla.v_dim, a->mla.v_dim);
  EXPECT_EQ(b->moe.experts, a->moe.experts);
  EXPECT_EQ(b->moe.top_k, a->moe.top_k);
  EXPECT_EQ(b->moe.groups, a->moe.groups);
  EXPECT_EQ(b->moe.top_groups, a->moe.top_groups);
  EXPECT_EQ(b->moe.normalise, a->moe.normalise);
  EXPECT_EQ(b->moe.routed_scale, a->moe.routed_scale);
  EXPECT_EQ(b->moe.first_dense, a->moe.first_dense);
  EXPECT_EQ(b->rope.type, a->rope.type);
  EXPECT_EQ(b->rope.factor, a->rope.factor);
  EXPECT_EQ(b->rope.original_max_position, a->rope.original_max_position);
  EXPECT_EQ(b->rope.mscale, a->rope.mscale);
  EXPECT_EQ(b->rope.mscale_all_dim, a->rope.mscale_all_dim);
  EXPECT_EQ(b->eos, a->eos);
  EXPECT_EQ(b->bos, a->bos);
  auto g = read_generation_config(kPublished), h = read_generation_config(path());
  ASSERT_TRUE(h.ok()) << h.error().message;
  EXPECT_EQ(h->eos, g->eos);
  EXPECT_EQ(h->temperature, g->temperature);
  EXPECT_EQ(h->top_p, g->top_p);
  EXPECT_EQ(h->top_k, g->top_k);
}

TEST_F(GgufModelTest, TokensAndPromptsAreThePublishedOnes) {
  OpenOptions options{.backend = "reference", .threads = 2, .max_model_len = 64, .progress = false};
  auto a = Tokenizer::load(kPublished), b = load_model_tokenizer(path());
  ASSERT_TRUE(a.ok() && b.ok()) << b.error().message;
  EXPECT_EQ((*a)->vocab_size(), (*b)->vocab_size());
  EXPECT_EQ((*a)->chat_template(), (*b)->chat_template());
  for (const char* text :
       {"What is 12 + 30?", "请算一下 515+4", "<think>\nI'd say\r\n\t…</think>", "<｜User｜>a<｜Assistant｜>", " x  y   ", ""})
    EXPECT_EQ((*a)->encode(text), (*b)->encode(text)) << text;
  const Json messages =
      Json::array({{{"role", "system"}, {"content", "Be brief."}}, {{"role", "user"}, {"content", "Is 17 a prime number?"}}});
  auto render = [&](const Tokenizer& t) {
    auto encoder = make_prompt_encoder({"deepseek_v3", t.chat_template(), t.bos_token(), t.eos_token()});
    EXPECT_TRUE(encoder.ok());
    return *(*encoder)->render(messages, nullptr, {});
  };
  EXPECT_EQ(render(**a), render(**b));
}

TEST_F(GgufModelTest, AnswersAreThePublishedOnes) {
  OpenOptions options{.threads = 2, .dtype = "float32", .max_model_len = 160, .progress = false};
  std::vector<std::vector<int32_t>> answers;
  for (const std::string& model : {std::string(kPublished), path(), directory_->path()}) {
    auto opened = open_model(model, options);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    auto encoded = encode_chat(**opened, Json::array({{{"role", "user"}, {"content", "What is 12 + 30?"}}}), nullptr, {});
    ASSERT_TRUE(encoded.ok());
    Generator generator(*(*opened)->executor, *(*opened)->tokenizer, {.max_context = 160});
    auto result = generator.run({.prompt = encoded->ids, .max_tokens = 100, .eos = (*opened)->eos}, {}, nullptr);
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_TRUE(result->text.ends_with("The answer is 42.")) << result->text;
    answers.push_back(result->ids);
  }
  EXPECT_EQ(answers[1], answers[0]);
  EXPECT_EQ(answers[2], answers[0]) << "the directory of the file is the same model";
}

TEST_F(GgufModelTest, FaultsNameFileAndKey) {
  auto text = read_file(path(), size_t{1} << 30);
  ASSERT_TRUE(text.ok());
  // Renames or retypes one key in place.
  auto with = [&](std::string_view from, std::string_view to) {
    std::string changed = *text;
    const size_t at = changed.find(from);
    CHECK(at != std::string::npos && from.size() == to.size()) << from;
    changed.replace(at, to.size(), to);
    directory_->write("broken.gguf.bin", changed);
    std::filesystem::rename(directory_->file("broken.gguf.bin"), directory_->file("b.gguf"));
    auto config = read_model_config(directory_->file("b.gguf"));
    auto tokenizer = load_model_tokenizer(directory_->file("b.gguf"));
    std::filesystem::remove(directory_->file("b.gguf"));
    return (config.ok() ? std::string() : config.error().message) + " | " + (tokenizer.ok() ? std::string() : tokenizer.error().message);
  };
  EXPECT_NE(with("deepseek2.embedding_length", "deepseek2.embedding_lengtx")
                .find("b.gguf: deepseek2.embedding_length: expected a whole number, found nothing"),
            std::string::npos);
  EXPECT_NE(with("general.architecture", "general.architecturx").find("general.architecture: expected llama, qwen2, qwen3 or deepseek2"),
            std::string::npos);
  EXPECT_NE(
      with("tokenizer.ggml.merges", "tokenizer.ggml.mergex").find("tokenizer.ggml.merges: expected an array of strings, found nothing"),
      std::string::npos);
  EXPECT_NE(with("tokenizer.ggml.model", "tokenizer.ggml.modex").find("tokenizer.ggml.model: expected \"gpt2\""), std::string::npos);
}

}  // namespace
}  // namespace dg
