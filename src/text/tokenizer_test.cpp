// The pipeline on small made-up tokenizers; equality with Hugging Face is tested in tests/tokenizer.
#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <functional>
#include <random>
#include <thread>

#include "base/file.h"
#include "base/json.h"
#include "text/bpe.h"
#include "text/detokenizer.h"
#include "text/unicode.h"

namespace dg {
namespace {

using Ids = std::vector<int32_t>;

// All bytes (ids 0-255), some merges, three added tokens.
Json byte_tokenizer() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; b++) {
    std::string symbol;
    unicode::append_utf8(symbol, ByteAlphabet::char_of(static_cast<unsigned char>(b)));
    vocab[symbol] = b;
  }
  Json merges = Json::array();
  int next = 256;
  for (const char* merge : {"a b", "ab c", "b c", "Ġ a", "a a", "aa aa", "æ ·", "æ· ±"}) {
    merges.push_back(merge);
    std::string joined = merge;
    joined.erase(joined.find(' '), 1);
    vocab[joined] = next++;
  }
  const auto added = [](int id, const char* content, bool special) {
    return Json{{"id", id},        {"content", content}, {"special", special}, {"normalized", false}, {"single_word", false},
                {"lstrip", false}, {"rstrip", false}};
  };
  return Json{{"added_tokens", Json::array({added(300, "<s>", true), added(301, "<think>", false), added(302, "<think>x", false)})},
              {"normalizer", nullptr},
              {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
              {"post_processor", nullptr},
              {"decoder", {{"type", "ByteLevel"}}},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}}}};
}

std::unique_ptr<Tokenizer> make(const Json& json, const std::string& config = "") {
  auto tokenizer = Tokenizer::from_json(json.dump(), config, "test");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}
std::string error_of(const Json& json, const std::string& config = "") {
  auto tokenizer = Tokenizer::from_json(json.dump(), config, "test");
  return tokenizer.ok() ? "loaded" : tokenizer.error().message;
}

TEST(Tokenizer, MergesByRankThenFromTheLeft) {
  auto t = make(byte_tokenizer());
  EXPECT_EQ(t->encode("abc"), (Ids{257}));
  EXPECT_EQ(t->encode("abbc"), (Ids{256, 258}));
  EXPECT_EQ(t->encode("aaaaa"), (Ids{261, 'a'}));
  EXPECT_EQ(t->encode(""), Ids{});
}

TEST(Tokenizer, LongestAddedTokenWinsAndCanBeSwitchedOff) {
  auto t = make(byte_tokenizer());
  EXPECT_EQ(t->encode("<s><think>x<think><think"), (Ids{300, 302, 301, '<', 't', 'h', 'i', 'n', 'k'}));
  EXPECT_EQ(t->encode("<s>", {.parse_added = false}), (Ids{'<', 's', '>'}));
}

TEST(Tokenizer, FactsAboutTokens) {
  auto t = make(byte_tokenizer());
  EXPECT_EQ(t->vocab_size(), 303);
  EXPECT_EQ(t->token_bytes(259), " a");
  EXPECT_EQ(t->content(259), "Ġa");
  EXPECT_EQ(t->token_bytes(0x80), "\x80");
  EXPECT_EQ(t->token_bytes(299), "");
  for (int32_t id : {-1, 303, 1 << 30, INT32_MIN}) {
    EXPECT_EQ(t->token_bytes(id), "");
    EXPECT_FALSE(t->is_special(id));
  }
  EXPECT_EQ(t->id_of("Ġa"), 259);
  EXPECT_EQ(t->id_of("<think>"), 301);
  EXPECT_EQ(t->id_of("nope"), std::nullopt);
  EXPECT_TRUE(t->is_special(300));
  EXPECT_TRUE(t->is_added(301));
  EXPECT_FALSE(t->is_special(301));
  EXPECT_FALSE(t->is_added(256));
}

TEST(Tokenizer, DecodeReplacesIllFormedBytesAndSkips) {
  auto t = make(byte_tokenizer());
  EXPECT_EQ(t->decode(Ids{300, 263, 0xe6, 0xb7, 'a', 999, -5}), "<s>深�a");
  EXPECT_EQ(t->decode(Ids{300, 'a', 301}, true), "a<think>");
}

