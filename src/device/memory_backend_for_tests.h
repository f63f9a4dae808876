// A backend that has memory and no ops, for tests of what only stores (KvPool, WeightStore). Tests only: needs GoogleTest.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "device/backend.h"

namespace dg {

class MemoryBackend : public Backend {
 public:
  const char* name() const override { return "memory"; }
  bool supports(const Format&) const override { return true; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char*) override {
    struct Block : DeviceMemory {
      explicit Block(size_t n) : storage(n + 63) {
        void* at = storage.data();
        size_t space = storage.size();
        data_ = std::align(64, n, at, space);
        bytes_ = n;
      }
      std::vector<std::byte> storage;
    };
    return std::unique_ptr<DeviceMemory>(std::make_unique<Block>(bytes));
  }
#define DG_UNUSED_OP(method, Op) \
  void method(const Op&) override { FAIL() << #method; }
  DG_OPS(DG_UNUSED_OP)
#undef DG_UNUSED_OP
};

}  // namespace dg
