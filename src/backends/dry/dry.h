// The dry backend: runs a model's forward and only counts. Memory is address space without pages; nothing is read.
#pragma once
#include <map>
#include <string>

#include "device/backend.h"
#include "device/cost.h"
#include "device/scratch.h"

namespace dg {

class DryBackend : public Backend {
 public:
  // Bytes of a matrix prepared for products (Backend::prepared_bytes), of the backend that is planned for.
  using PreparedBytes = int64_t (*)(const Format&, int64_t out, int64_t in);
  explicit DryBackend(PreparedBytes prepared = nullptr) : prepared_(prepared) {}

  const char* name() const override { return "dry"; }
  bool executes() const override { return false; }
  bool supports(const Format&) const override { return true; }
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override {
    return prepared_ ? prepared_(format, out, in) : 0;
  }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override;

  struct OpTotal {
    int64_t calls = 0;
    Cost cost;
  };
  const std::map<std::string, OpTotal>& by_op() const { return by_op_; }
  Cost total() const;
  void reset() { by_op_.clear(); }
  // Bytes asked for by purpose ("weights", "KV cache", ...).
  const std::map<std::string, int64_t>& allocated() const { return allocated_; }

#define DG_DRY_OP(method, Op) void method(const Op& op) override;
  DG_OPS(DG_DRY_OP)
#undef DG_DRY_OP

 private:
  template <class Op>
  void count(const char* name, const Op& op) {
    OpTotal& total = by_op_[name];
    total.calls++;
    total.cost += cost_of(op);
  }
  // Takes from the op's arena what an executing backend would, so that the arena's peak is the real one.
  static void touch_scratch(Arena* scratch, size_t bytes) {
    Arena::Scope scope(*scratch);
    if (bytes > 0) scratch->alloc({static_cast<int64_t>((bytes + 3) / 4)});
  }

  PreparedBytes prepared_;
  std::map<std::string, OpTotal> by_op_;
  std::map<std::string, int64_t> allocated_;
  uintptr_t next_address_ = uintptr_t{1} << 44;
};

}  // namespace dg
