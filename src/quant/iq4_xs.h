// iq4_xs: GGUF's IQ4_XS, blocks of 256 in 136 bytes: f16 d, u16 upper and 4 bytes of lower scale bits (8 scales of 6 bits), 128
// bytes of nibbles, 16 per sub-block of 32 as in q4_0. value = d * (scale - 32) * kIq4Values[q].
#pragma once
#include "quant/ggml_block.h"

namespace dg {

// Scale of sub-block `sub`.
static inline float iq4_xs_scale(const uint8_t* p, int sub) {
  const int scale = (p[4 + sub / 2] >> (4 * (sub % 2)) & 15) | (ggml_u16(p + 2) >> (2 * sub) & 3) << 4;
  return ggml_f16(p) * static_cast<float>(scale - 32);
}
static inline void iq4_xs_unpack(const uint8_t* p, float* out) {
  for (int sub = 0; sub < 8; sub++) {
    const float s = iq4_xs_scale(p, sub);
    const uint8_t* qs = p + 8 + 16 * sub;
    for (int j = 0; j < 16; j++) out[32 * sub + j] = s * static_cast<float>(kIq4Values[qs[j] & 15]);
    for (int j = 0; j < 16; j++) out[32 * sub + j + 16] = s * static_cast<float>(kIq4Values[qs[j] >> 4]);
  }
}
static inline void iq4_xs_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 136, iq4_xs_unpack>(w, row, col, n, out);
}
// `col` may be any multiple of 32.
static inline void iq4_xs_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float*) {
  for (; n > 0; n -= 32, col += 32, codes += 32) {
    const uint8_t* p = ggml_block<kKQuantBlock, 136>(w, row, col);
    const int sub = static_cast<int>(col % kKQuantBlock) / 32;
    *scale++ = iq4_xs_scale(p, sub);
    ggml_nibbles(p + 8 + 16 * sub, n, codes);
  }
}
void iq4_xs_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kIq4Xs;

}  // namespace dg
