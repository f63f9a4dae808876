// q4_0: GGUF's Q4_0, blocks of 32 in 18 bytes: f16 d, 16 bytes of nibbles. value = d * (q - 8).
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q4_0_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p);
  for (int j = 0; j < 16; j++) out[j] = d * static_cast<float>((p[2 + j] & 15) - 8);
  for (int j = 0; j < 16; j++) out[j + 16] = d * static_cast<float>((p[2 + j] >> 4) - 8);
}
static inline void q4_0_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<32, 18, q4_0_unpack>(w, row, col, n, out);
}
static inline void q4_0_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float* offset) {
  const uint8_t* p = ggml_block<32, 18>(w, row, col);
  for (; n > 0; n -= 32, codes += 32, p += 18) {
    const float d = ggml_f16(p);
    *scale++ = d;
    *offset++ = -8 * d;
    ggml_nibbles(p + 2, n, codes);
  }
}
void q4_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ40;

}  // namespace dg
