#include "engine/stop.h"

#include <algorithm>
#include <utility>

namespace dg {

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    if (stop.empty()) continue;
    Pattern pattern{std::move(stop), {}, 0};
    const std::string& text = pattern.text;
    pattern.failure.assign(text.size(), 0);
    for (size_t i = 1, k = 0; i < text.size(); i++) {
      while (k > 0 && text[i] != text[k]) k = pattern.failure[k - 1];
      if (text[i] == text[k]) k++;
      pattern.failure[i] = k;
    }
    patterns_.push_back(std::move(pattern));
  }
}

std::string StopMatcher::push(std::string_view text) {
  if (stopped()) return "";
  if (patterns_.empty()) return std::string(text);
  for (char c : text) {
    held_ += c;
    for (size_t p = 0; p < patterns_.size(); p++) {
      Pattern& pattern = patterns_[p];
      while (pattern.state > 0 && c != pattern.text[pattern.state]) pattern.state = pattern.failure[pattern.state - 1];
      if (c == pattern.text[pattern.state]) pattern.state++;
      if (pattern.state < pattern.text.size()) continue;
      if (!stopped() || pattern.text.size() > matched().size()) matched_ = static_cast<int>(p);
      pattern.state = pattern.failure[pattern.state - 1];
    }
    if (stopped()) {
      held_.resize(held_.size() - matched().size());
      return std::exchange(held_, "");
    }
  }
  size_t hold = 0;
  for (const Pattern& pattern : patterns_) hold = std::max(hold, pattern.state);
  std::string out = held_.substr(0, held_.size() - hold);
  held_.erase(0, out.size());
  return out;
}

std::string StopMatcher::finish() { return std::exchange(held_, ""); }

}  // namespace dg
