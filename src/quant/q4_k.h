// q4_k: GGUF's Q4_K, blocks of 256 in 144 bytes: f16 d, f16 dmin, 8 scales and minima of 6 bits in 12 bytes, 128 bytes of
// nibbles; bytes 32 p.. hold sub-block 2 p (low) and 2 p + 1 (high). value = d * scale * q - dmin * minimum.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q4_k_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p), dmin = ggml_f16(p + 2);
  for (int sub = 0; sub < 8; sub++) {
    int scale, minimum;
    ggml_k_scale(p + 4, sub, &scale, &minimum);
    const uint8_t* qs = p + 16 + 32 * (sub / 2);
    const int shift = 4 * (sub % 2);
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
    for (int l = 0; l < 32; l++) out[32 * sub + l] = s * static_cast<float>(qs[l] >> shift & 15) - m;
  }
}
static inline void q4_k_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 144, q4_k_unpack>(w, row, col, n, out);
}
// `col` may be any multiple of 32.
static inline void q4_k_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float* offset) {
  for (; n > 0; n -= 32, col += 32, codes += 32) {
    const uint8_t* p = ggml_block<kKQuantBlock, 144>(w, row, col);
    const int sub = static_cast<int>(col % kKQuantBlock) / 32, shift = 4 * (sub % 2);
    int s, m;
    ggml_k_scale(p + 4, sub, &s, &m);
    *scale++ = ggml_f16(p) * static_cast<float>(s);
    *offset++ = -(ggml_f16(p + 2) * static_cast<float>(m));
    const uint8_t* qs = p + 16 + 32 * (sub / 2);
    const int count = n < 32 ? static_cast<int>(n) : 32;
    for (int l = 0; l < count; l++) codes[l] = qs[l] >> shift & 15;
  }
}
void q4_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ4K;

}  // namespace dg
