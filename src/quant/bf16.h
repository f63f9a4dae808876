// bf16: the upper half of a float, as DeepSeek publishes norms, embeddings and unquantised weights.
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

static inline void bf16_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* p = reinterpret_cast<const uint16_t*>(w.data) + row * w.in + col;
  for (int64_t i = 0; i < n; i++) out[i] = bf16_to_float(p[i]);
}
void bf16_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kBf16;

}  // namespace dg
