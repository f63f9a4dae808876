// KvPool: the paged KV cache of one device. A model registers the parts it caches (per layer: K and V, or the MLA latent);
// a block holds `block_tokens` tokens of every part. The pool knows bytes, not models. Block ids are shared by all parts.
// Engine thread only.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device/backend.h"

namespace dg {

// What a model caches per token; filled by Model::register_cache.
class CacheLayout {
 public:
  // A part of `width` elements per token; returns its index. Shape in the pool: (blocks, block_tokens, width).
  int add(std::string name, int64_t width);

  struct Part {
    std::string name;
    int64_t width;
  };
  const std::vector<Part>& parts() const { return parts_; }
  int64_t bytes_per_token(Dtype dtype) const;

 private:
  std::vector<Part> parts_;
};

struct KvPoolOptions {
  Dtype dtype = Dtype::kBf16;  // f32 | bf16 | f16
  int block_tokens = 16;
  int64_t blocks = 0;
};

class KvPool {
 public:
  static Result<std::unique_ptr<KvPool>> create(Backend& backend, const CacheLayout& layout, const KvPoolOptions& options);

  const PagedCache& part(int index) const { return caches_[static_cast<size_t>(index)]; }
  int part_count() const { return static_cast<int>(caches_.size()); }
  int block_tokens() const { return options_.block_tokens; }
  int64_t blocks() const { return options_.blocks; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t bytes() const { return bytes_; }

  // A free block, or an error saying how many there are and what to change.
  Result<int32_t> allocate();
  void free(int32_t block);
  // Aborts (CHECK) if a block is both free and in use, twice free, or lost.
  void check_integrity() const;

 private:
  KvPool() = default;

  KvPoolOptions options_;
  int64_t bytes_ = 0;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<PagedCache> caches_;
  std::vector<int32_t> free_;
  std::vector<bool> used_;
};

// The blocks of one sequence, in order. Frees them when destroyed.
class BlockTable {
 public:
  explicit BlockTable(KvPool& pool) : pool_(&pool) {}
  ~BlockTable() { clear(); }
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  Result<void> reserve(int64_t tokens);  // room for that many tokens in all
  void truncate(int64_t tokens);         // gives back the blocks beyond
  void clear() { truncate(0); }
  int32_t slot(int64_t position) const {
    return blocks_[static_cast<size_t>(position / pool_->block_tokens())] * pool_->block_tokens() +
           static_cast<int32_t>(position % pool_->block_tokens());
  }
  const std::vector<int32_t>& blocks() const { return blocks_; }

 private:
  KvPool* pool_;
  std::vector<int32_t> blocks_;
};

}  // namespace dg
