// q3_k: GGUF's Q3_K, blocks of 256 in 110 bytes: 32 bytes of third bits (clear: minus 4), 64 bytes of 2-bit codes, 16 scales of
// 6 bits in 12 bytes, f16 d. value = d * (scale - 32) * q, q from -4 to 3.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline int q3_k_scale(const uint8_t* b, int i) {
  const int low = i < 8 ? b[i] & 15 : b[i - 8] >> 4;
  return (low | (b[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) - 32;
}
static inline void q3_k_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p + 108);
  for (int sub = 0; sub < 16; sub++) {
    const uint8_t* qs = p + 32 + 32 * (sub / 8) + 16 * (sub % 2);
    const uint8_t* high = p + 16 * (sub % 2);
    const int shift = 2 * (sub % 8 / 2), bit = 4 * (sub / 8) + sub % 8 / 2;
    const float scale = d * static_cast<float>(q3_k_scale(p + 96, sub));
    for (int l = 0; l < 16; l++) out[16 * sub + l] = scale * static_cast<float>((qs[l] >> shift & 3) + (high[l] >> bit & 1) * 4 - 4);
  }
}
static inline void q3_k_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 110, q3_k_unpack>(w, row, col, n, out);
}
void q3_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ3K;

}  // namespace dg