TEST(Tokenizer, AnyBytesEncode) {
  auto t = make(byte_tokenizer());
  std::mt19937 random(11);
  for (int i = 0; i < 2000; i++) {
    std::string text;
    for (size_t n = random() % 30; n > 0; n--) text += static_cast<char>(random());
    const Ids ids = t->encode(text);
    EXPECT_EQ(ids, t->encode(text));
    EXPECT_EQ(t->decode(ids), unicode::replace_invalid(text));
  }
}

TEST(Tokenizer, BosComesFromTheConfigFlagWhenThereIsNoTemplate) {
  auto t = make(byte_tokenizer(), R"({"add_bos_token": true, "bos_token": {"content": "<s>"}, "eos_token": "<think>"})");
  EXPECT_TRUE(t->add_bos());
  EXPECT_EQ(t->bos_id(), 300);
  EXPECT_EQ(t->eos_id(), 301);
  EXPECT_EQ(t->encode("a"), (Ids{300, 'a'}));
  EXPECT_EQ(t->encode("a", {.add_special = false}), (Ids{'a'}));
  EXPECT_FALSE(make(byte_tokenizer(), R"({"add_bos_token": false, "bos_token": "<s>"})")->add_bos());
  EXPECT_EQ(error_of(byte_tokenizer(), R"({"add_bos_token": true, "bos_token": "<b>"})"),
            "test (tokenizer_config): $.bos_token: \"<b>\" is no token of tokenizer.json, but add_bos_token is true; name a token or set "
            "add_bos_token "
            "to false");
}

TEST(Tokenizer, ChatTemplateForms) {
  EXPECT_EQ(make(byte_tokenizer(), R"({"chat_template": "x"})")->chat_template(), "x");
  EXPECT_EQ(make(byte_tokenizer(), R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})")
                ->chat_template(),
            "d");
  EXPECT_EQ(make(byte_tokenizer())->chat_template(), "");
  const std::string directory = testing::TempDir() + "/dg_tokenizer_template";
  std::filesystem::create_directories(directory);
  ASSERT_TRUE(write_file(directory + "/tokenizer.json", byte_tokenizer().dump()).ok());
  ASSERT_TRUE(write_file(directory + "/tokenizer_config.json", R"({"chat_template": "config"})").ok());
  EXPECT_EQ((*Tokenizer::load(directory))->chat_template(), "config");
  ASSERT_TRUE(write_file(directory + "/chat_template.jinja", "file").ok());
  EXPECT_EQ((*Tokenizer::load(directory))->chat_template(), "file");
  std::filesystem::remove_all(directory);
}

TEST(Tokenizer, ErrorsNameTheField) {
  struct Case {
    std::function<void(Json&)> change;
    const char* expected;
  };
  const Case cases[] = {
      {[](Json& j) { j["model"]["type"] = "Unigram"; }, "test: $.model: model type Unigram is not supported; supported: BPE"},
      {[](Json& j) { j.erase("model"); }, "test: $.model: missing"},
      {[](Json& j) { j["model"]["merges"][2] = "q z"; }, "test: $.model.merges[2]: token \"qz\" is not in the vocabulary"},
      {[](Json& j) { j["model"]["merges"][1] = "abc"; }, "test: $.model.merges[1]: expected \"a b\" or [\"a\", \"b\"]"},
      {[](Json& j) { j["model"]["vocab"]["new"] = 5; }, "is already used by"},
      {[](Json& j) { j["model"]["vocab"]["new"] = -1; }, "test: $.model.vocab[\"new\"]: expected an id from 0 to 16777215, found -1"},
      {[](Json& j) { j["model"]["vocab"]["new"] = 1.5; }, "expected an id from 0 to 16777215, found 1.5"},
      {[](Json& j) { j["model"]["vocab"]["new"] = 16000000; }, "expected ids near the number of tokens"},
      {[](Json& j) { j["model"]["dropout"] = 0.1; }, "test: $.model.dropout: expected null or 0, found 0.1"},
      {[](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix \"</w>\" is not supported"},
      {[](Json& j) { j["model"]["unk_token"] = "<unk>"; }, "test: $.model.unk_token: \"<unk>\" is not in the vocabulary"},
      {[](Json& j) { j["added_tokens"][1]["id"] = 300; }, "id 300 of \"<think>\" is already used by \"<s>\""},
      {[](Json& j) { j["added_tokens"][1]["content"] = "ab"; }, "\"ab\" has id 301 here and 256 in model.vocab"},
      {[](Json& j) { j["added_tokens"][1]["id"] = 16777215; }, "test: $.added_tokens: expected ids near the number of tokens"},
      {[](Json& j) {
         j["normalizer"] = {{"type", "Precompiled"}};
       },
       "test: $.normalizer: normalizer Precompiled is not supported"},
      {[](Json& j) {
         j["pre_tokenizer"] = {{"type", "Split"}, {"pattern", {{"Regex", "a("}}}};
       },
       "test: $.pre_tokenizer.pattern: regular expression, byte 1"},
      {[](Json& j) {
         j["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Bad"}}}}};
       },
       "test: $.pre_tokenizer.pretokenizers[0]: pre-tokenizer Bad is not supported"},
      {[](Json& j) {
         j["decoder"] = {{"type", "CTC"}};
       },
       "test: $.decoder: decoder CTC is not supported"},
      {[](Json& j) {
         j["post_processor"] = {{"type", "BertProcessing"}};
       },
       "test: $.post_processor: post-processor BertProcessing is not supported"},
      {[](Json& j) {
         j["truncation"] = {{"max_length", 5}};
       },
       "test: $.truncation: expected null"},
      {[](Json& j) { j = Json::array(); }, "test: $: expected an object"},
  };
  for (const Case& c : cases) {
    Json json = byte_tokenizer();
    c.change(json);
    const std::string error = error_of(json);
    EXPECT_NE(error.find(c.expected), std::string::npos) << "expected: " << c.expected << "\nfound: " << error;
    EXPECT_EQ(error.find('\n'), std::string::npos);
  }
  EXPECT_NE(Tokenizer::load("/nowhere").error().message.find("/nowhere/tokenizer.json: not found"), std::string::npos);
}

