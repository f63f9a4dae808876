// Small tokenizers, one per feature of tokenizer.json (variants.mjs), against Hugging Face's Rust library.
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/json.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace dg {
namespace {

std::vector<Json> read_variants() {
  std::vector<Json> rows;
  auto text = read_file(DG_SOURCE_DIR "/tests/tokenizer/vectors/variants.jsonl", size_t{64} << 20);
  if (!text.ok()) return rows;
  size_t at = 0;
  for (size_t end; (end = text->find('\n', at)) != std::string::npos; at = end + 1) {
    auto row = parse_json(std::string_view(*text).substr(at, end - at), "variants.jsonl");
    if (row.ok()) rows.push_back(std::move(row).value());
  }
  return rows;
}

TEST(Variants, IdsAndTextsAreThoseOfHuggingFace) {
  const std::vector<Json> rows = read_variants();
  ASSERT_GE(rows.size(), 40u);
  for (const Json& row : rows) {
    const std::string name = row["name"];
    auto tokenizer = Tokenizer::from_json(row["tokenizer"].dump(), "", name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    for (const Json& item : row["cases"]) {
      const std::string text = item["text"];
      const auto ids = item["ids"].get<std::vector<int32_t>>();
      const auto special = item.contains("special") ? item["special"].get<std::vector<int32_t>>() : ids;
      EXPECT_EQ((*tokenizer)->encode(text, {.add_special = false}), ids) << name << ": " << Json(text).dump();
      EXPECT_EQ((*tokenizer)->encode(text), special) << name << ": " << Json(text).dump();
      EXPECT_EQ((*tokenizer)->decode(ids), item["decoded"].get<std::string>()) << name << ": " << Json(text).dump();
      EXPECT_EQ((*tokenizer)->decode(special, true), item["skipped"].get<std::string>()) << name << ": " << Json(text).dump();
    }
  }
}

TEST(Variants, StreamingGivesTheDecodedText) {
  for (const Json& row : read_variants()) {
    const std::string name = row["name"];
    auto tokenizer = Tokenizer::from_json(row["tokenizer"].dump(), "", name);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    StreamDetokenizer stream(**tokenizer, false);  // one for all texts: finish() must leave it as new
    for (const Json& item : row["cases"]) {
      std::string text;
      for (int32_t id : item["ids"]) text += stream.push(id);
      text += stream.finish();
      EXPECT_EQ(text, item["decoded"].get<std::string>()) << name;
    }
  }
}

}  // namespace
}  // namespace dg
