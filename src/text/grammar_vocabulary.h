// The tokens of one model as masks and walks need them: their bytes, which of them are added (allowed only where a grammar
// writes them), and a trie over the rest, laid out so that one forward scan visits it and a dead subtree is one jump.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dg {
class Tokenizer;
}

namespace dg::grammar {

class Vocabulary {
 public:
  Vocabulary(const Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> stop_ids);

  int64_t size() const { return size_; }  // width of a row of logits
  size_t words() const { return static_cast<size_t>(size_ + 31) / 32; }
  bool known(int32_t id) const { return id >= 0 && id < size_ && kinds_[static_cast<size_t>(id)] != kAbsent; }
  bool added(int32_t id) const { return known(id) && kinds_[static_cast<size_t>(id)] == kAdded; }
  std::string_view bytes(int32_t id) const {  // an added token's content
    return {bytes_.data() + begin_[static_cast<size_t>(id)], begin_[static_cast<size_t>(id) + 1] - begin_[static_cast<size_t>(id)]};
  }
  const std::vector<int32_t>& stop_ids() const { return stop_ids_; }
  bool is_stop(int32_t id) const;
  uint32_t reach() const { return reach_; }  // more than the bytes of the longest token

  // The trie in preorder; node 0 is the root. The subtree of node i is [i, end(i)).
  struct TrieNode {
    uint32_t end;
    uint32_t tokens;  // first of its tokens in token_ids(); the next node's first ends them
    uint16_t depth;   // bytes from the root
    uint8_t byte;
  };
  std::span<const TrieNode> trie() const { return {trie_.data(), trie_.size() - 1}; }
  std::span<const int32_t> tokens_at(uint32_t node) const {
    return {token_ids_.data() + trie_[node].tokens, token_ids_.data() + trie_[node + 1].tokens};
  }

 private:
  enum Kind : uint8_t { kAbsent, kNormal, kAdded };
  void build_trie();
  int64_t size_;
  std::vector<int32_t> stop_ids_;
  std::string bytes_;
  std::vector<size_t> begin_;
  std::vector<Kind> kinds_;
  std::vector<TrieNode> trie_;
  std::vector<int32_t> token_ids_;  // in the order of their bytes
  uint32_t reach_ = 1;
};

}  // namespace dg::grammar
