#include "text/reasoning.h"

#include <gtest/gtest.h>

#include <random>

namespace dg {
namespace {

struct Split {
  std::string reasoning, content;
  std::string order;  // one letter per change of kind
  bool operator==(const Split&) const = default;
};

void add(Split& split, const std::vector<ReasoningSplitter::Piece>& pieces) {
  for (auto& piece : pieces) {
    EXPECT_FALSE(piece.text.empty());
    (piece.reasoning ? split.reasoning : split.content) += piece.text;
    char kind = piece.reasoning ? 'r' : 'c';
    if (split.order.empty() || split.order.back() != kind) split.order += kind;
  }
}

Split run(bool starts, const std::vector<std::string>& parts) {
  ReasoningSplitter splitter(starts);
  Split split;
  for (auto& part : parts) add(split, splitter.push(part));
  add(split, splitter.finish());
  return split;
}

Split whole(bool starts, const std::string& text) { return run(starts, {text}); }

TEST(Reasoning, PlainContent) {
  EXPECT_EQ(whole(false, "Hello <b>world</b>"), (Split{"", "Hello <b>world</b>", "c"}));
  EXPECT_EQ(whole(false, ""), (Split{"", "", ""}));
  EXPECT_EQ(whole(false, " \n x \n"), (Split{"", " \n x \n", "c"}));
  EXPECT_EQ(whole(false, "\n\n"), (Split{"", "\n\n", "c"}));
}

TEST(Reasoning, PromptOpenedTheThought) {
  EXPECT_EQ(whole(true, "\nIt is 4.\n</think>\n\n4"), (Split{"It is 4.", "4", "rc"}));
  EXPECT_EQ(whole(true, "a\n\nb</think>c\n"), (Split{"a\n\nb", "c\n", "rc"}));
  EXPECT_EQ(whole(true, "</think>only content"), (Split{"", "only content", "c"}));
  EXPECT_EQ(whole(true, "never closed\n"), (Split{"never closed\n", "", "r"}));
  EXPECT_EQ(whole(true, "\n\n"), (Split{"\n", "", "r"}));
}

TEST(Reasoning, ModelOpensTheThought) {
  EXPECT_EQ(whole(false, "<think>\na\n</think>\n\nb"), (Split{"a", "b", "rc"}));
  EXPECT_EQ(whole(false, " \n<think>a</think>b"), (Split{"a", "b", "rc"}));
  EXPECT_EQ(whole(true, "<think>\na</think>b"), (Split{"a", "b", "rc"}));  // repeats the tag of the prompt
}

TEST(Reasoning, MarkupNeverLeaks) {
  EXPECT_EQ(whole(false, "a</think>b"), (Split{"", "ab", "c"}));
  EXPECT_EQ(whole(true, "a<think>b</think>c"), (Split{"ab", "c", "rc"}));
  EXPECT_EQ(whole(false, "x<think>y</think>z"), (Split{"y", "xz", "crc"}));
}

TEST(Reasoning, PartialTagsAreText) {
  EXPECT_EQ(whole(false, "1 < 2 <thin </thin <<think"), (Split{"", "1 < 2 <thin </thin <<think", "c"}));
  EXPECT_EQ(whole(true, "a</thinkb</think>c</thin"), (Split{"a</thinkb", "c</thin", "rc"}));
  EXPECT_EQ(whole(false, "<<think>a</think>b"), (Split{"a", "<b", "crc"}));
}

TEST(Reasoning, HoldsBackOnlyWhatMayBeATag) {
  ReasoningSplitter splitter(true);
  auto first = splitter.push("thought <");
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].text, "thought ");
  EXPECT_TRUE(splitter.push("/thin").empty());
  EXPECT_TRUE(splitter.push("k>\n").empty());
  auto rest = splitter.push("\nanswer");
  ASSERT_EQ(rest.size(), 1u);
  EXPECT_FALSE(rest[0].reasoning);
  EXPECT_EQ(rest[0].text, "answer");
}

TEST(Reasoning, EveryCutOfShortTexts) {
  for (std::string text : {"<think>\na</think>\n\nb", "\nx\n</think>\ny", " <think>q", "a</th</think>", "<think><think>"})
    for (bool starts : {false, true}) {
      Split expected = whole(starts, text);
      ASSERT_LE(text.size(), 22u);
      for (uint32_t cuts = 0; cuts<(1u << (text.size() - 1)); cuts += text.size()> 16 ? 13 : 1) {
        std::vector<std::string> parts(1);
        for (size_t i = 0; i < text.size(); i++) {
          parts.back() += text[i];
          if (i + 1 < text.size() && (cuts >> i) & 1) parts.emplace_back();
        }
        ASSERT_EQ(run(starts, parts), expected) << text << " cuts " << cuts;
      }
    }
}

TEST(Reasoning, RandomCutsOfLongTexts) {
  std::mt19937 random(7);
  const std::string words[] = {"<think>", "</think>", "<thin", "</", "<", "\n", "\n\n", " ", "word", "é中", ">"};
  for (int round = 0; round < 300; round++) {
    std::string text;
    for (int i = 0; i < 60; i++) text += words[random() % std::size(words)];
    bool starts = random() % 2;
    Split expected = whole(starts, text);
    EXPECT_EQ((expected.reasoning + expected.content).find("</think>"), std::string::npos);
    for (int cut = 0; cut < 10; cut++) {
      std::vector<std::string> parts;
      for (size_t at = 0; at < text.size();) {
        size_t n = 1 + random() % 9;
        parts.push_back(text.substr(at, n));
        at += n;
      }
      ASSERT_EQ(run(starts, parts), expected) << text;
    }
  }
}

}  // namespace
}  // namespace dg
