// Added tokens: strings that are recognised in the text before anything else, leftmost and then longest.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dg {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
};

// Finds the tokens of one set (the normalised or the raw ones) in a text.
class AddedTokenMatcher {
 public:
  struct Span {
    size_t begin, end;
    int32_t id;  // -1: text between tokens
  };

  // `pattern` is the string to look for: the content, normalised where the token asks for it.
  void add(const AddedToken& token, std::string_view pattern);
  bool empty() const { return entries_.empty(); }
  // The whole of `text` in order: tokens and the texts between them (never empty).
  void split(std::string_view text, std::vector<Span>& spans) const;

 private:
  struct Entry {
    int32_t id;
    bool single_word, lstrip, rstrip;
  };
  struct Node {
    std::vector<std::pair<unsigned char, uint32_t>> children;  // sorted by byte
    int32_t entry = -1;
  };
  const Entry* longest_match(std::string_view text, size_t at, size_t& end) const;

  std::vector<Entry> entries_;
  std::vector<Node> nodes_{1};
  uint32_t first_[256] = {};  // first byte -> child of the root; 0: none
};

}  // namespace dg
