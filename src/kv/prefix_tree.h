// PrefixTree: which cache blocks already hold the beginning of a prompt. A tree over token ids in whole blocks, one per salt;
// two salts never see each other's blocks. Engine thread only.
//
// A node is one full block, so its index is the block's id and the tree can never hold more nodes than there are blocks. All
// children of all nodes are in one hash table under (parent, token ids); a find compares the real ids, the hash only chooses the
// bucket, and its key is secret so that a client cannot choose prompts that collide.
//
// The tree holds one reference of every block it knows; a sequence that matches takes one more. A leaf without another holder
// can be evicted; which leaves those are is looked at when blocks are needed, because sequences release blocks without telling
// the tree. Leaves stand in order of last use by a counter, not by time: a replay evicts the same blocks.
#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kv/block_allocator.h"

namespace dg {

class PrefixTree {
 public:
  struct Match {
    std::vector<int32_t> blocks;  // retained for the caller: hand them to BlockTable::share() or release them
    int64_t tokens = 0;           // blocks.size() * block_tokens
  };

  PrefixTree(BlockAllocator& allocator, int block_tokens);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // The longest cached beginning of `ids` in whole blocks, at most `max_tokens` tokens. Marks its path as used now.
  Match match(std::string_view salt, std::span<const int32_t> ids, int64_t max_tokens);
  // How many tokens match() would find; retains and marks nothing.
  int64_t peek(std::string_view salt, std::span<const int32_t> ids, int64_t max_tokens) const;
  // `blocks` hold the cache of `ids`; the whole blocks among them that the tree lacks are added. Where it has another block
  // with the same tokens, that one stays.
  void insert(std::string_view salt, std::span<const int32_t> ids, std::span<const int32_t> blocks);

  // Frees `blocks` blocks that the tree alone holds, leaves first, the least recently used first; returns how many: fewer only
  // when there are no more, so BlockAllocator::cached_blocks() can be counted on. (A block that the tree alone holds can have a
  // child in use, if a sequence inserted behind another's block. When only such are left, the tree forgets children in use.)
  int64_t evict(int64_t blocks);
  // Drops every block that the tree alone holds.
  void clear();

  int64_t nodes() const { return node_count_; }
  uint64_t queries() const { return queries_; }  // tokens that match() was asked for
  uint64_t hits() const { return hits_; }        // tokens that it found
  uint64_t evicted() const { return evicted_; }  // blocks freed by evict()
  void check_integrity() const;

 private:
  struct Node {
    int32_t parent = 0;     // a node; negative: -1 - the id of a root
    int32_t children = -1;  // -1: this block is not in the tree
    int32_t next = -1;      // in the same bucket
    uint32_t bucket = 0;
    uint64_t last_used = 0;
  };
  struct Root {
    int32_t id = 0;
    int64_t children = 0;
  };
  using Roots = std::map<std::string, Root, std::less<>>;

  Node& node(int32_t block) { return nodes_[static_cast<size_t>(block)]; }
  const Node& node(int32_t block) const { return nodes_[static_cast<size_t>(block)]; }
  const int32_t* tokens_of(int32_t block) const { return tokens_.data() + static_cast<size_t>(block) * static_cast<size_t>(block_tokens_); }
  uint32_t bucket_of(int32_t parent, const int32_t* tokens) const;
  int32_t find_child(int32_t parent, const int32_t* tokens, uint32_t bucket) const;
  size_t whole_blocks(std::span<const int32_t> ids, int64_t max_tokens) const;
  int32_t root_of(std::string_view salt);
  void stamp(int32_t block, uint64_t tick);
  void link(int32_t block, int32_t parent, const int32_t* tokens, uint32_t bucket);
  void drop(int32_t block);
  int64_t free_alone(int64_t blocks);

  BlockAllocator& allocator_;
  const int block_tokens_;
  uint64_t secret_;
  std::vector<Node> nodes_;       // by block
  std::vector<int32_t> tokens_;   // (blocks, block_tokens)
  std::vector<int32_t> buckets_;  // first node of each, -1: none; a power of two
  Roots roots_;                   // only salts that have nodes
  std::vector<Roots::iterator> root_by_id_;
  std::vector<int32_t> free_roots_;
  std::set<std::pair<uint64_t, int32_t>> leaves_;  // (last_used, block)
  int64_t node_count_ = 0;
  uint64_t clock_ = 0, queries_ = 0, hits_ = 0, evicted_ = 0;
};

}  // namespace dg
