// Every grammar is tried byte by byte and through tokens of several bytes, so that the way a text is cut does not matter; the
// mask must say of every token what accept() does.
#include "text/grammar.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "base/json.h"
#include "text/bpe.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace dg {
namespace {

constexpr int32_t kStop = 400, kMark = 401, kThink = 402;
constexpr int64_t kVocab = 420;  // wider than the tokenizer

std::string symbols(std::string_view bytes) {
  std::string out;
  for (char c : bytes) unicode::append_utf8(out, ByteAlphabet::char_of(static_cast<unsigned char>(c)));
  return out;
}

// All bytes (ids 0-255), tokens that straddle the joints of JSON, three added tokens.
std::unique_ptr<Tokenizer> tiny_tokenizer() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; b++) vocab[symbols(std::string(1, static_cast<char>(b)))] = b;
  int next = 256;
  for (const char* token :
       {"{\"",   "\":",  "\": ",   "\",", "\", \"", "\"}",   "}}",  "]}",       "},",       "],",       "[[",       "[{",
        "null",  "true", "alse",   "ab",  "abc",    "12",    "00",  "34",       "\\\"",     "\\u",      "\\ud",     "d8",
        "3d",    "\n  ", "\n    ", ": [", "1,",     "2]",    ",\n", "\xc3\xa9", "\xe4\xb8", "\xb8\xad", "\xf0\x9f", "a\"",
        "bb\"}", "-1",   ".5",     "e+",  "\"a\":", "x\":1", "k>y", "think>",   "</"})
    vocab[symbols(token)] = next++;
  const auto added = [](int id, const char* content, bool special) {
    return Json{{"id", id},        {"content", content}, {"special", special}, {"normalized", false}, {"single_word", false},
                {"lstrip", false}, {"rstrip", false}};
  };
  const Json json{
      {"added_tokens", Json::array({added(kStop, "<end>", true), added(kMark, "<mark>", true), added(kThink, "</think>", false)})},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}};
  auto tokenizer = Tokenizer::from_json(json.dump(), "", "tiny");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

class GrammarTest : public ::testing::Test {
 protected:
  GrammarTest() : tokenizer_(tiny_tokenizer()), compiler_(*tokenizer_, kVocab, {kStop}) {}

  static GrammarSpec schema(const std::string& text) { return {.kind = GrammarKind::kJsonSchema, .text = text}; }
  static GrammarSpec regex(const std::string& text) { return {.kind = GrammarKind::kRegex, .text = text}; }
  static GrammarSpec ebnf(const std::string& text) { return {.kind = GrammarKind::kEbnf, .text = text}; }

