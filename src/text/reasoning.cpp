// White space at the borders belongs to the markup: "<think>\n" loses one newline, newlines before </think> and after it
// are dropped, and white space before a <think> at the very start too. All other characters pass unchanged.
#include "text/reasoning.h"

namespace dg {
namespace {

constexpr std::string_view kOpen = "<think>", kClose = "</think>";

bool is_prefix(std::string_view text) { return kOpen.starts_with(text) || kClose.starts_with(text); }

}  // namespace

ReasoningSplitter::ReasoningSplitter(bool starts_in_reasoning) : reasoning_(starts_in_reasoning) {}

void ReasoningSplitter::emit(std::string_view text, std::vector<Piece>& out) const {
  if (text.empty()) return;
  if (!out.empty() && out.back().reasoning == reasoning_) out.back().text += text;
  else out.push_back({reasoning_, std::string(text)});
}

void ReasoningSplitter::flush_space(std::vector<Piece>& out) {
  std::string_view space = space_;
  if (section_empty_ && reasoning_ && space.starts_with('\n')) space.remove_prefix(1);
  if (section_empty_ && !reasoning_ && after_reasoning_)
    while (space.starts_with('\n')) space.remove_prefix(1);
  emit(space, out);
  space_.clear();
}

// One character that belongs to no tag.
void ReasoningSplitter::put(char c, std::vector<Piece>& out) {
  // Newlines in reasoning may precede </think>; white space at the start of content may precede <think>.
  bool held = reasoning_ ? c == '\n' : section_empty_ && (c == '\n' || c == ' ' || c == '\t' || c == '\r');
  if (held) {
    space_ += c;
    return;
  }
  flush_space(out);
  section_empty_ = false;
  emit(std::string_view(&c, 1), out);
}

void ReasoningSplitter::feed(char c, std::vector<Piece>& out) {
  tag_ += c;
  while (!tag_.empty() && !is_prefix(tag_)) {  // the first character is no tag: let it go, the rest may be one
    put(tag_[0], out);
    tag_.erase(0, 1);
  }
  if (tag_ == kOpen || tag_ == kClose) {
    bool opens = tag_ == kOpen;
    tag_.clear();
    if (opens == reasoning_) {  // inside already: <think> again at the start, or a stray tag
      if (opens && section_empty_) space_.clear();
      return;
    }
    if (!opens) space_.clear();
    else if (section_empty_) space_.clear();
    else flush_space(out);
    after_reasoning_ = !opens;
    reasoning_ = opens;
    section_empty_ = true;
  }
}

std::vector<ReasoningSplitter::Piece> ReasoningSplitter::push(std::string_view text) {
  std::vector<Piece> out;
  for (char c : text) feed(c, out);
  return out;
}

std::vector<ReasoningSplitter::Piece> ReasoningSplitter::finish() {
  std::vector<Piece> out;
  std::string rest = std::move(tag_);
  tag_.clear();
  for (char c : rest) put(c, out);
  flush_space(out);
  return out;
}

}  // namespace dg
