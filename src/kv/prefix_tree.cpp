#include "kv/prefix_tree.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>

#include "base/check.h"

namespace dg {
namespace {

uint64_t mix_bits(uint64_t x) {  // MurmurHash3's finaliser
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccd;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53;
  return x ^ (x >> 33);
}

}  // namespace

PrefixTree::PrefixTree(BlockAllocator& allocator, int block_tokens) : allocator_(allocator), block_tokens_(block_tokens) {
  CHECK(block_tokens > 0);
  std::random_device random;
  secret_ = (uint64_t{random()} << 32) | random();
  auto blocks = static_cast<size_t>(allocator.blocks());
  nodes_.resize(blocks);
  tokens_.resize(blocks * static_cast<size_t>(block_tokens));
  buckets_.assign(std::bit_ceil(std::max<size_t>(blocks, 16)), -1);
}

PrefixTree::~PrefixTree() {
  for (size_t i = 0; i < nodes_.size(); i++) {
    if (nodes_[i].children < 0) continue;
    allocator_.set_cached(static_cast<int32_t>(i), false);
    allocator_.release(static_cast<int32_t>(i));
  }
}

uint32_t PrefixTree::bucket_of(int32_t parent, const int32_t* tokens) const {
  uint64_t hash = mix_bits(secret_ ^ static_cast<uint32_t>(parent));
  int i = 0;
  for (; i + 2 <= block_tokens_; i += 2) {
    uint64_t pair = (uint64_t{static_cast<uint32_t>(tokens[i])} << 32) | static_cast<uint32_t>(tokens[i + 1]);
    hash = mix_bits(hash ^ pair) + secret_;
  }
  if (i < block_tokens_) hash = mix_bits(hash ^ static_cast<uint32_t>(tokens[i]));
  return static_cast<uint32_t>(hash & (buckets_.size() - 1));
}

int32_t PrefixTree::find_child(int32_t parent, const int32_t* tokens, uint32_t bucket) const {
  for (int32_t block = buckets_[bucket]; block >= 0; block = node(block).next)
    if (node(block).parent == parent && std::memcmp(tokens_of(block), tokens, static_cast<size_t>(block_tokens_) * sizeof *tokens) == 0)
      return block;
  return -1;
}

size_t PrefixTree::whole_blocks(std::span<const int32_t> ids, int64_t max_tokens) const {
  return static_cast<size_t>(std::clamp<int64_t>(max_tokens, 0, static_cast<int64_t>(ids.size())) / block_tokens_);
}

int32_t PrefixTree::root_of(std::string_view salt) {
  auto at = roots_.find(salt);
  if (at == roots_.end()) {
    at = roots_.emplace(std::string(salt), Root{}).first;
    if (free_roots_.empty()) {
      free_roots_.push_back(static_cast<int32_t>(root_by_id_.size()));
      root_by_id_.emplace_back();
    }
    at->second.id = free_roots_.back();
    free_roots_.pop_back();
    root_by_id_[static_cast<size_t>(at->second.id)] = at;
  }
  return -1 - at->second.id;
}

// Marks a node of a path as used; the caller puts the last one of the path back among the leaves, if it is one.
void PrefixTree::stamp(int32_t block, uint64_t tick) {
  Node& n = node(block);
  if (n.children == 0) leaves_.erase({n.last_used, block});
  n.last_used = tick;
}

void PrefixTree::link(int32_t block, int32_t parent, const int32_t* tokens, uint32_t bucket) {
  allocator_.retain(block);
  allocator_.set_cached(block, true);
  node(block) = {.parent = parent, .children = 0, .next = buckets_[bucket], .bucket = bucket, .last_used = 0};
  buckets_[bucket] = block;
  std::copy_n(tokens, block_tokens_, tokens_.begin() + static_cast<std::ptrdiff_t>(block) * block_tokens_);
  if (parent >= 0) node(parent).children++;
  else root_by_id_[static_cast<size_t>(-1 - parent)]->second.children++;
  node_count_++;
}

PrefixTree::Match PrefixTree::match(std::string_view salt, std::span<const int32_t> ids, int64_t max_tokens) {
  Match found;
  queries_ += ids.size();
  auto root = roots_.find(salt);
  if (root == roots_.end()) return found;
  size_t most = whole_blocks(ids, max_tokens);
  int32_t at = -1 - root->second.id;
  uint64_t tick = ++clock_;
  for (size_t i = 0; i < most; i++) {
    const int32_t* tokens = ids.data() + i * static_cast<size_t>(block_tokens_);
    int32_t child = find_child(at, tokens, bucket_of(at, tokens));
    if (child < 0) break;
    at = child;
    stamp(at, tick);
    allocator_.retain(at);
    found.blocks.push_back(at);
  }
  if (at >= 0 && node(at).children == 0) leaves_.emplace(tick, at);
  found.tokens = static_cast<int64_t>(found.blocks.size()) * block_tokens_;
  hits_ += static_cast<uint64_t>(found.tokens);
  return found;
}

int64_t PrefixTree::peek(std::string_view salt, std::span<const int32_t> ids, int64_t max_tokens) const {
  auto root = roots_.find(salt);
  if (root == roots_.end()) return 0;
  size_t most = whole_blocks(ids, max_tokens), i = 0;
  int32_t at = -1 - root->second.id;
  for (; i < most; i++) {
    const int32_t* tokens = ids.data() + i * static_cast<size_t>(block_tokens_);
    at = find_child(at, tokens, bucket_of(at, tokens));
    if (at < 0) break;
  }
  return static_cast<int64_t>(i) * block_tokens_;
}

void PrefixTree::insert(std::string_view salt, std::span<const int32_t> ids, std::span<const int32_t> blocks) {
  size_t count = whole_blocks(ids, static_cast<int64_t>(ids.size()));
  CHECK(blocks.size() >= count) << blocks.size() << " blocks for " << ids.size() << " tokens";
  if (count == 0) return;
  int32_t at = root_of(salt);
  uint64_t tick = ++clock_;
  for (size_t i = 0; i < count; i++) {
    const int32_t* tokens = ids.data() + i * static_cast<size_t>(block_tokens_);
    uint32_t bucket = bucket_of(at, tokens);
    int32_t child = find_child(at, tokens, bucket);
    if (child < 0) {
      child = blocks[i];
      link(child, at, tokens, bucket);
    }
    at = child;
    stamp(at, tick);
  }
  if (node(at).children == 0) leaves_.emplace(tick, at);
}

// Takes a leaf out of the tree and gives its reference back, which frees the block unless a sequence uses it.
void PrefixTree::drop(int32_t block) {
  Node& n = node(block);
  CHECK(n.children == 0) << "block " << block << " has " << n.children << " children";
  leaves_.erase({n.last_used, block});
  int32_t* link_to = &buckets_[n.bucket];
  while (*link_to != block) link_to = &node(*link_to).next;
  *link_to = n.next;
  if (n.parent >= 0) {
    Node& parent = node(n.parent);
    if (--parent.children == 0) leaves_.emplace(parent.last_used, n.parent);
  } else {
    Roots::iterator root = root_by_id_[static_cast<size_t>(-1 - n.parent)];
    if (--root->second.children == 0) {
      free_roots_.push_back(root->second.id);
      roots_.erase(root);
    }
  }
  n.children = -1;
  node_count_--;
  allocator_.set_cached(block, false);
  allocator_.release(block);
}

int64_t PrefixTree::free_alone(int64_t blocks) {
  int64_t freed = 0;
  // A leaf in use is being used now: it goes to the end, so that the next call does not meet it first again.
  uint64_t before = clock_;
  while (freed < blocks && allocator_.cached_blocks() > 0 && !leaves_.empty() && leaves_.begin()->first <= before) {
    int32_t block = leaves_.begin()->second;
    if (allocator_.refs(block) == 1) {
      drop(block);
      freed++;
    } else {
      stamp(block, ++clock_);
      leaves_.emplace(node(block).last_used, block);
    }
  }
  while (freed < blocks && allocator_.cached_blocks() > 0) {
    CHECK(!leaves_.empty()) << allocator_.cached_blocks() << " cached blocks are not in the tree";
    int32_t block = leaves_.begin()->second;
    freed += allocator_.refs(block) == 1;
    drop(block);
  }
  return freed;
}

int64_t PrefixTree::evict(int64_t blocks) {
  int64_t freed = free_alone(blocks);
  evicted_ += static_cast<uint64_t>(freed);
  return freed;
}

void PrefixTree::clear() { free_alone(allocator_.blocks()); }

void PrefixTree::check_integrity() const {
  allocator_.check_integrity();
  std::vector<int32_t> children(nodes_.size());
  std::vector<int64_t> root_children(root_by_id_.size());
  int64_t linked = 0, leaves = 0;
  for (size_t i = 0; i < nodes_.size(); i++) {
    auto block = static_cast<int32_t>(i);
    const Node& n = nodes_[i];
    CHECK(allocator_.cached(block) == (n.children >= 0)) << "block " << block << ": tree and allocator disagree";
    if (n.children < 0) continue;
    linked++;
    CHECK(find_child(n.parent, tokens_of(block), bucket_of(n.parent, tokens_of(block))) == block) << "node " << block << " is not found";
    CHECK(n.last_used <= clock_);
    CHECK(leaves_.count({n.last_used, block}) == (n.children == 0)) << "node " << block;
    leaves += n.children == 0;
    if (n.parent >= 0) {
      CHECK(node(n.parent).children > 0) << "node " << block << " has lost its parent " << n.parent;
      children[static_cast<size_t>(n.parent)]++;
    } else {
      root_children[static_cast<size_t>(-1 - n.parent)]++;
    }
  }
  CHECK(linked == node_count_) << linked << " nodes, the count says " << node_count_;
  CHECK(leaves == static_cast<int64_t>(leaves_.size()));
  for (size_t i = 0; i < nodes_.size(); i++) CHECK(nodes_[i].children < 0 || nodes_[i].children == children[i]) << "node " << i;
  CHECK(roots_.size() + free_roots_.size() == root_by_id_.size());
  for (const auto& [salt, root] : roots_)
    CHECK(root.children > 0 && root.children == root_children[static_cast<size_t>(root.id)]) << "salt '" << salt << "'";
  // Every node reaches a root: taking leaves away, again and again, takes all of them (a cycle would stay).
  std::vector<int32_t> ready;
  for (const auto& [tick, block] : leaves_) ready.push_back(block);
  for (size_t i = 0; i < ready.size(); i++) {
    int32_t parent = node(ready[i]).parent;
    if (parent >= 0 && --children[static_cast<size_t>(parent)] == 0) ready.push_back(parent);
  }
  CHECK(static_cast<int64_t>(ready.size()) == linked) << "a cycle";
}

}  // namespace dg