  GrammarState state(const GrammarSpec& spec) {
    auto grammar = compiler_.compile(spec);
    EXPECT_TRUE(grammar.ok()) << grammar.error().message;
    return grammar.ok() ? GrammarState(*grammar) : GrammarState();
  }
  std::string error(const GrammarSpec& spec) {
    auto grammar = compiler_.compile(spec);
    return grammar.ok() ? "compiled" : grammar.error().message;
  }
  static bool allowed(GrammarState& state, int32_t id) {
    const uint32_t* mask = state.mask();
    return !mask || (mask[id / 32] >> (id % 32) & 1) != 0;
  }
  bool feed(GrammarState& state, std::string_view text) {
    for (char c : text) {
      const int32_t id = static_cast<unsigned char>(c);
      const bool may = allowed(state, id);
      const bool taken = state.accept(id);
      EXPECT_EQ(may, taken) << text;
      if (!taken) return false;
    }
    return true;
  }
  // Whether the whole text is derived: byte by byte, and by random longer tokens.
  bool matches(const GrammarSpec& spec, const std::string& text) {
    GrammarState s = state(spec);
    if (!s.active()) return false;
    const bool by_bytes = feed(s, text) && s.can_end() && s.accept(kStop);
    for (int round = 0; round < 3; round++) {
      GrammarState t = state(spec);
      bool taken = true;
      for (size_t at = 0; at < text.size() && taken;) {
        std::vector<int32_t> fits;
        for (int32_t id = 0; id < 400; id++)
          if (!tokenizer_->token_bytes(id).empty() && std::string_view(text).substr(at).starts_with(tokenizer_->token_bytes(id)))
            fits.push_back(id);
        const int32_t id = fits[rng_() % fits.size()];
        EXPECT_EQ(allowed(t, id), GrammarState(t).accept(id));
        taken = t.accept(id);
        at += tokenizer_->token_bytes(id).size();
      }
      EXPECT_EQ(taken && t.can_end(), by_bytes) << text;
    }
    return by_bytes;
  }
  void expect(const GrammarSpec& spec, const std::vector<std::string>& good, const std::vector<std::string>& bad) {
    for (const std::string& text : good) EXPECT_TRUE(matches(spec, text)) << spec.text << " should derive " << text;
    for (const std::string& text : bad) EXPECT_FALSE(matches(spec, text)) << spec.text << " should not derive " << text;
  }
  // Random walks; at each step the mask of every token against accept() on a copy.
  void compare_masks(const GrammarSpec& spec, int walks = 3, int steps = 40) {
    for (int walk = 0; walk < walks; walk++) {
      GrammarState s = state(spec);
      if (!s.active()) return;
      for (int step = 0; step < steps; step++) {
        std::vector<int32_t> may;
        for (int32_t id = 0; id < kVocab; id++) {
          const bool bit = allowed(s, id);
          GrammarState copy = s;
          ASSERT_EQ(copy.accept(id), bit) << spec.text << ": token " << id << " \"" << tokenizer_->content(id) << "\" at step " << step;
          if (bit) may.push_back(id);
        }
        ASSERT_FALSE(may.empty()) << spec.text;
        ASSERT_EQ(s.can_end(), allowed(s, kStop)) << spec.text;
        ASSERT_EQ(s.must_end(), may == std::vector<int32_t>{kStop}) << spec.text;
        const int32_t id = may[rng_() % may.size()];
        if (id == kStop) break;
        ASSERT_TRUE(s.accept(id));
      }
    }
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  GrammarCompiler compiler_;
  std::mt19937 rng_{7};
};

TEST_F(GrammarTest, JsonObject) {
  const GrammarSpec spec{};
  expect(spec,
         {"{}", "{\"a\":1}", "{\"a\": [1, -2.5e+3, true, false, null, {}], \"b\": {\"c\": \"\\u00e9\\n\"}}",
          "{\n  \"a\": 1,\n  \"b\": []\n}", "{\"\\ud83d\\ude00\":\"\xf0\x9f\x98\x80\"}", "{\"a\":-0.0e-7}"},
         {"", "[]", "1", "{\"a\"}", "{\"a\":1,}", "{a:1}", "{\"a\":01}", "{\"a\":1.}", "{\"a\":\"\n\"}", "{\"a\":\"\\ud83d\"}",
          "{\"a\":\"\\x\"}", "{\"a\":\"\xc3\"}", "{\"a\":\"\xed\xa0\x80\"}", "{\n\n}", "{}}", "{} ", "{\"a\":nul}"});
  compare_masks(spec, 6, 60);
}

TEST_F(GrammarTest, SchemaScalars) {
  expect(schema(R"({"type":"string"})"), {R"("")", R"("a\"b")"}, {"a", R"("a)", "1"});
  expect(schema(R"({"type":"string","minLength":2,"maxLength":3})"),
         {R"("ab")", "\"\xe4\xb8\xad\xe4\xb8\xad\xc3\xa9\"", R"("\ud83d\ude00a")"}, {R"("")", R"("a")", R"("abcd")", R"("\ud83d\ude00")"});
  expect(schema(R"({"type":"boolean"})"), {"true", "false"}, {"null", "tru"});
  expect(schema(R"({"type":["null","integer"]})"), {"null", "0", "-12"}, {"1.5", "007", "\"\""});
  expect(schema(R"({"type":"number"})"), {"0", "-1.50", "1e5", "2E-07"}, {"+1", ".5", "1.", "--1", "1e", "Infinity"});
  expect(schema(R"({"type":"integer","nullable":true})"), {"null", "5"}, {"nil"});
  expect(schema(R"({"const":{"a":[1,"x"]}})"), {R"({"a":[1,"x"]})", R"({"a": [1, "x"]})"}, {R"({"a":[1,"y"]})", "{}"});
  expect(schema(R"({"enum":["a","ab",1,null,"é"]})"), {R"("a")", R"("ab")", "1", "null", "\"\xc3\xa9\""}, {R"("abc")", "2"});
  expect(schema(R"({"type":"string","enum":["a",1]})"), {R"("a")"}, {"1"});
  expect(schema("true"), {"1", "[{}]", "\"x\""}, {"x"});
}

TEST_F(GrammarTest, IntegerBoundsAgreeWithArithmetic) {
  for (auto [low, high] : {std::pair(0, 0), {-3, 3}, {17, 231}, {-250, -9}, {99, 101}, {-1, 1000}}) {
    const auto spec = schema(Json{{"type", "integer"}, {"minimum", low}, {"maximum", high}}.dump());
    for (int n = -1200; n <= 1200; n += n > -20 && n < 20 ? 1 : 7)
      EXPECT_EQ(matches(spec, std::to_string(n)), n >= low && n <= high) << n << " in " << low << ".." << high;
    for (int n : {low - 1, low, low + 1, high - 1, high, high + 1}) EXPECT_EQ(matches(spec, std::to_string(n)), n >= low && n <= high) << n;
    EXPECT_FALSE(matches(spec, "-0"));
  }
  expect(schema(R"({"type":"integer","exclusiveMinimum":5,"maximum":7.9})"), {"6", "7"}, {"5", "8"});
  expect(schema(R"({"type":"integer","minimum":2.5})"), {"3", "123456789012345"}, {"2", "-3"});
  expect(schema(R"({"type":"integer","maximum":9223372036854775807})"), {"9223372036854775807", "-5"}, {"9223372036854775808"});
  const auto multiple = schema(R"({"type":"integer","multipleOf":7,"minimum":-30})");
  for (int n = -50; n <= 150; n++) EXPECT_EQ(matches(multiple, std::to_string(n)), n % 7 == 0 && n >= -30) << n;
}

TEST_F(GrammarTest, NumberBoundsCompareDecimals) {
  expect(schema(R"({"type":"number","minimum":0.25,"maximum":1.5})"), {"0.25", "0.250", "0.3", "1", "1.0", "1.5", "1.50", "1.49999"},
         {"0", "0.2", "0.24999", "1.51", "1.500001", "2", "-1", "1e0"});
  expect(schema(R"({"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1})"), {"0.1", "0.0001", "0.999"},
         {"0", "0.0", "1", "1.0", "-0.5"});
  expect(schema(R"({"type":"number","minimum":-10.5,"maximum":-0.5})"), {"-10.5", "-1", "-0.5", "-0.50"},
         {"-10.51", "-0.4", "0", "-0", "5"});
  expect(schema(R"({"type":"number","maximum":100})"), {"100", "100.0", "-55.5", "0", "99.9"}, {"100.1", "101"});
}

