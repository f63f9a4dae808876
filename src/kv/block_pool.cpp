#include "kv/block_pool.h"

#include "device/cache_format.h"

namespace dg {

int CacheLayout::add(std::string name, int64_t width) {
  parts_.push_back({std::move(name), width});
  return static_cast<int>(parts_.size()) - 1;
}

int64_t CacheLayout::bytes_per_token(Dtype dtype) const {
  int64_t bytes = 0;
  for (const Part& part : parts_) bytes += cache_row_bytes(dtype, part.width);
  return bytes;
}

Result<std::unique_ptr<KvPool>> KvPool::create(Backend& backend, const CacheLayout& layout, const KvPoolOptions& options) {
  CHECK(options.block_tokens > 0 && options.blocks > 0 && is_cache_dtype(options.dtype));
  auto pool = std::unique_ptr<KvPool>(new KvPool);
  pool->options_ = options;
  const int64_t blocks = options.blocks + (options.padding_block ? 1 : 0);
  auto part_bytes = [&](const CacheLayout::Part& part) {
    int64_t bytes = blocks * options.block_tokens * cache_row_bytes(options.dtype, part.width);
    return (bytes + 63) / 64 * 64;
  };
  for (const auto& part : layout.parts()) pool->bytes_ += part_bytes(part);
  DG_ASSIGN(pool->memory_, backend.allocate(static_cast<size_t>(pool->bytes_), "KV cache"));
  auto* at = static_cast<std::byte*>(pool->memory_->data());
  for (const auto& part : layout.parts()) {
    Tensor rows = Tensor::of(at, options.dtype, {blocks, options.block_tokens, part.width});
    rows.stride[1] = cache_row_bytes(options.dtype, part.width) / static_cast<int64_t>(dtype_bytes(options.dtype));
    rows.stride[0] = options.block_tokens * rows.stride[1];
    pool->caches_.push_back({rows});
    at += part_bytes(part);
  }
  pool->allocator_ = std::make_unique<BlockAllocator>(options.blocks);
  return pool;
}

}  // namespace dg
