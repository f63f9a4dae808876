// f32: plain floats.
#pragma once
#include <cstring>

#include "quant/format.h"

namespace dg {

static inline void f32_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  std::memcpy(out, w.data + (row * w.in + col) * 4, static_cast<size_t>(n) * 4);
}
void f32_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kF32;

}  // namespace dg
