// Splits a template into text and tokens, applying white-space control as jinja2 does with trim_blocks and lstrip_blocks.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dg::jinja {

enum class TokenKind : uint8_t { kText, kPrintBegin, kPrintEnd, kBlockBegin, kBlockEnd, kName, kString, kInteger, kFloat, kOperator, kEnd };

struct Token {
  TokenKind kind = TokenKind::kEnd;
  int line = 1;
  std::string text;  // kText, kName, kOperator as written; kString with its escapes resolved
  int64_t integer = 0;
  double real = 0;
};

// Throws Failure. The result ends with kEnd.
std::vector<Token> tokenize(std::string_view source);

}  // namespace dg::jinja