TEST_F(GrammarTest, SchemaStringsByPatternAndFormat) {
  expect(schema(R"({"type":"string","pattern":"^[a-c]{2}$"})"), {R"("ab")"}, {R"("a")", R"("abc")", R"("ad")"});
  expect(schema(R"({"type":"string","pattern":"b+"})"), {R"("abba")", R"("b")"}, {R"("aaa")", R"("")"});
  expect(schema(R"j({"type":"string","pattern":"^(a|b$)"})j"), {R"("ax")", R"("b")"}, {R"("bx")", R"("xa")"});
  expect(schema(R"({"type":"string","pattern":"^[\"\\\\\n]+$"})"), {R"("\"\\\n")", R"("\u000a")"}, {R"("a")", "\"\n\""});
  expect(schema(R"({"type":"string","pattern":"^\\p{Lu}","minLength":3,"maxLength":4})"), {R"("Abc")", "\"\xc3\x89t\xc3\xa9s\""},
         {R"("abc")", R"("Ab")", R"("Abcde")"});
  expect(schema(R"({"type":"string","format":"date"})"), {R"("2024-02-29")", R"("2023-12-31")", R"("2000-02-29")"},
         {R"("2023-02-29")", R"("1900-02-29")", R"("2023-04-31")", R"("2023-13-01")"});
  expect(schema(R"({"type":"string","format":"date-time"})"), {R"("2024-01-31T23:59:59Z")", R"("2024-01-31T00:00:00.123+02:00")"},
         {R"("2024-01-31")", R"("2024-01-31T24:00:00Z")"});
  expect(schema(R"({"type":"string","format":"ipv4"})"), {R"("10.0.255.1")"}, {R"("256.1.1.1")", R"("01.1.1.1")", R"("1.1.1")"});
  expect(schema(R"({"type":"string","format":"uuid"})"), {R"("123e4567-e89b-12d3-a456-426614174000")"}, {R"("123e4567")"});
  expect(schema(R"({"type":"string","format":"email"})"), {R"("a.b@c.org")"}, {R"("a@b")", R"("@b.org")"});
}

