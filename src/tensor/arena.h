// Arena: bump allocator for the activations of one device, reset each step and sized once at start, so the step loop
// never allocates. It does not own its memory. Engine thread only.
#pragma once
#include <cstddef>

#include "tensor/tensor.h"

namespace dg {

class Arena {
 public:
  Arena() = default;
  Arena(void* memory, size_t bytes) : memory_(static_cast<std::byte*>(memory)), capacity_(bytes) {}

  // Uninitialised memory, 64-byte aligned. Running out is a bug: the size comes from a dry run of the same forward.
  Tensor alloc(Dtype dtype, std::initializer_list<int64_t> shape) {
    Tensor t = Tensor::of(memory_ + used_, dtype, shape);
    size_t size = (t.bytes() + 63) / 64 * 64;
    CHECK(used_ + size <= capacity_) << "arena of " << capacity_ << " bytes: " << used_ << " in use, " << size << " more asked";
    used_ += size;
    if (used_ > peak_) peak_ = used_;
    return t;
  }
  Tensor alloc(std::initializer_list<int64_t> shape) { return alloc(Dtype::kF32, shape); }

  size_t mark() const { return used_; }
  void release(size_t mark) { used_ = mark; }
  size_t peak() const { return peak_; }
  size_t capacity() const { return capacity_; }

  // Releases at scope end what was allocated inside the scope.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
    ~Scope() { arena_.release(mark_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t mark_;
  };

 private:
  std::byte* memory_ = nullptr;
  size_t capacity_ = 0, used_ = 0, peak_ = 0;
};

}  // namespace dg
