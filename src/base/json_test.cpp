#include "base/json.h"

#include <gtest/gtest.h>

namespace dg {
namespace {

TEST(Json, KeepsKeyOrder) {
  auto parsed = parse_json(R"({"b":1,"a":[1,2,{"z":null}]})", "test");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(dump_json_python(*parsed), R"({"b": 1, "a": [1, 2, {"z": null}]})");
}

TEST(Json, DumpsLikePython) {
  auto parsed = parse_json("{\"k\":\"\xe4\xb8\xad<\\n\",\"f\":1.0,\"e\":{},\"l\":[]}", "test");
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(dump_json_python(*parsed), "{\"k\": \"\xe4\xb8\xad<\\n\", \"f\": 1.0, \"e\": {}, \"l\": []}");
  EXPECT_EQ(dump_json_python(*parsed, 2), "{\n  \"k\": \"\xe4\xb8\xad<\\n\",\n  \"f\": 1.0,\n  \"e\": {},\n  \"l\": []\n}");
}

TEST(Json, RefusesDeepNesting) {
  auto parsed = parse_json(std::string(200 << 10, '['), "config.json");
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.error().message, "config.json: JSON nested deeper than 64 levels at byte 64");
}

TEST(Json, RefusesLargeInput) {
  auto parsed = parse_json(std::string(2000, ' '), "x", {.max_bytes = 1000});
  ASSERT_FALSE(parsed.ok());
  EXPECT_NE(parsed.error().message.find("2000 bytes"), std::string::npos);
}

TEST(Json, NamesOriginAndReason) {
  auto parsed = parse_json("{\"a\":}", "some/config.json");
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.error().message.find("some/config.json: not valid JSON: "), 0u);
  EXPECT_EQ(parsed.error().message.find('\n'), std::string::npos);
}

TEST(Json, RefusesHugeObjectsThatWouldTakeQuadraticTime) {
  std::string text = "{";
  for (int i = 0; i < 3000; i++) text += "\"" + std::to_string(i) + "\":[],";
  text.back() = '}';
  auto ordered = parse_json(text, "body");
  ASSERT_FALSE(ordered.ok());
  EXPECT_EQ(ordered.error().message.find("body: a JSON object with more than 2048 members at byte "), 0u);
  EXPECT_TRUE(parse_sorted_json(text, "body").ok());
}

TEST(Json, RefusesNulBytes) {
  auto parsed = parse_json(std::string("{}\0x", 4), "body");
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.error().message, "body: NUL byte at byte 2");
}

TEST(Json, RefusesBadUtf8) { EXPECT_FALSE(parse_json("{\"a\":\"\xff\xfe\"}", "x").ok()); }

}  // namespace
}  // namespace dg