TEST(Tokenizer, VocabularyAndMergesAreStrictJson) {
  const auto with = [](const std::string& vocab, const std::string& merges) {
    return Tokenizer::from_json("{\"model\": {\"vocab\": " + vocab + ", \"merges\": " + merges + "}, \"decoder\": {\"type\": \"Fuse\"}}",
                                "", "test");
  };
  auto good = with(R"( { "\u0061" : 0 , "\ud83d\ude00\n\"": 1, "b" :2,"ab":3,"model":4} )", R"([ [ "a" , "b" ] ])");
  ASSERT_TRUE(good.ok()) << good.error().message;
  EXPECT_EQ((*good)->encode("abmodel"), (Ids{3}));
  EXPECT_EQ((*good)->id_of("😀\n\""), 1);
  EXPECT_TRUE(with(R"({"a": 0})", "[]").ok());
  const std::pair<const char*, const char*> bad[] = {
      {R"({"a" 0})", "[]"},
      {R"({"a": 0,})", "[]"},
      {R"({"a": "0"})", "[]"},
      {R"({"a": 0, "a": 1})", "[]"},
      {R"({"a": 0x1})", "[]"},
      {R"({"\ud800": 0})", "[]"},
      {R"({"\q": 0})", "[]"},
      {"{\"a\n\": 0}", "[]"},
      {"{\"\xff\": 0}", "[]"},
      {R"({})", "[]"},
      {R"({"a": 0)", "[]"},
      {R"([])", "[]"},
      {R"({"a": 0})", "{}"},
      {R"({"a": 0})", R"(["a"])"},
      {R"({"a": 0})", R"([["a"]])"},
      {R"({"a": 0})", R"([["a", "a", "a"]])"},
      {R"({"a": 0})", R"(["a a" "a a"])"},
      {R"({"a": 0})", R"(["a  a"])"},
      {R"({"a": 0})", "[1]"},
      {R"({"a": {}})", "[]"},
  };
  for (auto [vocab, merges] : bad) {
    auto result = with(vocab, merges);
    ASSERT_FALSE(result.ok()) << vocab << " " << merges;
    EXPECT_EQ(result.error().message.rfind("test", 0), 0u);
  }
}

TEST(Tokenizer, DeepNestingIsRefused) {
  Json json = byte_tokenizer();
  Json nested = {{"type", "ByteLevel"}};
  for (int i = 0; i < 12; i++) nested = {{"type", "Sequence"}, {"pretokenizers", Json::array({nested})}};
  json["pre_tokenizer"] = nested;
  EXPECT_NE(error_of(json).find("fewer nested"), std::string::npos);
}

