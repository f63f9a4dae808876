// iq4_xs: GGUF's IQ4_XS, blocks of 256 in 136 bytes: f16 d, u16 upper and 4 bytes of lower scale bits (8 scales of 6 bits), 128
// bytes of nibbles, 16 per sub-block of 32 as in q4_0. value = d * (scale - 32) * kIq4Values[q].
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void iq4_xs_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p);
  const int high = ggml_u16(p + 2);
  for (int sub = 0; sub < 8; sub++) {
    const int scale = (p[4 + sub / 2] >> (4 * (sub % 2)) & 15) | (high >> (2 * sub) & 3) << 4;
    const float s = d * static_cast<float>(scale - 32);
    const uint8_t* qs = p + 8 + 16 * sub;
    for (int j = 0; j < 16; j++) out[32 * sub + j] = s * static_cast<float>(kIq4Values[qs[j] & 15]);
    for (int j = 0; j < 16; j++) out[32 * sub + j + 16] = s * static_cast<float>(kIq4Values[qs[j] >> 4]);
  }
}
static inline void iq4_xs_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 136, iq4_xs_unpack>(w, row, col, n, out);
}
void iq4_xs_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kIq4Xs;

}  // namespace dg
