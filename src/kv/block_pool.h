// KvPool: the paged KV cache of one device. A model registers the parts it caches (per layer: K and V, or the MLA latent);
// a block holds `block_tokens` tokens of every part. The pool knows bytes, not models. Block ids are shared by all parts; its
// BlockAllocator says who holds them. Engine thread only.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device/backend.h"
#include "kv/block_allocator.h"
#include "kv/block_table.h"

namespace dg {

// What a model caches per token; filled by Model::register_cache.
class CacheLayout {
 public:
  // A part of `width` elements per token; returns its index. Shape in the pool: (blocks, block_tokens, width), rows as
  // device/cache_format.h lays them out.
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
  Dtype dtype = Dtype::kBf16;  // f32 | bf16 | f16 | fp8 (E4M3) | int8
  int block_tokens = 16;
  int64_t blocks = 0;
  bool padding_block = false;  // one block more, with id `blocks`, that no sequence ever gets: rows that fill up a batch write there
};

class KvPool {
 public:
  static Result<std::unique_ptr<KvPool>> create(Backend& backend, const CacheLayout& layout, const KvPoolOptions& options);

  const PagedCache& part(int index) const { return caches_[static_cast<size_t>(index)]; }
  int part_count() const { return static_cast<int>(caches_.size()); }
  int block_tokens() const { return options_.block_tokens; }
  int64_t blocks() const { return options_.blocks; }
  int64_t free_blocks() const { return allocator_->free_blocks(); }
  int64_t bytes() const { return bytes_; }

  BlockAllocator& allocator() { return *allocator_; }
  // Aborts (CHECK) if a block is both free and held, twice free, or lost.
  void check_integrity() const { allocator_->check_integrity(); }

 private:
  KvPool() = default;

  KvPoolOptions options_;
  int64_t bytes_ = 0;
  std::unique_ptr<DeviceMemory> memory_;
  std::vector<PagedCache> caches_;
  std::unique_ptr<BlockAllocator> allocator_;
};

}  // namespace dg
