// Our regex engine against PCRE2 on every published pre-tokenizer pattern: the same matches on random and on real texts.
// Code points whose properties differ (PCRE2 10.42 has Unicode 14, ours is 16) are left out, and counted.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <gtest/gtest.h>
#include <pcre2.h>

#include <random>

#include "base/file.h"
#include "base/json.h"
#include "text/regex.h"
#include "text/unicode.h"

namespace dg {
namespace {

using Matches = std::vector<std::pair<size_t, size_t>>;

class Pcre {
 public:
  explicit Pcre(std::string pattern) {
    // To PCRE2 \\p{Han} means script extensions, to Oniguruma and us the script.
    for (std::string script : {"Han", "Hiragana", "Katakana", "Hangul"})
      for (size_t at; (at = pattern.find("\\p{" + script + "}")) != std::string::npos;) pattern.insert(at + 3, "sc:");
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error,
                          &offset, nullptr);
    if (code_ == nullptr) ADD_FAILURE() << "PCRE2 refuses " << pattern << " at " << offset;
    else pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
    data_ = code_ ? pcre2_match_data_create_from_pattern(code_, nullptr) : nullptr;
  }
  ~Pcre() {
    pcre2_match_data_free(data_);
    pcre2_code_free(code_);
  }
  Matches all(std::string_view text) const {
    Matches out;
    size_t at = 0, last_end = std::string::npos;
    while (code_ && at <= text.size()) {
      if (pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK, data_, nullptr) < 0) break;
      const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data_);
      if (ends[0] == ends[1] && ends[0] == last_end) {  // as Oniguruma's find_iter: no empty match right after a match
        at++;
        while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) at++;
        continue;
      }
      out.emplace_back(ends[0], ends[1]);
      at = last_end = ends[1];
    }
    return out;
  }

 private:
  pcre2_code* code_ = nullptr;
  pcre2_match_data* data_ = nullptr;
};

Matches ours(const Regex& regex, std::string_view text) {
  Matches out;
  Regex::Scratch scratch;
  Regex::Finder finder(regex, text, scratch);
  for (Regex::Match match; finder.next(match);) out.emplace_back(match.begin, match.end);
  EXPECT_FALSE(finder.exhausted());
  return out;
}

// clang-format off: it breaks these strings differently each time
const char* const kPatterns[] = {
    // DeepSeek-V3, R1, V3.1, V3.2, V4
    R"(\p{N}{1,3})",
    "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    // DeepSeek-LLM, V2, V2.5, Coder-V2 (code points that NFC would change are written as numbers)
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-"
    "ὗὙὛὝὟ-"
    "\\x{"
    "1f7d}"
    "ᾀ-"
    "ᾴᾶ-"
    "ᾼ\\x{1fbe}ῂ-ῄῆ-ῌῐ-\\x{1fd3}ῖ-\\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\\x{2126}ℨ\\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-"
    "ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-"
    "𐳲𑢠-"
    "𑣟𞤀-"
    "𞥃]"
    "+",
    "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
    R"(\s+$)",
    "[一-龥ࠀ-一가-퟿]+",
    R"(\p{N}+)",
    // DeepSeek-Coder
    R"(\s?\p{L}+)",
    R"(\s?\p{P}+)",
    R"(\p{N})",
    // Qwen2, Qwen3; Llama 3
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    // GPT-2 (ByteLevel), cl100k, o200k, and features of the engine
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)",
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
    R"([\p{Han}]+|\p{Hiragana}+|\p{Katakana}+|\p{Hangul}+)",
    R"((?<=[a-z])(?=[A-Z])|(?<!\d)\d{2,4}?(?!\d))",
    R"((?:ab?|c(?:de)*?f)+?\d|(?>he|hell)o|(?:a|b|ab)*c)",
    R"((?:(?:[a-z]+,)*;|(?:x?)*y|(?:\s|\p{P}){2,5}))",
    R"((?<=ab|.\n)\w|^.|.$)",
};
// clang-format on

// Every code point (but surrogates) as one text, and where a pattern of one character matches in it.
std::vector<bool> members(const Matches& matches, size_t bytes) {
  std::vector<bool> out(bytes, false);
  for (auto [begin, end] : matches) out[begin] = true;
  return out;
}

