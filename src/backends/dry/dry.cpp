#include "backends/dry/dry.h"

namespace dg {
namespace {
struct AddressSpace : DeviceMemory {
  AddressSpace(uintptr_t address, size_t size) {
    data_ = reinterpret_cast<void*>(address);
    bytes_ = size;
  }
};
}  // namespace

Result<std::unique_ptr<DeviceMemory>> DryBackend::allocate(size_t bytes, const char* purpose) {
  uintptr_t address = next_address_;
  next_address_ += (bytes + 4095) / 4096 * 4096 + 4096;
  allocated_[purpose] += static_cast<int64_t>(bytes);
  return std::unique_ptr<DeviceMemory>(std::make_unique<AddressSpace>(address, bytes));
}

Cost DryBackend::total() const {
  Cost sum;
  for (const auto& [name, op] : by_op_) sum += op.cost;
  return sum;
}

namespace {
struct ScratchNeed {
  Arena* arena = nullptr;
  size_t bytes = 0;
};
template <class Op>
ScratchNeed scratch_of(const Op&) {
  return {};
}
ScratchNeed scratch_of(const LinearGlu& op) { return {op.scratch, linear_glu_scratch_bytes(op)}; }
ScratchNeed scratch_of(const Attention& op) { return {op.scratch, attention_scratch_bytes(op)}; }
ScratchNeed scratch_of(const MlaAttention& op) { return {op.scratch, mla_attention_scratch_bytes(op)}; }
ScratchNeed scratch_of(const MoeExperts& op) { return {op.scratch, moe_experts_scratch_bytes(op)}; }
}  // namespace

#define DG_DRY_OP(method, Op)                              \
  void DryBackend::method(const Op& op) {                  \
    count(#method, op);                                    \
    auto need = scratch_of(op);                            \
    if (need.arena) touch_scratch(need.arena, need.bytes); \
  }
DG_OPS(DG_DRY_OP)
#undef DG_DRY_OP

}  // namespace dg
