#include "text/gguf_tokenizer.h"

#include <gtest/gtest.h>

namespace dg {
namespace {

std::string refusal(const GgufVocabulary& v) {
  auto made = make_gguf_tokenizer(v, "m.gguf");
  return made.ok() ? "accepted" : made.error().message;
}

TEST(GgufTokenizer, BytesAreAVocabulary) {
  const GgufVocabulary v = byte_gguf_vocabulary(300);
  ASSERT_EQ(v.tokens.size(), 300u);
  ASSERT_EQ(v.types.size(), 300u);
  auto tokenizer = make_gguf_tokenizer(v, "m.gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  const std::string text = "Hi  there, 世界\n";
  const auto ids = (*tokenizer)->encode(text);
  EXPECT_LE(ids.size(), text.size());
  EXPECT_EQ((*tokenizer)->decode(ids), text);
  EXPECT_EQ((*tokenizer)->bos_id(), 256);
  EXPECT_EQ((*tokenizer)->eos_id(), 257);
  EXPECT_TRUE((*tokenizer)->is_special(257));
  EXPECT_EQ((*tokenizer)->content(299), "") << "unused ids are no tokens";
}

TEST(GgufTokenizer, ControlTokensOfDeepSeekStayVisible) {
  GgufVocabulary v = byte_gguf_vocabulary(259);
  v.pre = "deepseek-v3";
  for (const char* token : {"<｜User｜>", "<|im_start|>", "<think>"}) v.tokens.emplace_back(token);
  v.types.insert(v.types.end(), {3, 3, 4});
  auto tokenizer = make_gguf_tokenizer(v, "m.gguf");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  EXPECT_EQ((*tokenizer)->encode("<think><｜User｜>"), (std::vector<int32_t>{261, 259}));
  EXPECT_FALSE((*tokenizer)->is_special(259));
  EXPECT_TRUE((*tokenizer)->is_special(260));
  EXPECT_FALSE((*tokenizer)->is_special(261));
}

TEST(GgufTokenizer, FaultsNameTheKey) {
  const GgufVocabulary good = byte_gguf_vocabulary(300);
  GgufVocabulary v = good;
  v.pre = "falcon\n";
  EXPECT_NE(refusal(v).find("m.gguf: tokenizer.ggml.pre: expected one of deepseek-v3"), std::string::npos) << refusal(v);
  EXPECT_EQ(refusal(v).find('\n'), std::string::npos);
  v = good;
  v.tokens.clear();
  EXPECT_NE(refusal(v).find("tokenizer.ggml.tokens: expected 1 to"), std::string::npos) << refusal(v);
  v = good;
  v.types.pop_back();
  EXPECT_NE(refusal(v).find("tokenizer.ggml.token_type: expected a type for each of the 300 tokens, found 299"), std::string::npos)
      << refusal(v);
  v = good;
  v.tokens[7] = "\xff\xfe";
  EXPECT_NE(refusal(v).find("tokenizer.ggml.tokens[7]: expected UTF-8"), std::string::npos) << refusal(v);
  v = good;
  v.merges.push_back("\xc0 a");
  EXPECT_NE(refusal(v).find("tokenizer.ggml.merges[1]: expected UTF-8"), std::string::npos) << refusal(v);
  for (const char* merge : {"ab", "a b c"}) {
    v.merges.back() = merge;
    EXPECT_NE(refusal(v).find("tokenizer.ggml.merges[1]: expected two tokens"), std::string::npos) << refusal(v);
  }
  v = good;
  v.chat_template = "\xff";
  EXPECT_NE(refusal(v).find("tokenizer.chat_template: expected UTF-8"), std::string::npos) << refusal(v);
  v = good;
  v.eos = 300;
  EXPECT_NE(refusal(v).find("tokenizer.ggml.eos_token_id: expected an id below 300, found 300"), std::string::npos) << refusal(v);
  v = good;
  v.tokens[1] = v.tokens[0];
  EXPECT_NE(refusal(v).find("occurs twice"), std::string::npos) << refusal(v);
  v = good;
  v.merges.push_back("no-such-token x");
  EXPECT_EQ(refusal(v).rfind("m.gguf: tokenizer.ggml", 0), 0u) << refusal(v);
  v = good;
  v.tokens[3] = "quote\" back\\slash \x01";  // must not break out of the JSON text
  EXPECT_EQ(refusal(v), "accepted");
}

}  // namespace
}  // namespace dg
