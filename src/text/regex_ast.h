// Syntax tree between the regex parser (regex_parse.cpp) and the compiler (regex_compile.cpp).
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/unicode.h"

namespace dg::regex {

inline constexpr uint32_t kUnlimited = UINT32_MAX;
inline constexpr size_t kMaxPatternBytes = 8192;
inline constexpr size_t kMaxNodes = 2048;
inline constexpr int kMaxNesting = 100;
inline constexpr uint32_t kMaxRepeat = 1000;

enum class Kind : uint8_t { kEmpty, kChar, kSet, kCat, kAlt, kRepeat, kLook, kAtomic, kAssert };
enum class Mode : uint8_t { kGreedy, kLazy, kPossessive };
enum class Assertion : uint8_t { kLineBegin, kLineEnd, kTextBegin, kTextEnd, kTextEndOrNewline, kWordBoundary, kNotWordBoundary };

struct Node {
  Kind kind = Kind::kEmpty;
  Mode mode = Mode::kGreedy;                    // kRepeat
  Assertion assertion = Assertion::kLineBegin;  // kAssert
  bool ahead = true, negative = false;          // kLook
  uint16_t depth = 1;                           // height of the tree below, itself included
  char32_t code = 0;                            // kChar
  uint32_t min = 0, max = 0;                    // kRepeat
  unicode::Ranges set;                          // kSet
  std::vector<uint32_t> children;               // indexes into Ast::nodes, always smaller than the node's own
};

struct Ast {
  std::vector<Node> nodes;
  uint32_t root = 0;
};

Result<Ast> parse(std::string_view pattern);

}  // namespace dg::regex
