#include "kv/block_pool.h"

#include <fmt/core.h>

namespace dg {

int CacheLayout::add(std::string name, int64_t width) {
  parts_.push_back({std::move(name), width});
  return static_cast<int>(parts_.size()) - 1;
}

int64_t CacheLayout::bytes_per_token(Dtype dtype) const {
  int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.width * static_cast<int64_t>(dtype_bytes(dtype));
  return bytes;
}

Result<std::unique_ptr<KvPool>> KvPool::create(Backend& backend, const CacheLayout& layout, const KvPoolOptions& options) {
  CHECK(options.block_tokens > 0 && options.blocks > 0);
  auto pool = std::unique_ptr<KvPool>(new KvPool);
  pool->options_ = options;
  auto part_bytes = [&](const CacheLayout::Part& part) {
    int64_t bytes = options.blocks * options.block_tokens * part.width * static_cast<int64_t>(dtype_bytes(options.dtype));
    return (bytes + 63) / 64 * 64;
  };
  for (const auto& part : layout.parts()) pool->bytes_ += part_bytes(part);
  DG_ASSIGN(pool->memory_, backend.allocate(static_cast<size_t>(pool->bytes_), "KV cache"));
  auto* at = static_cast<std::byte*>(pool->memory_->data());
  for (const auto& part : layout.parts()) {
    pool->caches_.push_back({Tensor::of(at, options.dtype, {options.blocks, options.block_tokens, part.width})});
    at += part_bytes(part);
  }
  pool->used_.resize(static_cast<size_t>(options.blocks));
  for (int64_t b = options.blocks; b-- > 0;) pool->free_.push_back(static_cast<int32_t>(b));
  return pool;
}

Result<int32_t> KvPool::allocate() {
  if (free_.empty())
    return resource_error(fmt::format("KV cache full: all {} blocks of {} tokens are in use; shorten the prompt or raise --max-model-len",
                                      options_.blocks, options_.block_tokens));
  int32_t block = free_.back();
  free_.pop_back();
  used_[static_cast<size_t>(block)] = true;
  return block;
}

void KvPool::free(int32_t block) {
  CHECK(block >= 0 && block < options_.blocks && used_[static_cast<size_t>(block)]) << "block " << block;
  used_[static_cast<size_t>(block)] = false;
  free_.push_back(block);
}

void KvPool::check_integrity() const {
  std::vector<bool> seen(used_);
  for (int32_t block : free_) {
    CHECK(block >= 0 && block < options_.blocks && !seen[static_cast<size_t>(block)]) << "block " << block << " twice";
    seen[static_cast<size_t>(block)] = true;
  }
  for (size_t i = 0; i < seen.size(); i++) CHECK(seen[i]) << "block " << i << " lost";
}

Result<void> BlockTable::reserve(int64_t tokens) {
  int64_t need = (tokens + pool_->block_tokens() - 1) / pool_->block_tokens();
  while (static_cast<int64_t>(blocks_.size()) < need) {
    DG_ASSIGN(int32_t block, pool_->allocate());
    blocks_.push_back(block);
  }
  return {};
}

void BlockTable::truncate(int64_t tokens) {
  auto keep = static_cast<size_t>((tokens + pool_->block_tokens() - 1) / pool_->block_tokens());
  while (blocks_.size() > keep) {
    pool_->free(blocks_.back());
    blocks_.pop_back();
  }
}

}  // namespace dg
