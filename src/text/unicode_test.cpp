#include "text/unicode.h"

#include <gtest/gtest.h>

#include <random>

#include "base/file.h"
#include "base/json.h"
#include "text/unicode_normal.h"

namespace dg::unicode {
namespace {

TEST(Utf8, DecodesAndRefusesByTable37) {
  const auto at = [](std::string_view s) { return decode(s.data(), s.data() + s.size()); };
  EXPECT_EQ(at("A").code, U'A');
  EXPECT_EQ(at("é").code, U'é');
  EXPECT_EQ(at("深").code, U'深');
  EXPECT_EQ(at("\xf4\x8f\xbf\xbf").code, kMaxCodePoint);
  for (std::string_view bad : {"\x80", "\xc0\xaf", "\xc1\xbf", "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_FALSE(at(bad).valid);
    EXPECT_EQ(at(bad).bytes, 1u);
  }
  EXPECT_EQ(at("\xed\xa0\x80").bytes, 1u);      // surrogate
  EXPECT_EQ(at("\xf4\x90\x80\x80").bytes, 1u);  // above U+10FFFF
  EXPECT_EQ(at("\xe6\xb7").bytes, 2u);          // cut short: one maximal subpart
  EXPECT_EQ(at("\xf0\x9f\x91").bytes, 3u);
}

TEST(Utf8, ReplacesEachMaximalSubpart) {
  EXPECT_EQ(replace_invalid("a\xe6\xb7z\xff\xf0\x9f\x91深\xed\xa0\x80"), "a�z��深���");
  EXPECT_EQ(first_invalid("12345678901234567\xff"), 17u);
  EXPECT_EQ(first_invalid("深度求索"), std::string_view::npos);
}

TEST(Utf8, EveryCodePointComesBack) {
  for (char32_t c = 0; c <= kMaxCodePoint; c++) {
    if (c >= 0xd800 && c < 0xe000) continue;
    std::string text;
    append_utf8(text, c);
    Decoded d = decode(text.data(), text.data() + text.size());
    ASSERT_TRUE(d.valid);
    ASSERT_EQ(d.code, c);
    ASSERT_EQ(d.bytes, text.size());
  }
}

TEST(Utf8, CompletePrefixStopsBeforeAnOpenCharacter) {
  EXPECT_EQ(complete_prefix(""), 0u);
  EXPECT_EQ(complete_prefix("ab"), 2u);
  EXPECT_EQ(complete_prefix("ab\xe6"), 2u);
  EXPECT_EQ(complete_prefix("ab\xe6\xb7"), 2u);
  EXPECT_EQ(complete_prefix("ab\xe6\xb7\xb1"), 5u);
  EXPECT_EQ(complete_prefix("\xf0\x9f\x91"), 0u);
  EXPECT_EQ(complete_prefix("\xed\xa0"), 2u);  // can never become a character
  EXPECT_EQ(complete_prefix("\x80\x80\x80\x80"), 4u);
  EXPECT_EQ(complete_prefix("\xff"), 1u);
}

TEST(Properties, CategoriesOfUnicode16) {
  EXPECT_EQ(category(U'A'), Category::kLu);
  EXPECT_EQ(category(U'深'), Category::kLo);
  EXPECT_EQ(category(U'①'), Category::kNo);
  EXPECT_EQ(category(0x31350), Category::kLo);  // extension H, Unicode 15
  EXPECT_EQ(category(0x2ebf0), Category::kLo);  // extension I, Unicode 15.1
  EXPECT_EQ(category(0x16d68), Category::kLo);  // Kirat Rai, Unicode 16
  EXPECT_EQ(category(0x378), Category::kCn);
  EXPECT_EQ(category(kMaxCodePoint), Category::kCn);
}

TEST(Properties, WhiteSpaceIsTheUnicodeProperty) {
  std::string found;
  for (char32_t c = 0; c <= kMaxCodePoint; c++)
    if (is_white_space(c)) append_utf8(found, c);
  EXPECT_EQ(
      found,
      "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000");
}

TEST(Properties, NamesAndRanges) {
  for (const char* name :
       {"L", "Letter", "letter", "Lu", "Uppercase_Letter", "Han", "Hiragana", "Katakana", "Hangul", "Old_Italic", "punct", "Any"})
    EXPECT_TRUE(property(name).has_value()) << name;
  EXPECT_FALSE(property("Xyzzy").has_value());
  EXPECT_FALSE(property("").has_value());
  EXPECT_TRUE(contains(*property("Han"), U'々'));
  EXPECT_FALSE(contains(*property("Han"), U'あ'));
  EXPECT_FALSE(contains(*property("Katakana"), U'ー'));  // Common: shared by two scripts
}

TEST(Properties, RangeAlgebra) {
  const Ranges letters = *property("L"), none = intersection(letters, complement(letters));
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(complement(complement(letters)), letters);
  Ranges all = letters;
  const Ranges rest = complement(letters);
  all.insert(all.end(), rest.begin(), rest.end());
  tidy(all);
  EXPECT_EQ(all, (Ranges{{0, kMaxCodePoint}}));
}

TEST(Case, FoldsAndLowers) {
  EXPECT_EQ(fold_case(U'É'), U'é');
  EXPECT_EQ(fold_case(0x17f), U's');   // long s
  EXPECT_EQ(fold_case(0x212a), U'k');  // Kelvin
  EXPECT_EQ(fold_case(U'Ā'), U'ā');    // a run of stride 2
  EXPECT_EQ(fold_case(U'ā'), U'ā');
  Ranges s{{'s', 's'}};
  close_over_case(s);
  EXPECT_EQ(s, (Ranges{{'S', 'S'}, {'s', 's'}, {0x17f, 0x17f}}));
  std::string lowered;
  for (char32_t c : {U'İ', U'Σ', U'Ꭰ', U'a'}) append_lower(lowered, c);
  EXPECT_EQ(lowered, "i\u0307σꭰa");
}

TEST(NormalForms, AreThoseOfNode) {
  auto file = read_file(DG_SOURCE_DIR "/tests/tokenizer/vectors/normalization.jsonl", 1 << 24);
  ASSERT_TRUE(file.ok()) << file.error().message;
  size_t rows = 0, at = 0;
  for (size_t end; (end = file->find('\n', at)) != std::string::npos; at = end + 1, rows++) {
    auto row = parse_json(std::string_view(*file).substr(at, end - at), "normalization.jsonl");
    ASSERT_TRUE(row.ok());
    const std::string text = (*row)[0];
    for (int form = 0; form < 4; form++)
      EXPECT_EQ(normalize(text, static_cast<NormalForm>(form)), (*row)[form + 1].get<std::string>())
          << "form " << form << " of " << row->dump();
  }
  EXPECT_GT(rows, 300u);
}

TEST(NormalForms, ManyMarksTakeNoLongerThanSorting) {
  std::string text = "a";
  for (int i = 0; i < 200000; i++) append_utf8(text, i % 2 ? 0x301 : 0x323);
  const std::string composed = normalize(text, NormalForm::kNfc);
  EXPECT_EQ(composed.substr(0, 3), "ạ");
  EXPECT_EQ(normalize(composed, NormalForm::kNfc), composed);
}

TEST(NormalForms, IllFormedTextIsSafe) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; i++) {
    std::string text;
    for (int k = 0; k < 12; k++) text += static_cast<char>(random());
    for (int form = 0; form < 4; form++) normalize(text, static_cast<NormalForm>(form));
  }
}

}  // namespace
}  // namespace dg::unicode
