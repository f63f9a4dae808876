// q8_0: 32 int8 with one f16 scale inside the pack; bit-compatible with GGUF's Q8_0.
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

struct Q80Pack {
  uint16_t scale;  // f16
  int8_t q[32];
};
static_assert(sizeof(Q80Pack) == 34);

static inline void q8_0_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* pack = reinterpret_cast<const Q80Pack*>(w.data + row * ((w.in + 31) / 32) * 34) + col / 32;
  for (; n > 0; n -= 32, out += 32, pack++) {
    const float scale = f16_to_float(pack->scale);
    if (n >= 32) {
      for (int i = 0; i < 32; i++) out[i] = scale * static_cast<float>(pack->q[i]);
    } else {
      for (int64_t i = 0; i < n; i++) out[i] = scale * static_cast<float>(pack->q[i]);
    }
  }
}
void q8_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ80;

}  // namespace dg
