// StopMatcher: finds stop strings in a stream of text, whatever pieces it comes in, and holds back text that may be the
// beginning of one. The result depends on the text alone, not on how it is cut: the stop string that ends first wins, of two
// that end together the longer.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace dg {

class StopMatcher {
 public:
  // Empty strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  // Text that no stop string can take back any more. After a stop: nothing.
  std::string push(std::string_view text);
  // The text held back, when the stream ends without a stop.
  std::string finish();

  bool stopped() const { return matched_ >= 0; }
  const std::string& matched() const { return patterns_[static_cast<size_t>(matched_)].text; }

 private:
  // One Knuth-Morris-Pratt automaton per string: constant work per byte whatever the strings are.
  struct Pattern {
    std::string text;
    std::vector<size_t> failure;
    size_t state = 0;  // bytes of `text` that end the stream so far
  };
  std::vector<Pattern> patterns_;
  std::string held_;
  int matched_ = -1;
};

}  // namespace dg
