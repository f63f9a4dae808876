#include "engine/stop.h"

#include <gtest/gtest.h>

#include <random>

namespace dg {
namespace {

struct Outcome {
  std::string text, stop;
  bool operator==(const Outcome&) const = default;
};
std::ostream& operator<<(std::ostream& out, const Outcome& o) { return out << "{" << o.text << "|" << o.stop << "}"; }

Outcome run(const std::vector<std::string>& stops, std::string_view text, const std::vector<size_t>& cuts) {
  StopMatcher matcher(stops);
  Outcome outcome;
  size_t from = 0;
  for (size_t cut : cuts) outcome.text += matcher.push(text.substr(from, cut - from)), from = cut;
  outcome.text += matcher.push(text.substr(from));
  if (matcher.stopped()) outcome.stop = matcher.matched();
  else outcome.text += matcher.finish();
  return outcome;
}

// The definition, quadratic: the match that ends first, of those the longest.
Outcome define(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); end++) {
    std::string best;
    for (const std::string& stop : stops)
      if (!stop.empty() && stop.size() > best.size() && std::string_view(text).substr(0, end).ends_with(stop)) best = stop;
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, ""};
}

TEST(StopMatcher, HoldsBackWhatMayBecomeAStop) {
  StopMatcher matcher({"\nUser:", "END"});
  EXPECT_EQ(matcher.push("Hello"), "Hello");
  EXPECT_EQ(matcher.push(" E"), " ");
  EXPECT_EQ(matcher.push("N"), "");
  EXPECT_EQ(matcher.push("ergy\nUs"), "ENergy");
  EXPECT_EQ(matcher.push("er"), "");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.push(": never seen"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.matched(), "\nUser:");
  EXPECT_EQ(matcher.push("more"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, EndOfStreamReleasesTheRest) {
  StopMatcher matcher({"abc"});
  EXPECT_EQ(matcher.push("xab"), "x");
  EXPECT_EQ(matcher.finish(), "ab");
  StopMatcher none({"", ""});
  EXPECT_EQ(none.push("anything"), "anything");
  EXPECT_FALSE(none.stopped());
}

TEST(StopMatcher, EveryCutOfShortTextsGivesTheSame) {
  const std::vector<std::vector<std::string>> sets = {{"aab"}, {"aa", "aab", "b"}, {"abab", "ba"}, {"aaaa"}, {"答", "案。"}};
  for (const auto& stops : sets)
    for (const std::string& text : {std::string("aaab"), std::string("abaabab"), std::string("bbbaaaaa"), std::string("这是答案。")}) {
      Outcome expected = define(stops, text);
      for (size_t i = 0; i <= text.size(); i++)
        for (size_t j = i; j <= text.size(); j++) EXPECT_EQ(run(stops, text, {i, j}), expected) << text << " " << i << " " << j;
    }
}

TEST(StopMatcher, RandomTextsAgreeWithTheDefinition) {
  std::mt19937 random(5);
  auto word = [&](size_t longest) {
    std::string out;
    for (size_t n = random() % (longest + 1); n > 0; n--) out += static_cast<char>('a' + random() % 2);
    return out;
  };
  for (int round = 0; round < 3000; round++) {
    std::vector<std::string> stops = {word(6), word(6), word(6)};
    std::string text = word(30);
    std::vector<size_t> cuts;
    for (size_t at = 0; at < text.size(); at += random() % 4) {
      cuts.push_back(at);
      if (cuts.size() > 100) break;
    }
    EXPECT_EQ(run(stops, text, cuts), define(stops, text)) << stops[0] << " " << stops[1] << " " << stops[2] << " in " << text;
  }
}

}  // namespace
}  // namespace dg
