// fp8_channel: E4M3 elements with one float scale per output channel (row), as float-quantized compressed-tensors have them.
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

static inline void fp8_channel_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + row * w.in + col;
  const float scale = reinterpret_cast<const float*>(w.scales)[row];
  for (int64_t i = 0; i < n; i++) out[i] = e4m3_to_float(p[i]) * scale;
}
void fp8_channel_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kFp8Channel;

}  // namespace dg
