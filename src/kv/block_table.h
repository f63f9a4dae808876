// BlockTable: the blocks of one sequence, in order; releases them when destroyed. Engine thread only.
//
// A block with several holders is never written. That follows from one rule: only whole, full blocks are shared (share() here,
// PrefixTree::insert() there), so positions behind them fall into blocks of the sequence alone. A sequence that is truncated
// into a shared block must not write there again.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "kv/block_allocator.h"

namespace dg {

class KvPool;

class BlockTable {
 public:
  explicit BlockTable(KvPool& pool);
  BlockTable(BlockAllocator& allocator, int block_tokens);
  ~BlockTable() { clear(); }
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;

  // Room for that many tokens in all. Without enough free blocks nothing changes.
  Result<void> reserve(int64_t tokens);
  bool try_reserve(int64_t tokens);
  int64_t missing_blocks(int64_t tokens) const;  // how many blocks reserve() would have to allocate

  void truncate(int64_t tokens);  // gives back the blocks beyond
  void clear() { truncate(0); }
  // An empty table takes over whole, full blocks that were retained for it: the beginning of its sequence.
  void share(std::span<const int32_t> blocks);

  int32_t slot(int64_t position) const {
    return blocks_[static_cast<size_t>(position / block_tokens_)] * block_tokens_ + static_cast<int32_t>(position % block_tokens_);
  }
  const std::vector<int32_t>& blocks() const { return blocks_; }

 private:
  int64_t blocks_for(int64_t tokens) const;

  BlockAllocator* allocator_;
  int block_tokens_;
  std::vector<int32_t> blocks_;
};

}  // namespace dg
