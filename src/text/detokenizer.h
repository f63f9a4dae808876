// Token ids to text while they are generated: every piece handed out is complete UTF-8, and all pieces together are
// what Tokenizer::decode gives for the whole list. (One exception: in tokenizers with byte-fallback tokens an ill-formed
// run of them gives one U+FFFD per maximal subpart here and one per byte there.)
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace dg {

class StreamDetokenizer {
 public:
  // `keep`: special tokens that give their text although skip_special is set, such as the marks of tool calls.
  explicit StreamDetokenizer(const Tokenizer& tokenizer, bool skip_special = true, std::span<const int32_t> keep = {});

  // Text that is complete by now; bytes of an unfinished character (at most 3) are held back.
  std::string push(int32_t id);
  // The rest: an unfinished character becomes U+FFFD. The detokenizer is then as new.
  std::string finish();

 private:
  void reset();
  void append_first(std::string_view bytes);

  const Tokenizer& tokenizer_;
  const bool skip_special_;
  const std::vector<int32_t> keep_;  // a handful
  bool started_ = false;
  size_t strip_left_ = 0;  // how often strip_content_ is still to be removed from the beginning
  std::string strip_content_;
  bool drops_blanks_ = false;
  std::string separator_;
  std::string pending_;  // not handed out yet
};

}  // namespace dg
