// Unicode 16.0 for the tokenizers: UTF-8 in and out, categories, scripts, case folding, as lists of ranges for the
// regex compiler and as point queries for the rest. Tables: unicode_data.cpp (generated). Normal forms: unicode_normal.h.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dg::unicode {

inline constexpr char32_t kMaxCodePoint = 0x10ffff;
inline constexpr char32_t kReplacement = 0xfffd;

// The two-letter general categories, in the order of the generated table.
enum class Category : uint8_t {
  kCn,
  kLu,
  kLl,
  kLt,
  kLm,
  kLo,
  kMn,
  kMc,
  kMe,
  kNd,
  kNl,
  kNo,
  kPc,
  kPd,
  kPs,
  kPe,
  kPi,
  kPf,
  kPo,
  kSm,
  kSc,
  kSk,
  kSo,
  kZs,
  kZl,
  kZp,
  kCc,
  kCf,
  kCs,
  kCo,
};

struct Range {
  char32_t first, last;  // inclusive
  bool operator==(const Range&) const = default;
};
using Ranges = std::vector<Range>;  // sorted, disjoint, not adjacent, once tidied

void tidy(Ranges& ranges);  // sorts and joins
Ranges complement(const Ranges& ranges);
Ranges intersection(const Ranges& a, const Ranges& b);
bool contains(const Ranges& ranges, char32_t c);

Category category(char32_t c);
bool is_white_space(char32_t c);
bool is_word(char32_t c);  // \w: Alphabetic, marks, decimal digits, connector punctuation
bool is_mark(char32_t c);
// \w outside a bracket class and \b in Oniguruma: as is_word, plus the superscripts and fractions of Latin-1, for which it
// asks an ISO 8859-1 table.
bool is_lone_word(char32_t c);

// Ranges of a property as in \p{...}: general categories ("L", "Lu", "Letter", "Uppercase_Letter"), scripts ("Han"),
// "Any", "Assigned", "ASCII", "White_Space"/"Space", "Word", "Digit" and the POSIX bracket names. Case, '_', '-' and
// blanks in the name do not matter. nullopt: unknown.
std::optional<Ranges> property(std::string_view name);

Ranges lone_word();

char32_t fold_case(char32_t c);                          // simple case folding
const std::vector<char32_t>& case_variants(char32_t c);  // all that fold to the same, c included; empty: only c itself
void close_over_case(Ranges& ranges);                    // adds every code point that folds to the same as a member
void append_lower(std::string& out, char32_t c);         // as Rust's char::to_lowercase

// --- UTF-8
struct Decoded {
  char32_t code;   // kReplacement when the bytes are not UTF-8
  uint32_t bytes;  // 1..4; for ill-formed bytes the length of the maximal subpart that one U+FFFD stands for
  bool valid;
};
Decoded decode(const char* at, const char* end);  // at < end
void append_utf8(std::string& out, char32_t c);
size_t first_invalid(std::string_view text);         // byte offset of the first ill-formed sequence, or npos
std::string replace_invalid(std::string_view text);  // each maximal subpart becomes U+FFFD, as Python's and Rust's lossy decoders do

// Length of the longest prefix of `text` that does not end inside a UTF-8 sequence which further bytes could complete.
size_t complete_prefix(std::string_view text);

}  // namespace dg::unicode