class Oracle : public testing::Test {
 protected:
  // Code points that both sides classify alike; computed once.
  static const std::vector<char32_t>& comparable() {
    static const std::vector<char32_t> kept = [] {
      std::string text;
      std::vector<std::pair<char32_t, size_t>> at;
      for (char32_t c = 0; c <= unicode::kMaxCodePoint; c++) {
        if (c >= 0xd800 && c < 0xe000) continue;
        at.emplace_back(c, text.size());
        unicode::append_utf8(text, c);
      }
      std::vector<bool> differs(text.size(), false);
      for (const char* pattern : {"\\p{Lu}", "\\p{Ll}", "\\p{Lt}", "\\p{Lm}", "\\p{Lo}", "\\p{M}", "\\p{N}", "\\p{Nd}", "\\p{P}", "\\p{S}",
                                  "\\p{Z}", "\\s", "\\p{Han}", "\\p{Hiragana}", "\\p{Katakana}", "\\p{Hangul}"}) {
        auto regex = Regex::compile(pattern);
        EXPECT_TRUE(regex.ok());
        std::vector<bool> theirs = members(Pcre(pattern).all(text), text.size());
        std::vector<bool> mine(text.size(), false);
        Regex::Scratch scratch;
        Regex::Finder finder(*regex, text, scratch);
        for (Regex::Match match; finder.next(match);) mine[match.begin] = true;
        for (size_t i = 0; i < text.size(); i++)
          if (mine[i] != theirs[i]) differs[i] = true;
      }
      std::vector<char32_t> out;
      size_t excluded = 0;
      for (auto [c, offset] : at) {
        if (differs[offset]) excluded++;
        else out.push_back(c);
      }
      // Unicode 15 to 16 added 4489 + 627 + 5185 characters; nothing else may differ but U+180E, a blank only to PCRE2,
      // and a few changed categories.
      EXPECT_GT(excluded, 9000u);
      EXPECT_LT(excluded, 10500u);
      return out;
    }();
    return kept;
  }

  static void compare(const std::vector<std::string>& texts) {
    for (const char* pattern : kPatterns) {
      auto regex = Regex::compile(pattern);
      ASSERT_TRUE(regex.ok()) << regex.error().message;
      Pcre pcre(pattern);
      for (const std::string& text : texts) ASSERT_EQ(ours(*regex, text), pcre.all(text)) << pattern << "\nin: " << Json(text).dump();
    }
  }
};

TEST_F(Oracle, RandomTexts) {
  std::mt19937 random(1);
  const auto pick = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  const std::string ascii = "abcxyzABCXYZ 0189.,;!?'\"-_()\t\n\r  \n\n  'S'll'RE fhed;y";
  const auto& all = comparable();
  std::vector<char32_t> low;  // the scripts in everyday use
  for (char32_t c : all)
    if (c < 0x3100) low.push_back(c);
  std::vector<std::string> texts;
  for (int i = 0; i < 3000; i++) {
    std::string text;
    const size_t length = 1 + pick(60), mode = pick(4);
    for (size_t k = 0; k < length; k++) {
      const size_t kind = mode == 0 ? 0 : pick(6);
      if (kind <= 2) text += ascii[pick(ascii.size())];
      else if (kind == 3) unicode::append_utf8(text, low[pick(low.size())]);
      else if (kind == 4) unicode::append_utf8(text, all[pick(all.size())]);
      else unicode::append_utf8(text, 0x4e00 + static_cast<char32_t>(pick(0x5000)));
    }
    texts.push_back(std::move(text));
  }
  compare(texts);
}

TEST_F(Oracle, RealTexts) {
  std::vector<std::string> texts;
  for (const char* name : {"deepseek_v3", "qwen3", "llama3_1"}) {
    auto file = read_file(std::string(DG_SOURCE_DIR "/tests/tokenizer/vectors/") + name + ".jsonl", size_t{64} << 20);
    ASSERT_TRUE(file.ok());
    size_t at = 0;
    for (size_t end; (end = file->find('\n', at)) != std::string::npos; at = end + 1) {
      auto row = parse_json(std::string_view(*file).substr(at, end - at), name);
      ASSERT_TRUE(row.ok());
      std::string text = (*row)["text"], kept;
      for (const char *p = text.data(), *stop = p + text.size(); p < stop;) {
        unicode::Decoded d = unicode::decode(p, stop);
        if (std::binary_search(comparable().begin(), comparable().end(), d.code)) kept.append(p, d.bytes);
        p += d.bytes;
      }
      texts.push_back(std::move(kept));
    }
  }
  auto source = read_file(DG_SOURCE_DIR "/src/base/json.cpp", 1 << 20);
  ASSERT_TRUE(source.ok());
  texts.push_back(*source);
  ASSERT_GT(texts.size(), 1000u);
  compare(texts);
}

}  // namespace
}  // namespace dg
