#include "kv/block_table.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "kv/block_pool.h"

namespace dg {

BlockTable::BlockTable(KvPool& pool) : BlockTable(pool.allocator(), pool.block_tokens()) {}

BlockTable::BlockTable(BlockAllocator& allocator, int block_tokens) : allocator_(&allocator), block_tokens_(block_tokens) {
  CHECK(block_tokens > 0);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : allocator_(other.allocator_), block_tokens_(other.block_tokens_), blocks_(std::exchange(other.blocks_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    clear();
    allocator_ = other.allocator_;
    block_tokens_ = other.block_tokens_;
    blocks_ = std::exchange(other.blocks_, {});
  }
  return *this;
}

int64_t BlockTable::blocks_for(int64_t tokens) const {
  tokens = std::max<int64_t>(tokens, 0);
  return tokens / block_tokens_ + (tokens % block_tokens_ != 0);
}

int64_t BlockTable::missing_blocks(int64_t tokens) const {
  return std::max<int64_t>(blocks_for(tokens) - static_cast<int64_t>(blocks_.size()), 0);
}

bool BlockTable::try_reserve(int64_t tokens) {
  int64_t missing = missing_blocks(tokens);
  if (missing > allocator_->free_blocks()) return false;
  for (; missing > 0; missing--) blocks_.push_back(allocator_->allocate());
  return true;
}

Result<void> BlockTable::reserve(int64_t tokens) {
  if (try_reserve(tokens)) return {};
  return resource_error(fmt::format("KV cache full: all {} blocks of {} tokens are in use; shorten the prompt or raise --max-model-len",
                                    allocator_->blocks(), block_tokens_));
}

void BlockTable::truncate(int64_t tokens) {
  auto keep = static_cast<size_t>(blocks_for(tokens));
  while (blocks_.size() > keep) {
    allocator_->release(blocks_.back());
    blocks_.pop_back();
  }
}

void BlockTable::share(std::span<const int32_t> blocks) {
  CHECK(blocks_.empty()) << "the table has " << blocks_.size() << " blocks";
  blocks_.assign(blocks.begin(), blocks.end());
}

}  // namespace dg
