// What one op costs: bytes that must move and floating-point operations, from its shapes alone (no data is read). The dry
// backend, `plan`, the profiler and the benchmarks' rooflines all use these figures.
#pragma once
#include "device/ops.h"

namespace dg {

struct Cost {
  double weight_bytes = 0;      // weights read once per step
  double kv_bytes = 0;          // cache rows read and written
  double activation_bytes = 0;  // inputs read and outputs written once
  double flops = 0;             // multiply and add count as two

  double bytes() const { return weight_bytes + kv_bytes + activation_bytes; }
  Cost& operator+=(const Cost& o) {
    weight_bytes += o.weight_bytes;
    kv_bytes += o.kv_bytes;
    activation_bytes += o.activation_bytes;
    flops += o.flops;
    return *this;
  }
};

// Experts of `experts` expected to be used by at least one of `tokens` tokens that choose `top_k` each, uniformly.
double expected_active_experts(double experts, double top_k, double tokens);

#define DG_DECLARE_COST(method, Op) Cost cost_of(const Op& op);
DG_OPS(DG_DECLARE_COST)
#undef DG_DECLARE_COST

}  // namespace dg
