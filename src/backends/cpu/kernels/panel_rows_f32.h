// Activations of the families that multiply bf16 and FP8 weights in f32.
#pragma once
#include <cstring>

#include "backends/cpu/kernels/panel_dot_common.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

typedef float PanelFloat;

// Per 16 columns, 16 tokens x 16 columns.
inline void pack_float_row(const float* x, int64_t in, int64_t padded, int64_t t, std::byte* to) {
  auto* out = reinterpret_cast<float*>(to) + t * 16;
  int64_t k = 0;
  for (; k + 16 <= in; k += 16) std::memcpy(out + k * 16, x + k, 64);
  for (; k < padded; k += 16)
    for (int64_t i = 0; i < 16; i++) out[k * 16 + i] = k + i < in ? x[k + i] : 0.0f;
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
