#include "text/tokenizer_added.h"

#include <algorithm>

#include "text/unicode.h"

namespace dg {
namespace {

char32_t code_before(std::string_view text, size_t at, size_t& begin) {  // at > 0
  begin = at - 1;
  while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) begin--;
  return unicode::decode(text.data() + begin, text.data() + text.size()).code;
}

bool is_word_joined(char32_t c) { return unicode::is_word(c) || c == 0x200c || c == 0x200d; }  // \w of Rust's regex crate

}  // namespace

void AddedTokenMatcher::add(const AddedToken& token, std::string_view pattern) {
  if (pattern.empty()) return;
  uint32_t node = 0;
  for (char c : pattern) {
    const auto byte = static_cast<unsigned char>(c);
    auto& children = nodes_[node].children;
    auto it = std::lower_bound(children.begin(), children.end(), byte, [](const auto& child, unsigned char b) { return child.first < b; });
    if (it != children.end() && it->first == byte) {
      node = it->second;
      continue;
    }
    const auto created = static_cast<uint32_t>(nodes_.size());
    children.insert(it, {byte, created});
    if (node == 0) first_[byte] = created;
    nodes_.emplace_back();
    node = created;
  }
  if (nodes_[node].entry >= 0) return;  // two tokens with one pattern: the first one wins
  nodes_[node].entry = static_cast<int32_t>(entries_.size());
  entries_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
}

const AddedTokenMatcher::Entry* AddedTokenMatcher::longest_match(std::string_view text, size_t at, size_t& end) const {
  const Entry* best = nullptr;
  uint32_t node = first_[static_cast<unsigned char>(text[at])];
  for (at++; node != 0; at++) {
    if (nodes_[node].entry >= 0) {
      best = &entries_[static_cast<size_t>(nodes_[node].entry)];
      end = at;
    }
    if (at >= text.size()) break;
    const auto byte = static_cast<unsigned char>(text[at]);
    const auto& children = nodes_[node].children;
    auto it = std::lower_bound(children.begin(), children.end(), byte, [](const auto& child, unsigned char b) { return child.first < b; });
    node = it != children.end() && it->first == byte ? it->second : 0;
  }
  return best;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<Span>& spans) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !entries_.empty();) {
    if (first_[static_cast<unsigned char>(text[at])] == 0) {
      at++;
      continue;
    }
    size_t end = 0;
    const Entry* entry = longest_match(text, at, end);
    if (entry == nullptr) {
      at++;
      continue;
    }
    size_t begin = at;
    at = end;  // the search goes on behind the token whether it counts or not
    if (entry->single_word) {
      size_t unused;
      if (begin > 0 && is_word_joined(code_before(text, begin, unused))) continue;
      if (end < text.size() && is_word_joined(unicode::decode(text.data() + end, text.data() + text.size()).code)) continue;
    }
    while (entry->lstrip && begin > done) {
      size_t previous;
      if (!unicode::is_white_space(code_before(text, begin, previous))) break;
      begin = previous;
    }
    begin = std::max(begin, done);  // the token before may have taken these blanks
    while (entry->rstrip && end < text.size()) {
      unicode::Decoded d = unicode::decode(text.data() + end, text.data() + text.size());
      if (!unicode::is_white_space(d.code)) break;
      end += d.bytes;
    }
    if (begin > done) spans.push_back({done, begin, -1});
    spans.push_back({begin, end, entry->id});
    done = std::max(done, end);
  }
  if (done < text.size()) spans.push_back({done, text.size(), -1});
}

}  // namespace dg
