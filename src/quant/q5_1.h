// q5_1: GGUF's Q5_1, blocks of 32 in 24 bytes: f16 d, f16 m, u32 fifth bits, 16 bytes of nibbles. value = d * q + m.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q5_1_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p), m = ggml_f16(p + 2);
  const uint32_t high = ggml_u32(p + 4);
  for (int j = 0; j < 16; j++) {
    const int low = (p[8 + j] & 15) | static_cast<int>((high >> j & 1) << 4);
    const int upper = (p[8 + j] >> 4) | static_cast<int>((high >> (j + 16) & 1) << 4);
    out[j] = d * static_cast<float>(low) + m;
    out[j + 16] = d * static_cast<float>(upper) + m;
  }
}
static inline void q5_1_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<32, 24, q5_1_unpack>(w, row, col, n, out);
}
void q5_1_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ51;

}  // namespace dg