// Merging by definition: the pair of lowest rank, leftmost, one at a time.
Ids naive(const Json& json, std::string_view text) {
  std::vector<std::string> symbols;
  for (unsigned char b : text) {
    symbols.emplace_back();
    unicode::append_utf8(symbols.back(), ByteAlphabet::char_of(b));
  }
  const Json& merges = json["model"]["merges"];
  for (;;) {
    size_t best_rank = merges.size(), best = 0;
    for (size_t i = 0; i + 1 < symbols.size(); i++)
      for (size_t r = 0; r < best_rank; r++)
        if (merges[r] == symbols[i] + " " + symbols[i + 1]) best_rank = r, best = i;
    if (best_rank == merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<long>(best) + 1);
  }
  Ids ids;
  for (const std::string& symbol : symbols) ids.push_back(json["model"]["vocab"][symbol]);
  return ids;
}

TEST(Tokenizer, ShortAndLongPiecesMergeAsDefined) {
  const Json json = byte_tokenizer();
  auto t = make(json);
  std::mt19937 random(5);
  for (int i = 0; i < 400; i++) {
    std::string text;
    for (size_t n = 1 + random() % (i % 2 ? 200 : 40); n > 0; n--) text += "aabc "[random() % 5];
    EXPECT_EQ(t->encode(text), naive(json, text)) << text;
  }
}

TEST(Tokenizer, OneMegabytePieceIsQuick) {
  auto t = make(byte_tokenizer());
  const std::string text(1 << 20, 'a');
  const Ids ids = t->encode(text);  // quadratic merging would take hours
  EXPECT_EQ(ids, Ids(1 << 18, 261));
}

TEST(Tokenizer, ManyThreadsShareOne) {
  auto t = make(byte_tokenizer());
  std::vector<Ids> expected;
  std::vector<std::string> texts;
  for (int i = 0; i < 200; i++) {
    texts.push_back(std::string(static_cast<size_t>(i % 70), 'a') + "bc<think>" + std::to_string(i));
    expected.push_back(make(byte_tokenizer())->encode(texts.back()));
  }
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int k = 0; k < 4; k++)
    threads.emplace_back([&] {
      for (int round = 0; round < 20; round++)
        for (size_t i = 0; i < texts.size(); i++) wrong += t->encode(texts[i]) != expected[i];
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(StreamDetokenizer, PiecesAreCompleteAndJoinToTheDecodedText) {
  auto t = make(byte_tokenizer());
  std::mt19937 random(9);
  for (int i = 0; i < 3000; i++) {
    Ids ids;
    for (size_t n = random() % 16; n > 0; n--) {
      const uint32_t kind = random() % 4;
      if (kind == 0) ids.push_back(static_cast<int32_t>(random() % 303));
      else
        for (unsigned char b : std::string_view(kind == 1 ? "深" : kind == 2 ? "👩" : "é").substr(0, 1 + random() % 4)) ids.push_back(b);
    }
    for (bool skip : {false, true}) {
      StreamDetokenizer stream(*t, skip);
      std::string joined;
      for (int32_t id : ids) {
        const std::string piece = stream.push(id);
        EXPECT_EQ(unicode::first_invalid(piece), std::string_view::npos);
        joined += piece;
      }
      joined += stream.finish();
      EXPECT_EQ(joined, t->decode(ids, skip));
    }
  }
}

TEST(StreamDetokenizer, HoldsBackOnlyTheOpenCharacter) {
  auto t = make(byte_tokenizer());
  StreamDetokenizer stream(*t);
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(0xe6), "");
  EXPECT_EQ(stream.push(0xb7), "");
  EXPECT_EQ(stream.push(0xb1), "深");
  EXPECT_EQ(stream.push(0xe6), "");
  EXPECT_EQ(stream.push('b'), "�b");
  EXPECT_EQ(stream.push(300), "");  // special: skipped
  EXPECT_EQ(stream.push(301), "<think>");
  EXPECT_EQ(stream.push(0xf0), "");
  EXPECT_EQ(stream.finish(), "�");
  EXPECT_EQ(stream.finish(), "");
}

TEST(StreamDetokenizer, KeepsTheSpecialTokensItIsAskedFor) {
  auto t = make(byte_tokenizer());
  const std::vector<int32_t> keep = {301, 300};
  StreamDetokenizer stream(*t, true, keep);
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(300), "<s>");
  EXPECT_EQ(stream.push(301), "<think>");
  const std::vector<int32_t> other = {301};
  StreamDetokenizer without(*t, true, other);
  EXPECT_EQ(without.push(300), "");
  StreamDetokenizer all(*t, false, {});
  EXPECT_EQ(all.push(300), "<s>");
}

}  // namespace
}  // namespace dg
