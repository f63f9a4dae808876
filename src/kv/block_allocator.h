// BlockAllocator: who holds which block of the KV cache. Pure host accounting of block ids with reference counts; the bytes are
// KvPool's. A block is free (0 references), used (a sequence holds it) or cached (the prefix tree is its only holder, so it can
// be evicted). blocks() = free + used + cached at any time, each in O(1). Engine thread only.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace dg {

class BlockAllocator {
 public:
  explicit BlockAllocator(int64_t blocks);

  int32_t allocate();           // a block with one reference; -1 when none is free
  void retain(int32_t block);   // one more holder of a block that has one
  void release(int32_t block);  // one holder less; the block is free after the last
  int32_t refs(int32_t block) const { return refs_[index(block)]; }

  // Whether the prefix tree holds one of the references. A cached block cannot lose its last reference before it is unmarked.
  void set_cached(int32_t block, bool cached);
  bool cached(int32_t block) const { return cached_[index(block)] != 0; }

  int64_t blocks() const { return static_cast<int64_t>(refs_.size()); }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached_blocks() const { return cached_alone_; }
  int64_t used_blocks() const { return blocks() - free_blocks() - cached_blocks(); }

  // Aborts (CHECK) if a block is both free and held, twice free, or lost, or if a count is wrong.
  void check_integrity() const;

 private:
  size_t index(int32_t block) const;

  std::vector<int32_t> refs_;
  std::vector<uint8_t> cached_;
  std::vector<int32_t> free_;  // a stack: the block freed last is the likeliest in the processor's caches
  int64_t cached_alone_ = 0;   // cached and refs == 1
};

}  // namespace dg
