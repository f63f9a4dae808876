#include "shared_heap.h"

#if DG_SHARED_HEAP
#include <dlfcn.h>
#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>

#include "base/check.h"

namespace {

constexpr size_t kRegionBytes = size_t{3} << 30;

// Blocks of powers of two, 64-byte aligned, behind a line that holds the power; freed ones are kept by power.
class Heap {
 public:
  static Heap& get() {
    static Heap heap;
    return heap;
  }
  bool active() const { return region_ != nullptr; }
  bool owns(const void* p) const { return p >= region_ && p < region_ + kRegionBytes; }
  void* allocate(size_t bytes) {
    const int power = std::bit_width(std::max<size_t>(bytes, 64) - 1);
    std::lock_guard lock(mutex_);
    if (Free* block = free_[power]) {
      free_[power] = block->next;
      return block;
    }
    const size_t total = 64 + (size_t{1} << power);
    if (used_ + total > kRegionBytes) return nullptr;
    char* at = region_ + used_;
    used_ += total;
    *reinterpret_cast<int*>(at) = power;
    return at + 64;
  }
  void release(void* p) {
    const int power = *reinterpret_cast<int*>(static_cast<char*>(p) - 64);
    std::lock_guard lock(mutex_);
    auto* block = static_cast<Free*>(p);
    block->next = free_[power];
    free_[power] = block;
  }
  char* region() const { return region_; }

 private:
  struct Free {
    Free* next;
  };
  Heap() {
    if (!std::getenv("DG_TEST_BACKEND")) return;
    void* p = ::mmap(nullptr, kRegionBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p != MAP_FAILED) region_ = static_cast<char*>(p);
  }
  char* region_ = nullptr;
  size_t used_ = 0;
  Free* free_[64] = {};
  std::mutex mutex_;
};

void* take(size_t bytes) {
  Heap& heap = Heap::get();
  void* p = heap.active() ? heap.allocate(bytes) : std::malloc(bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  return p;
}

void give(void* p) {
  if (Heap::get().owns(p)) Heap::get().release(p);
  else std::free(p);
}

}  // namespace

void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void operator delete(void* p) noexcept { give(p); }
void operator delete[](void* p) noexcept { give(p); }
void operator delete(void* p, size_t) noexcept { give(p); }
void operator delete[](void* p, size_t) noexcept { give(p); }

namespace dg::ops_table {

void share_heap_with_device() {
  CHECK(Heap::get().active());
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW);
  CHECK(driver) << ::dlerror();
  using Register = int (*)(void*, size_t, unsigned);
  auto register_memory = reinterpret_cast<Register>(::dlsym(driver, "cuMemHostRegister_v2"));
  CHECK(register_memory) << "cuMemHostRegister_v2";
  constexpr unsigned kPortable = 1, kDeviceMap = 2;
  const int status = register_memory(Heap::get().region(), kRegionBytes, kPortable | kDeviceMap);
  CHECK(status == 0) << "cuMemHostRegister: error " << status;
}

}  // namespace dg::ops_table
#else

#include "base/check.h"

// Where no plug-in is built, operator new stays what it is: sanitizers bring their own.
void dg::ops_table::share_heap_with_device() { CHECK(false) << "these tests were built without a plug-in to test"; }
#endif