TEST_F(GrammarTest, SchemaObjects) {
  const auto strict =
      schema(R"({"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{"type":"boolean"}},"required":["b"],)"
             R"("additionalProperties":false})");
  expect(strict, {R"({"b":""})", R"({"a": 1, "b": "x", "c": true})", "{\n  \"a\": 1,\n  \"b\": \"x\"\n}", R"({"b":"","c":false})"},
         {"{}", R"({"a":1})", R"({"b":"","a":1})", R"({"b":"","d":1})", R"({"b":"","b":""})"});
  compare_masks(strict);
  expect(schema(R"({"type":"object","properties":{"a":{"type":"integer"}},"additionalProperties":{"type":"boolean"}})"),
         {"{}", R"({"a":1})", R"({"a":1,"x":true})", R"({"ab":true,"":false})"},
         {R"({"x":true,"a":1})", R"({"a":true})", R"({"\u0061":true})", R"({"x":1})"});
  expect(schema(R"({"type":"object"})"), {"{}", R"({"x":[1]})"}, {"[]"});
  expect(schema(R"({"properties":{"a":{},"b":{},"c":{}},"minProperties":1,"maxProperties":2})"), {R"({"a":1})", R"({"a":1,"c":2})"},
         {"{}", R"({"a":1,"b":2,"c":3})"});
  expect(schema(R"({"type":"object","additionalProperties":{"type":"integer"},"minProperties":1,"maxProperties":2})"),
         {R"({"x":1})", R"({"x":1,"y":2})"}, {"{}", R"({"x":1,"y":2,"z":3})"});
  expect(schema(R"({"type":"object","required":["k"],"additionalProperties":true})"), {R"({"k":1})", R"({"k":1,"z":2})"},
         {"{}", R"({"z":2})"});
}

TEST_F(GrammarTest, SchemaArrays) {
  expect(schema(R"({"type":"array","items":{"type":"integer"}})"), {"[]", "[1]", "[1, 2,3]", "[\n  1,\n  2\n]"},
         {"[1,]", "[,1]", "[\"a\"]"});
  const auto counted = schema(R"({"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":4})");
  expect(counted, {"[1,2]", "[1,2,34]", "[12,12,12,12]"}, {"[]", "[1]", "[1,2,3,4,5]"});
  compare_masks(counted);
  expect(schema(R"({"type":"array","items":{"enum":["a"]},"minItems":3})"), {R"(["a","a","a"])", R"(["a","a","a","a"])"}, {R"(["a","a"])"});
  expect(
      schema(R"({"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"},"minItems":1,"maxItems":4})"),
      {"[1]", R"([1,"a"])", R"([1,"a",null])", R"([1,"a",null,null])"}, {"[]", "[\"a\"]", R"([1,"a",1])", R"([1,"a",null,null,null])"});
  expect(schema(R"({"type":"array","maxItems":0})"), {"[]"}, {"[1]"});
  const auto large = schema(R"({"type":"array","items":{"type":"string"},"minItems":50000,"maxItems":50001})");
  std::string text = "[\"\"";
  for (int i = 1; i < 50; i++) text += ",\"\"";
  GrammarState s = state(large);
  EXPECT_TRUE(feed(s, text));
  EXPECT_FALSE(allowed(s, ']'));
}

