#include "kv/block_allocator.h"

#include <limits>

#include "base/check.h"

namespace dg {

BlockAllocator::BlockAllocator(int64_t blocks) {
  CHECK(blocks >= 0 && blocks <= std::numeric_limits<int32_t>::max()) << blocks << " blocks";
  refs_.resize(static_cast<size_t>(blocks));
  cached_.resize(static_cast<size_t>(blocks));
  free_.reserve(static_cast<size_t>(blocks));
  for (int64_t block = blocks; block-- > 0;) free_.push_back(static_cast<int32_t>(block));
}

size_t BlockAllocator::index(int32_t block) const {
  CHECK(block >= 0 && block < blocks()) << "block " << block << " of " << blocks();
  return static_cast<size_t>(block);
}

int32_t BlockAllocator::allocate() {
  if (free_.empty()) return -1;
  int32_t block = free_.back();
  free_.pop_back();
  refs_[static_cast<size_t>(block)] = 1;
  return block;
}

void BlockAllocator::retain(int32_t block) {
  size_t i = index(block);
  CHECK(refs_[i] > 0 && refs_[i] < std::numeric_limits<int32_t>::max()) << "block " << block << " has " << refs_[i] << " holders";
  if (cached_[i] && refs_[i] == 1) cached_alone_--;
  refs_[i]++;
}

void BlockAllocator::release(int32_t block) {
  size_t i = index(block);
  CHECK(refs_[i] > 0) << "block " << block << " is free already";
  CHECK(refs_[i] > 1 || !cached_[i]) << "block " << block << " is still in the prefix tree";
  if (--refs_[i] == 0) free_.push_back(block);
  else if (cached_[i] && refs_[i] == 1) cached_alone_++;
}

void BlockAllocator::set_cached(int32_t block, bool cached) {
  size_t i = index(block);
  CHECK(refs_[i] > 0) << "block " << block << " is free";
  CHECK((cached_[i] != 0) != cached) << "block " << block << (cached ? " is in the prefix tree twice" : " is not in the prefix tree");
  cached_[i] = cached;
  if (refs_[i] == 1) cached_alone_ += cached ? 1 : -1;
}

void BlockAllocator::check_integrity() const {
  std::vector<uint8_t> seen(refs_.size());
  for (int32_t block : free_) {
    size_t i = index(block);
    CHECK(!seen[i]) << "block " << block << " is free twice";
    CHECK(refs_[i] == 0) << "block " << block << " is free with " << refs_[i] << " holders";
    seen[i] = 1;
  }
  int64_t alone = 0;
  for (size_t i = 0; i < refs_.size(); i++) {
    CHECK(refs_[i] >= 0 && (refs_[i] > 0) == !seen[i]) << "block " << i << " is lost";
    CHECK(refs_[i] > 0 || !cached_[i]) << "block " << i << " is cached and free";
    alone += cached_[i] && refs_[i] == 1;
  }
  CHECK(alone == cached_alone_) << alone << " blocks are held by the tree alone, the count says " << cached_alone_;
}

}  // namespace dg
