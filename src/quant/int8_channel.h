// int8: symmetric int8 with one float scale per output channel (row), the layout of W8A8 checkpoints.
#pragma once
#include "quant/format.h"

namespace dg {

static inline void int8_channel_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* q = reinterpret_cast<const int8_t*>(w.data) + row * w.in + col;
  const float scale = reinterpret_cast<const float*>(w.scales)[row];
  for (int64_t i = 0; i < n; i++) out[i] = scale * static_cast<float>(q[i]);
}
void int8_channel_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kInt8Channel;

}  // namespace dg
