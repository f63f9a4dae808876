#include "text/json_prefix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "base/json.h"

namespace dg {
namespace {

// How many characters pass.
size_t accepted(std::string_view text, JsonPrefix& json) {
  size_t n = 0;
  while (n < text.size() && json.put(text[n])) n++;
  return n;
}

bool is_object(std::string_view text) {
  JsonPrefix json;
  return text.starts_with('{') && accepted(text, json) == text.size() && json.complete();
}

// Valid JSON, but above what nlohmann's parser can store.
bool has_huge_number(const std::string& text) {
  const size_t at = text.find_first_of("eE");
  return at != std::string::npos && text.find_first_of("0123456789", at) != std::string::npos && text.size() > 8 &&
         std::count_if(text.begin() + static_cast<ptrdiff_t>(at), text.end(), [](char c) { return c >= '0' && c <= '9'; }) > 2;
}

TEST(JsonPrefix, Values) {
  for (const char* good : {"{}", "{ \"a\" : [ ] }", R"({"a":[1,-0,0.5,1e9,2E-3,10.25e+1,true,false,null,"x"]})",
                           "{\"\\u00e9\\n\\\"\":\"中\"} \n", "{\"a\":{\"b\":{}},\"c\":[[],[{}]]}"})
    EXPECT_TRUE(is_object(good)) << good;
  for (const char* bad : {"{",
                          "{]",
                          "{}}",
                          "{,}",
                          "{\"a\"}",
                          "{\"a\":}",
                          "{\"a\":1,}",
                          "{\"a\":01}",
                          "{\"a\":1.}",
                          "{\"a\":.5}",
                          "{\"a\":-}",
                          "{\"a\":+1}",
                          "{\"a\":1e}",
                          "{\"a\":[1 2]}",
                          "{\"a\":[,]}",
                          "{\"a\":tru}",
                          "{\"a\":\"\\x\"}",
                          "{\"a\":\"\\u12g4\"}",
                          "{\"a\":\"\n\"}",
                          "{a:1}",
                          "{'a':1}",
                          "{\"a\" 1}",
                          "{\"a\":[1}"})
    EXPECT_FALSE(is_object(bad)) << bad;
}

TEST(JsonPrefix, ARefusedCharacterChangesNothing) {
  JsonPrefix json;
  EXPECT_EQ(accepted("{\"a\":12", json), 7u);
  EXPECT_FALSE(json.put('x'));
  EXPECT_FALSE(json.put(']'));
  EXPECT_TRUE(json.put('3'));
  EXPECT_TRUE(json.put('}'));
  EXPECT_TRUE(json.complete());
}

TEST(JsonPrefix, DepthIsLimited) {
  JsonPrefix json;
  EXPECT_EQ(accepted(std::string(100000, '['), json), JsonPrefix::kMaxDepth);
  EXPECT_EQ(json.depth(), JsonPrefix::kMaxDepth);
}

// Random texts against nlohmann's parser: whole values are accepted by both or by neither, and every prefix that passes can
// be completed to a value.
TEST(JsonPrefix, AgreesWithAFullParser) {
  std::mt19937 random(3);
  const std::string pieces[] = {"{", "}", "[", "]", ",",  ":",   "\"a\"", "\"",  "\\", "\\n", "u00e9",
                                "0", "7", "-", ".", "e1", "E+2", "true",  "nul", "l",  " ",   "é"};
  int complete = 0;
  for (int round = 0; round < 200'000; round++) {
    std::string text = "{";
    JsonPrefix json;
    json.put('{');
    bool refused = false;
    for (int i = 0; i < 12 && !refused; i++) {
      const std::string& piece = pieces[random() % std::size(pieces)];
      JsonPrefix before = json;
      const size_t n = accepted(piece, json);
      if (n < piece.size() && random() % 8 != 0) {  // mostly go on with what passes, so that long values come up
        json = before;
        continue;
      }
      text += piece;
      refused = n < piece.size();
    }
    if (has_huge_number(text)) continue;
    ASSERT_EQ(!refused && json.complete(), Json::accept(text)) << text;
    if (refused) continue;
    complete += json.complete();
    std::string closed = text;
    for (int guard = 0; !json.complete() && guard < 100; guard++)
      for (char c : std::string("\"}]0:truefalsn"))
        if (json.put(c)) {
          closed += c;
          break;
        }
    ASSERT_TRUE(Json::accept(closed)) << text << " closed as " << closed;
  }
  EXPECT_GT(complete, 1000);
}

}  // namespace
}  // namespace dg
