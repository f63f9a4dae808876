#include "text/regex.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

namespace dg {
namespace {

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  auto regex = Regex::compile(pattern);
  if (!regex.ok()) return {"error: " + regex.error().message};
  std::vector<std::string> out;
  Regex::Scratch scratch;
  Regex::Finder finder(*regex, text, scratch);
  for (Regex::Match match; finder.next(match);) out.emplace_back(text.substr(match.begin, match.end - match.begin));
  return out;
}
using List = std::vector<std::string>;

TEST(Regex, AlternativesPreferTheFirst) {
  EXPECT_EQ(matches("a|ab|abc", "abcab"), (List{"a", "a"}));
  EXPECT_EQ(matches("abc|ab|a", "abcab"), (List{"abc", "ab"}));
  std::string many = "x0";
  for (int i = 1; i < 100; i++) many += "|x" + std::to_string(i);
  EXPECT_EQ(matches(many + "|y", "x99y"), (List{"x9", "y"}));  // more branches than one table holds
}

TEST(Regex, Quantifiers) {
  EXPECT_EQ(matches("a{2,3}", "aaaaaaa"), (List{"aaa", "aaa"}));
  EXPECT_EQ(matches("a{2,3}?", "aaaaaaa"), (List{"aa", "aa", "aa"}));
  EXPECT_EQ(matches("a{,2}b", "aaab"), (List{"aab"}));
  EXPECT_EQ(matches("a{2}?b", "aab b"), (List{"aab", "b"}));      // Ruby: the interval is optional
  EXPECT_EQ(matches("\\d{1,3}+", "1234567"), (List{"1234567"}));  // Ruby: the interval repeats
  EXPECT_EQ(matches("a++a", "aaa"), List{});
  EXPECT_EQ(matches("(?:ab)*+abc", "ababc"), List{});
  EXPECT_EQ(matches("(?:ab){2,}?c", "ababababc"), (List{"ababababc"}));
  EXPECT_EQ(matches("a{x", "a{x"), (List{"a{x"}));       // no interval: literal
  EXPECT_EQ(matches("x*", "axb"), (List{"", "x", ""}));  // no empty match right behind a match
}

TEST(Regex, EmptyLoopsEnd) {
  EXPECT_EQ(matches("(?:a*)*b", "aab"), (List{"aab"}));
  EXPECT_EQ(matches("(?:(?:)|a)*b", "aab"), (List{"aab"}));
  EXPECT_EQ(matches("(?:(?=a))+ab", "ab"), (List{"ab"}));
}

TEST(Regex, ClassesNestAndIntersect) {
  EXPECT_EQ(matches("[a-c&&[^b]]+", "abcab"), (List{"a", "ca"}));
  EXPECT_EQ(matches("[[:alpha:]_]+", "ab_1é"), (List{"ab_", "é"}));
  EXPECT_EQ(matches("[[:^space:]]+", "a b"), (List{"a", "b"}));
  EXPECT_EQ(matches("[]a]+", "]a["), (List{"]a"}));
  EXPECT_EQ(matches("[a\\-z]+", "a-zb"), (List{"a-z"}));
  EXPECT_EQ(matches("[\\d-x]+", "1-x2"), (List{"1-x2"}));
  EXPECT_EQ(matches("[一-龥]+", "深度ab求索"), (List{"深度", "求索"}));
  EXPECT_EQ(matches("[^\\p{L}\\s]", "a1 。"), (List{"1", "。"}));
}

TEST(Regex, EscapesAndProperties) {
  EXPECT_EQ(matches("\\x41\\x{6df1}\\u5ea6\\t", "A深度\t"), (List{"A深度\t"}));
  EXPECT_EQ(matches("\\p{Han}+|\\p{^Han}", "深a"), (List{"深", "a"}));
  EXPECT_EQ(matches("\\P{Lu}", "Aa"), (List{"a"}));
  EXPECT_EQ(matches("\\R", "\r\n\n\u2028"), (List{"\r\n", "\n", "\u2028"}));
  EXPECT_EQ(matches("\\bfoo\\b", "foo foobar"), (List{"foo"}));
}

TEST(Regex, CaseFolding) {
  EXPECT_EQ(matches("(?i:'s|'t)x", "'Sx 'ſx 'TX"), (List{"'Sx", "'ſx"}));
  EXPECT_EQ(matches("(?i)straße|ab", "STRAßE AB"), (List{"STRAßE", "AB"}));
  EXPECT_EQ(matches("a(?i)b|c", "aB aC C"), (List{"aB", "aC"}));  // Ruby: holds for the rest of the group
  EXPECT_EQ(matches("(?i:[^a])", "Aab"), (List{"b"}));
}

TEST(Regex, LookAround) {
  EXPECT_EQ(matches("\\s+(?!\\S)", "a   b  "), (List{"  ", "  "}));
  EXPECT_EQ(matches("(?<=a|bc)d", "ad bcd cd"), (List{"d", "d"}));
  EXPECT_EQ(matches("(?<!a|bc)d", "ad bcd cd"), (List{"d"}));
  EXPECT_EQ(matches("(?<!^深)度", "深度度"), (List{"度"}));
  EXPECT_EQ(matches("(?=[A-Z])", "aBcD"), (List{"", ""}));
  EXPECT_EQ(matches("(?!(?=a)b)a", "a"), (List{"a"}));
}

TEST(Regex, AnchorsWorkByLine) {
  EXPECT_EQ(matches("^\\w", "ab\ncd\n"), (List{"a", "c"}));
  EXPECT_EQ(matches("\\w$", "ab\ncd"), (List{"b", "d"}));
  EXPECT_EQ(matches("\\A\\w|\\w\\z", "ab\ncd"), (List{"a", "d"}));
}

TEST(Regex, ErrorsNameThePosition) {
  const std::pair<const char*, const char*> cases[] = {
      {"a)", "byte 1: unmatched )"},
      {"(a", "byte 0: group without )"},
      {"[a", "byte 0: character class without ]"},
      {"*", "byte 0: nothing to repeat"},
      {"a{3,2}", "byte 1: repetition {m,n}"},
      {"\\p{Nope}", "byte 0: unknown property \\p{Nope}"},
      {"a\\1", "byte 1: back-references"},
      {"[z-a]", "byte 1: character range"},
      {"a\\", "byte 1: backslash at the end"},
      {"\\x{110000}", "hexadecimal"},
      {"(?<=a+)b", "variable length"},
      {"a{1001}", "repetition above 1000"},
      {"(?P", "byte 0"},
      {"\\X", "unsupported escape"},
      {"(?&x)", "unsupported group"},
      {"\xff", "not UTF-8"},
  };
  for (auto [pattern, expected] : cases) {
    auto regex = Regex::compile(pattern);
    ASSERT_FALSE(regex.ok()) << pattern;
    EXPECT_NE(regex.error().message.find(expected), std::string::npos) << pattern << " gave: " << regex.error().message;
  }
}

TEST(Regex, HostilePatternsAreRefused) {
  EXPECT_FALSE(Regex::compile(std::string(9000, 'a')).ok());
  EXPECT_FALSE(Regex::compile(std::string(4000, '(')).ok());
  EXPECT_FALSE(Regex::compile(std::string(4000, '[')).ok());
  EXPECT_FALSE(Regex::compile("(((a{1000}){1000}){1000}){1000}").ok());
  EXPECT_FALSE(Regex::compile("((((){1000}){1000}){1000}){1000}").ok());
  std::string stacked = "a";
  for (int i = 0; i < 3000; i++) stacked += "{1}";
  EXPECT_FALSE(Regex::compile(stacked).ok());
}

TEST(Regex, ExponentialBacktrackingIsCutOffInLinearTime) {
  auto regex = Regex::compile("(?:a+)+b");
  ASSERT_TRUE(regex.ok());
  Regex::Scratch scratch;
  for (size_t n : {100u, 100000u}) {
    const std::string text(n, 'a');
    Regex::Finder finder(*regex, text, scratch);
    Regex::Match match;
    EXPECT_FALSE(finder.next(match));
    EXPECT_TRUE(finder.exhausted());
  }
}

TEST(Regex, LongRunsNeedNoStack) {
  const std::string text = std::string(1 << 20, ' ') + "x";
  EXPECT_EQ(matches("\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|x", text), (List{std::string((1 << 20) - 1, ' '), " ", "x"}));
  std::string letters;
  for (int i = 0; i < 100000; i++) letters += "深a";
  EXPECT_EQ(matches("(?:\\p{L}\\p{L})*$", letters).front().size(), letters.size());
}

TEST(Regex, IllFormedTextIsMemorySafe) {
  auto regex = Regex::compile("[^\\r\\n\\p{L}]?[\\p{L}\\p{M}]+| ?\\p{P}+|(?<=..)\\s+(?!\\S)|.");
  ASSERT_TRUE(regex.ok());
  std::mt19937 random(3);
  Regex::Scratch scratch;
  for (int i = 0; i < 3000; i++) {
    std::string text;
    for (size_t k = random() % 20; k > 0; k--) text += static_cast<char>(random());
    Regex::Finder finder(*regex, text, scratch);
    size_t last = 0;
    for (Regex::Match match; finder.next(match); last = match.end) {
      ASSERT_LE(last, match.begin);
      ASSERT_LE(match.end, text.size());
    }
  }
}

}  // namespace
}  // namespace dg
