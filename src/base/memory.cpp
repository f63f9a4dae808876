#include "base/memory.h"

#include <fmt/core.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/cgroup.h"

namespace dg {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

int64_t meminfo_bytes(const std::string& text, const char* key) {
  size_t at = text.find(key);
  return at == std::string::npos ? 0 : std::atoll(text.c_str() + at + std::strlen(key)) << 10;
}

}  // namespace

MemoryInfo read_memory_info(const std::string& root) {
  MemoryInfo info;
  const std::string text = read_system_file(root + "/proc/meminfo");
  info.total_bytes = meminfo_bytes(text, "MemTotal:");
  info.available_bytes = meminfo_bytes(text, "MemAvailable:");
  CgroupLimits limits = read_cgroup_limits(root);
  if (limits.memory_bytes >= 0 && (info.total_bytes == 0 || limits.memory_bytes < info.total_bytes)) info.total_bytes = limits.memory_bytes;
  if (limits.memory_free_bytes >= 0 && (info.available_bytes == 0 || limits.memory_free_bytes < info.available_bytes)) {
    info.available_bytes = limits.memory_free_bytes;
    info.cgroup_limited = true;
  }
  return info;
}

std::string format_bytes(int64_t bytes) {
  const char* units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
  double v = static_cast<double>(bytes);
  int unit = 0;
  while (v >= 1024 && unit < 4) v /= 1024, unit++;
  return unit == 0 ? fmt::format("{} bytes", bytes) : fmt::format("{:.1f} {}", v, units[unit]);
}

Result<HugeMemory> HugeMemory::allocate(size_t bytes, const char* purpose) {
  HugeMemory memory;
  if (bytes == 0) return memory;
  MemoryInfo info;
  auto refuse = [&](const char* reason) {
    return resource_error(fmt::format("no memory for {}: {} needed, {} available{} of {} ({}); free memory or choose a smaller size",
                                      purpose, format_bytes(static_cast<int64_t>(bytes)), format_bytes(info.available_bytes),
                                      info.cgroup_limited ? " within the container's limit" : "", format_bytes(info.total_bytes), reason));
  };
  if (bytes > size_t{1} << 46) {  // 64 TiB: a wrong size, and rounding up must not overflow
    info = read_memory_info();
    bytes = std::min(bytes, size_t{1} << 62);
    return refuse("absurd size");
  }
  const bool huge = bytes >= kHugePage;
  if (huge) {  // the kernel promises memory it does not have and kills the process later: ask first
    info = read_memory_info();
    if (info.available_bytes > 0 && bytes > static_cast<size_t>(info.available_bytes)) return refuse("more than is free");
  }
  size_t rounded = (bytes + 4095) / 4096 * 4096;
  size_t mapping_bytes = huge ? rounded + kHugePage : rounded;
  void* mapping = mmap(nullptr, mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    int code = errno;
    info = read_memory_info();
    return refuse(std::strerror(code));
  }
  memory.mapping_ = mapping;
  memory.mapping_bytes_ = mapping_bytes;
  memory.bytes_ = bytes;
  auto address = reinterpret_cast<uintptr_t>(mapping);
  if (huge) {
    address = (address + kHugePage - 1) / kHugePage * kHugePage;
    madvise(reinterpret_cast<void*>(address), rounded, MADV_HUGEPAGE);  // refused on kernels without huge pages: no harm
  }
  memory.data_ = reinterpret_cast<std::byte*>(address);
  return memory;
}

void HugeMemory::reset() {
  if (mapping_) munmap(mapping_, mapping_bytes_);
  mapping_ = nullptr, data_ = nullptr, bytes_ = mapping_bytes_ = 0;
}

void HugeMemory::swap(HugeMemory& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_bytes_, other.mapping_bytes_);
}

}  // namespace dg
