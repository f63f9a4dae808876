// HugeMemory: anonymous, zeroed memory for what is large and lives long (weights, KV blocks, arenas). From 2 MiB up it is
// aligned to 2 MiB and asks for huge pages: on a loaded machine they are worth a factor of two in read bandwidth. Pages
// appear when first touched, so a pinned thread that fills its share places it on its own memory node.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace dg {

struct MemoryInfo {
  int64_t total_bytes = 0;      // of the machine, or of the cgroup when that is less
  int64_t available_bytes = 0;  // what can still be allocated without swapping; page cache counts as free
  bool cgroup_limited = false;  // `available_bytes` comes from a container's limit
};
// Zeros when the system does not say. `root` is prepended to /proc and /sys paths.
MemoryInfo read_memory_info(const std::string& root = "");

std::string format_bytes(int64_t bytes);  // "1.5 GiB"

class HugeMemory {
 public:
  HugeMemory() = default;
  // At least `bytes` bytes (0 gives an empty block). Error (kResource): more than is available, or the system refuses;
  // it names the bytes, the purpose and what is free.
  static Result<HugeMemory> allocate(size_t bytes, const char* purpose);

  ~HugeMemory() { reset(); }
  HugeMemory(HugeMemory&& other) noexcept { swap(other); }
  HugeMemory& operator=(HugeMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void reset();
  void swap(HugeMemory& other) noexcept;

  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
};

}  // namespace dg
