// q4_1: GGUF's Q4_1, blocks of 32 in 20 bytes: f16 d, f16 m, 16 bytes of nibbles. value = d * q + m.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q4_1_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p), m = ggml_f16(p + 2);
  for (int j = 0; j < 16; j++) out[j] = d * static_cast<float>(p[4 + j] & 15) + m;
  for (int j = 0; j < 16; j++) out[j + 16] = d * static_cast<float>(p[4 + j] >> 4) + m;
}
static inline void q4_1_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<32, 20, q4_1_unpack>(w, row, col, n, out);
}
static inline void q4_1_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float* offset) {
  const uint8_t* p = ggml_block<32, 20>(w, row, col);
  for (; n > 0; n -= 32, codes += 32, p += 20) {
    *scale++ = ggml_f16(p);
    *offset++ = ggml_f16(p + 2);
    ggml_nibbles(p + 4, n, codes);
  }
}
void q4_1_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ41;

}  // namespace dg
