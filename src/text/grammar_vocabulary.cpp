#include "text/grammar_vocabulary.h"

#include <algorithm>

#include "text/tokenizer.h"

namespace dg::grammar {

namespace {
constexpr size_t kMaxTokenBytes = 4096;  // longer tokens are never allowed inside a grammar: none exist in practice
}

Vocabulary::Vocabulary(const Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> stop_ids)
    : size_(std::max<int64_t>(vocab, 0)), stop_ids_(std::move(stop_ids)) {
  std::erase_if(stop_ids_, [&](int32_t id) { return id < 0 || id >= size_; });
  std::sort(stop_ids_.begin(), stop_ids_.end());
  const auto known = std::min<int64_t>(size_, tokenizer.vocab_size());
  kinds_.assign(static_cast<size_t>(size_), kAbsent);
  begin_.assign(static_cast<size_t>(size_) + 1, 0);
  for (int32_t id = 0; id < known; id++) {
    const bool added = tokenizer.is_added(id) || tokenizer.is_special(id);
    const std::string_view bytes = added ? tokenizer.content(id) : tokenizer.token_bytes(id);
    begin_[static_cast<size_t>(id)] = bytes_.size();
    if (!bytes.empty()) kinds_[static_cast<size_t>(id)] = added ? kAdded : kNormal;
    bytes_ += bytes;
  }
  std::fill(begin_.begin() + known, begin_.end(), bytes_.size());
  build_trie();
}

bool Vocabulary::is_stop(int32_t id) const { return std::binary_search(stop_ids_.begin(), stop_ids_.end(), id); }

void Vocabulary::build_trie() {
  for (int32_t id = 0; id < size_; id++) {
    const auto kind = kinds_[static_cast<size_t>(id)];
    if (kind != kNormal || bytes(id).size() > kMaxTokenBytes || is_stop(id)) continue;
    token_ids_.push_back(id);
    reach_ = std::max(reach_, static_cast<uint32_t>(bytes(id).size()) + 1);
  }
  std::sort(token_ids_.begin(), token_ids_.end(), [&](int32_t a, int32_t b) {
    const int order = bytes(a).compare(bytes(b));
    return order != 0 ? order < 0 : a < b;
  });
  std::vector<uint32_t> path{0};  // nodes from the root to the previous token
  trie_.push_back({0, 0, 0, 0});
  std::string_view previous;
  for (size_t i = 0; i < token_ids_.size(); i++) {
    const std::string_view text = bytes(token_ids_[i]);
    size_t shared = 0;
    while (shared < text.size() && shared < previous.size() && text[shared] == previous[shared]) shared++;
    for (; path.size() > shared + 1; path.pop_back()) trie_[path.back()].end = static_cast<uint32_t>(trie_.size());
    for (size_t at = shared; at < text.size(); at++) {
      path.push_back(static_cast<uint32_t>(trie_.size()));
      trie_.push_back({0, static_cast<uint32_t>(i), static_cast<uint16_t>(at + 1), static_cast<uint8_t>(text[at])});
    }
    previous = text;
  }
  for (uint32_t node : path) trie_[node].end = static_cast<uint32_t>(trie_.size());
  trie_.push_back({0, static_cast<uint32_t>(token_ids_.size()), 0, 0});
}

}  // namespace dg::grammar