TEST_F(GrammarTest, SchemaReferencesAndCombinations) {
  const auto tree =
      schema(R"({"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"v":{"type":"integer"},)"
             R"("next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["v","next"],"additionalProperties":false}}})");
  expect(tree, {R"({"v":1,"next":null})", R"({"v":1,"next":{"v":2,"next":null}})"}, {R"({"v":1})", R"({"v":1,"next":{}})"});
  compare_masks(tree);
  expect(schema(R"({"type":"array","items":{"$ref":"#"}})"), {"[]", "[[],[[]]]"}, {"[1]"});
  expect(schema(R"({"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"$ref":"#/definitions/b"}],)"
                R"("definitions":{"b":{"type":"object","properties":{"b":{"type":"string"}},"required":["b"]}}})"),
         {R"({"a":1,"b":"x"})"}, {R"({"a":1})", R"({"b":"x"})"});
  expect(schema(R"({"allOf":[{"type":"integer","minimum":3},{"maximum":5}]})"), {"3", "5"}, {"2", "6"});
  expect(schema(R"({"anyOf":[{"type":"string","maxLength":1},{"type":"integer"}]})"), {"\"a\"", "5"}, {"\"ab\"", "null"});
  expect(schema(R"({"oneOf":[{"properties":{"k":{"const":"a"},"x":{"type":"integer"}},)"
                R"("required":["k"]},{"properties":{"k":{"const":"b"}},"required":["k"]}]})"),
         {R"({"k":"a","x":1})", R"({"k":"b"})"}, {R"({"k":"c"})", R"({"k":"b","x":1})"});
  expect(schema(R"({"type":"object","properties":{"a":{"allOf":[{"$ref":"#"}],"description":"recursive"}}})"), {R"({"a":{"a":{}}})"},
         {R"({"b":1})"});
}

