// Masks: which tokens may follow a position. Where many bytes may follow (inside strings) the tokens that stay inside one
// rule do not depend on the stack: they are computed once per node ("node sets"), and only what leaves the rule is walked
// with the stack. Everything else is a short walk of the trie. Results are kept in caches bounded by bytes.
#pragma once
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "text/grammar_stack.h"
#include "text/grammar_vocabulary.h"

namespace dg::grammar {

using Mask = std::vector<uint32_t>;

// Values by 64-bit key; the least recently used leave when their bytes exceed the limit. Any thread.
template <class T>
class ByteCache {
 public:
  explicit ByteCache(size_t max_bytes) : max_bytes_(max_bytes) {}
  std::shared_ptr<T> find(uint64_t key) {
    std::lock_guard lock(mutex_);
    auto it = entries_.find(key);
    if (it == entries_.end()) return nullptr;
    order_.splice(order_.begin(), order_, it->second.place);
    return it->second.value;
  }
  void insert(uint64_t key, std::shared_ptr<T> value, size_t bytes) {
    std::lock_guard lock(mutex_);
    auto [it, fresh] = entries_.try_emplace(key);
    if (!fresh) return;  // another thread was first; equal keys have equal values
    order_.push_front(key);
    it->second = {std::move(value), bytes, order_.begin()};
    bytes_ += bytes;
    while (bytes_ > max_bytes_ && order_.size() > 1) {
      auto last = entries_.find(order_.back());
      bytes_ -= last->second.bytes;
      entries_.erase(last);
      order_.pop_back();
    }
  }

 private:
  struct Entry {
    std::shared_ptr<T> value;
    size_t bytes = 0;
    std::list<uint64_t>::iterator place;
  };
  std::mutex mutex_;
  size_t max_bytes_, bytes_ = 0;
  std::list<uint64_t> order_;
  std::unordered_map<uint64_t, Entry> entries_;
};

// What of the vocabulary stays inside the rule of one node, whatever the stack.
struct NodeSet {
  Mask accepted;
  // Inside strings: accepted tokens by the number of characters they begin, most first.
  std::vector<std::pair<uint32_t, int32_t>> characters;  // characters, token
  // Trie nodes at which the rule may end or call another, sorted by `node`.
  struct Exit {
    uint32_t node;  // of the automaton
    uint32_t trie;
    uint32_t characters;  // completed until here
  };
  std::vector<Exit> exits;
  size_t bytes() const { return accepted.size() * 4 + characters.size() * 8 + exits.size() * sizeof(Exit) + 64; }
};

using NodeSetCache = ByteCache<const NodeSet>;

class MaskBuilder {
 public:
  // `string_sets`: of the string rule's nodes, shared by all grammars of one vocabulary.
  MaskBuilder(const Automaton& automaton, const Vocabulary& vocabulary, NodeSetCache& string_sets, NodeSetCache& sets)
      : a_(automaton), v_(vocabulary), string_sets_(string_sets), sets_(sets), machine_(automaton, vocabulary.reach()) {}

  // Tokens that may follow; stop ids are left to the caller.
  void build(std::span<const Item> items, Mask& mask);

 private:
  std::shared_ptr<const NodeSet> node_set(uint32_t node);
  std::shared_ptr<const NodeSet> compute_node_set(uint32_t node);
  void add_wide(std::span<const Item> same, Mask& mask);
  // The tokens of the trie nodes [begin, end), which lie below depth `base`, from the position in levels_[0].
  void walk(uint32_t begin, uint32_t end, size_t base, Mask& mask);
  void set_tokens(uint32_t trie_node, Mask& mask);

  const Automaton& a_;
  const Vocabulary& v_;
  NodeSetCache& string_sets_;
  NodeSetCache& sets_;
  Machine machine_;
  std::vector<std::vector<Item>> levels_;
  std::vector<FrameArena::Mark> marks_;
};

}  // namespace dg::grammar