TEST_F(GrammarTest, SchemaErrorsNameThePlace) {
  EXPECT_EQ(error(schema(R"({"properties":{"a":{"type":"int"}}})")),
            "schema: $.properties.a.type: expected null, boolean, object, array, number, string or integer, found \"int\"");
  EXPECT_EQ(error(schema(R"({"not":{}})")), "schema: $: keyword \"not\" cannot be enforced; remove it");
  EXPECT_EQ(error(schema(R"({"type":"array","uniqueItems":true})")), "schema: $.uniqueItems: cannot be enforced; remove it");
  EXPECT_EQ(error(schema(R"j({"type":"string","pattern":"(?=a)"})j")),
            "schema: $.pattern: offset 0: look-ahead (?= (?! cannot be enforced");
  EXPECT_NE(error(schema(R"({"type":"string","format":"color"})")).find("$.format: expected date, time"), std::string::npos);
  EXPECT_NE(error(schema(R"({"$ref":"http://x/y"})")).find("$.$ref: expected a reference inside the schema"), std::string::npos);
  EXPECT_NE(error(schema(R"({"$ref":"#/$defs/none"})")).find("$.$ref: expected a place in this schema"), std::string::npos);
  EXPECT_NE(error(schema(R"({"minimum":5,"maximum":4})")).find("no number satisfies both"), std::string::npos);
  EXPECT_NE(error(schema(R"({"oneOf":[{"type":"integer"},{"type":"number"}]})")).find("alternatives 0 and 1 may accept the same value"),
            std::string::npos);
  EXPECT_NE(error(schema(R"({"$ref":"#"})")).find("matches no text"), std::string::npos);
  EXPECT_NE(error(schema(R"({"properties":{"a":{"$ref":"#"}},"required":["a"]})")).find("matches no text"), std::string::npos);
  EXPECT_NE(error(schema("{")).find("schema: $: "), std::string::npos);
  for (const char* bad : {"false", "1", R"({"type":[]})", R"({"enum":[]})", R"({"required":["a"],"additionalProperties":false})",
                          R"({"multipleOf":0.1})", R"({"minLength":-1})", R"({"type":"string","minLength":3,"maxLength":2})",
                          R"({"allOf":[{"type":"string"},{"type":"null"}]})", R"({"type":"array","items":false,"minItems":1})"})
    EXPECT_TRUE(error(schema(bad)).starts_with("schema: $")) << bad << ": " << error(schema(bad));
}

TEST_F(GrammarTest, RegexMatchesTheWholeText) {
  expect(regex("ab|c+"), {"ab", "c", "ccc"}, {"", "abc", "ac"});
  expect(regex("^(?:a|b)*?c{2,3}$"), {"cc", "abacc", "bccc"}, {"c", "cccc", "ca"});
  expect(regex("[^a-z\\d]"), {"A", "\xc3\xa9", "\n"}, {"a", "5", "AA"});
  expect(regex("\\w+@\\u0061\\x62"), {"x_1@ab"}, {"@ab", "x@a"});
  expect(regex("."), {"a", "\xf0\x9f\x98\x80"}, {"\n", "ab"});
  expect(regex("a{2}b{0}c?"), {"aa", "aac"}, {"a", "aab"});
  expect(regex(""), {""}, {"a"});
  EXPECT_EQ(error(regex("a\\1")), "regex: offset 1: back-references cannot be enforced");
  EXPECT_EQ(error(regex("a\\b")), "regex: offset 1: word boundaries (\\b, \\B) cannot be enforced; write the characters out");
  EXPECT_EQ(error(regex("(?<!a)b")), "regex: offset 0: look-behind (?<= (?<! cannot be enforced");
  for (const char* bad : {"(", ")", "a**", "[", "[z-a]", "a{3,2}", "\\", "a{200000}", "(?i)a", "a^b", "\\p{Nope}", "(^a)*"})
    EXPECT_TRUE(error(regex(bad)).starts_with("regex: offset ")) << bad;
  compare_masks(regex("(ab|abc)*x|[a-c]{0,4}12"));
}

TEST_F(GrammarTest, Ebnf) {
  const auto sums = ebnf("root ::= term (\" + \" term)*  # a comment\nterm ::= [0-9]+ | \"(\" root \")\"\n");
  expect(sums, {"1", "12 + (3 + 4)", "((5))"}, {"", "1 +", "(1", "1)"});
  compare_masks(sums);
  expect(ebnf("root ::= \"\\x41\\u00e9\" [^\\n]{1,2} .?"), {"A\xc3\xa9x", "A\xc3\xa9xy\n"}, {"A\xc3\xa9\n", "A"});
  expect(ebnf("root ::= list\nlist ::= \"a\" | \"a,\" list"), {"a", "a,a,a"}, {"a,"});
  // Palindromes of a kind that only a stack recognises, ambiguous on top.
  expect(ebnf("root ::= a | b\na ::= \"a\" root? \"x\"\nb ::= \"a\" root? \"y\""), {"ax", "aaxy", "aaayxy"}, {"aax", "a", "axx"});
  const auto tool =
      ebnf("root ::= <[<mark>]> \"f\" args <[<gone>]>\nargs ::= %json{\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":[\"a\"]}");
  GrammarState s = state(tool);
  EXPECT_FALSE(allowed(s, '<'));
  EXPECT_TRUE(allowed(s, kMark));
  EXPECT_TRUE(s.accept(kMark));
  EXPECT_TRUE(feed(s, "f{\"a\": 12}<gone>"));
  EXPECT_TRUE(s.must_end());
  compare_masks(tool);
  EXPECT_EQ(error(ebnf("root ::= root \"a\" | \"b\"")).substr(0, 56), "grammar: left recursion: rule \"root\" begins with itself ");
  EXPECT_EQ(error(ebnf("root ::= other")), "grammar: line 1, column 10: expected a defined rule, found \"other\"");
  EXPECT_EQ(error(ebnf("a ::= \"x\"")), "grammar: line 1, column 1: expected a rule named root (root ::= ...), found none");
  for (const char* bad :
       {"root", "root ::= \"a", "root ::= [a", "root ::= (\"a\"", "root ::= \"a\"{2", "root ::= *", "root ::= %json{",
        "root ::= %json{\"not\":1}", "root ::= \"\\q\"", "root ::= \"a\"\nroot ::= \"b\"", "root ::= <[", "root ::= \"\\x4"})
    EXPECT_TRUE(error(ebnf(bad)).starts_with("grammar: line ")) << bad << ": " << error(ebnf(bad));
}

TEST_F(GrammarTest, Choices) {
  GrammarSpec spec{.kind = GrammarKind::kChoice, .choices = {"yes", "no", "not sure"}};
  expect(spec, {"yes", "no", "not sure"}, {"", "nope", "yes "});
  compare_masks(spec);
  spec.choices.clear();
  EXPECT_EQ(error(spec), "choice: expected at least one text, found none");
}

TEST_F(GrammarTest, FreeTextBeforeTheGrammar) {
  GrammarSpec spec = regex("ya|yb");
  spec.start_after = "</think>";
  GrammarState s = state(spec);
  EXPECT_FALSE(s.can_end());
  EXPECT_FALSE(allowed(s, kStop));
  EXPECT_TRUE(allowed(s, kMark));
  EXPECT_FALSE(allowed(s, static_cast<int32_t>(kVocab - 1)));  // no such token
  EXPECT_TRUE(feed(s, "hm </thi </thin"));
  const int32_t straddle = *tokenizer_->id_of("k>y"), wrong = *tokenizer_->id_of("k>y") + 1;
  GrammarState copy = s;
  EXPECT_TRUE(allowed(copy, straddle));
  EXPECT_TRUE(copy.accept(straddle));
  EXPECT_TRUE(feed(copy, "a"));
  EXPECT_TRUE(copy.must_end());
  EXPECT_TRUE(allowed(s, wrong));  // "think>" does not complete the marker here
  EXPECT_TRUE(s.accept(kThink));   // nor did "</thin", but the added token is the marker
  EXPECT_TRUE(feed(s, "yb"));
  EXPECT_FALSE(feed(s, "b"));
  EXPECT_TRUE(s.accept(kStop));
  EXPECT_TRUE(s.must_end());
  compare_masks(spec, 2, 20);

  GrammarSpec refused = regex("z");
  refused.start_after = "</think>";
  GrammarState r = state(refused);
  EXPECT_TRUE(feed(r, "</thin"));
  EXPECT_FALSE(allowed(r, straddle));
  EXPECT_FALSE(r.accept(straddle));
  EXPECT_TRUE(feed(r, "k>z"));
}

TEST_F(GrammarTest, TriggerMayNeverCome) {
  GrammarSpec spec = regex("[0-9]+");
  spec.trigger = "<mark>";
  GrammarState s = state(spec);
  EXPECT_TRUE(s.can_end());
  EXPECT_FALSE(s.must_end());
  EXPECT_TRUE(feed(s, "free text"));
  EXPECT_TRUE(GrammarState(s).accept(kStop));
  EXPECT_TRUE(s.accept(kMark));
  EXPECT_FALSE(s.can_end());
  EXPECT_FALSE(s.accept('a'));
  EXPECT_TRUE(feed(s, "12"));
  EXPECT_TRUE(s.can_end());
  spec.start_after = "</think>";
  GrammarState both = state(spec);
  EXPECT_TRUE(feed(both, "<mark>x"));  // before start_after it means nothing
  EXPECT_FALSE(both.can_end());
  EXPECT_TRUE(both.accept(kThink));
  EXPECT_TRUE(both.can_end());
  EXPECT_TRUE(feed(both, "a<mark>5"));
  EXPECT_FALSE(both.accept('a'));
}

TEST_F(GrammarTest, CopiesAreIndependent) {
  GrammarState a = state(schema(R"({"type":"array","items":{"type":"integer"}})"));
  ASSERT_TRUE(feed(a, "[1"));
  GrammarState b = a;
  const uint32_t* mask = a.mask();
  EXPECT_TRUE(feed(b, ",2]"));
  EXPECT_TRUE(b.must_end());
  EXPECT_EQ(a.mask(), mask);
  EXPECT_TRUE(feed(a, "]"));
}

TEST_F(GrammarTest, DeepTextNeitherOverflowsNorSlows) {
  GrammarState s = state(schema(R"({"type":"array","items":{"$ref":"#"}})"));
  for (int i = 0; i < 200000; i++) ASSERT_TRUE(s.accept('['));
  for (int i = 0; i < 10; i++) ASSERT_TRUE(s.accept(']'));
  EXPECT_FALSE(s.can_end());
}

TEST_F(GrammarTest, ManyThreadsShareOneGrammar) {
  const GrammarSpec spec{};
  const std::string text = R"({"a": [1, {"b": "x y"}], "c": {"d": null}})";
  std::atomic<int> complete{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&] {
      auto grammar = compiler_.compile(spec);
      if (!grammar.ok()) return;
      GrammarState s(*grammar);
      bool taken = true;
      for (char c : text) taken = taken && allowed(s, static_cast<unsigned char>(c)) && s.accept(static_cast<unsigned char>(c));
      if (taken && s.must_end()) complete++;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(complete, 4);
}

TEST_F(GrammarTest, HostileSpecificationsEndInErrors) {
  EXPECT_NE(error(regex("((((a{1000}){1000}){1000}){1000})")).find("too many states"), std::string::npos);
  EXPECT_NE(error(regex("(a|b)*a(a|b){25}")).find("too"), std::string::npos);
  EXPECT_NE(error(regex(std::string(300, '(') + std::string(300, ')'))).find("nested groups"), std::string::npos);
  EXPECT_NE(error(ebnf(std::string("root ::= ") + std::string(5000, '('))).find("nested groups"), std::string::npos);
  std::string chain = "root ::= r0\n";
  for (int i = 0; i < 9000; i++) chain += "r" + std::to_string(i) + " ::= r" + std::to_string(i + 1) + "\n";
  EXPECT_EQ(error(ebnf(chain + "r9000 ::= \"x\"")), "compiled");
  std::string wide = "root ::= \"q\"";
  for (int i = 0; i < 300; i++) wide += " | a" + std::to_string(i);
  for (int i = 0; i < 300; i++) wide += "\na" + std::to_string(i) + " ::= [^x]* \"" + std::to_string(i) + "\"";
  EXPECT_NE(error(ebnf(wide)).find("begin with almost any text"), std::string::npos);
  Json bombs = Json::object();
  for (int i = 0; i < 40; i++) {
    const Json next{{"$ref", "#/$defs/d" + std::to_string(i + 1)}};
    bombs["d" + std::to_string(i)] = Json{{"allOf", Json::array({next, next})}};
  }
  bombs["d40"] = Json{{"type", "string"}};
  EXPECT_NE(error(schema(Json{{"$ref", "#/$defs/d0"}, {"$defs", bombs}}.dump())).find("too"), std::string::npos);
  // 3 ^ n stacks if they were kept apart.
  GrammarState s = state(
      ebnf("root ::= a | b | c\na ::= \"a\" root \"x\" | \"z\"\nb ::= \"a\" root \"y\" | \"z\"\nc ::= \"a\" root \"x\" \"y\" | \"z\""));
  for (int i = 0; i < 3000; i++) ASSERT_TRUE(s.accept('a'));
  ASSERT_TRUE(s.accept('z'));
  EXPECT_TRUE(allowed(s, 'x'));
  EXPECT_TRUE(allowed(s, 'y'));
}

}  // namespace
}  // namespace dg
