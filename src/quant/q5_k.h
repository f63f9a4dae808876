// q5_k: GGUF's Q5_K, blocks of 256 in 176 bytes: f16 d, f16 dmin, 12 bytes of scales and minima as in q4_k, 32 bytes of fifth
// bits (bit i of byte l: element l of sub-block i), 128 bytes of nibbles. value = d * scale * q - dmin * minimum.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q5_k_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p), dmin = ggml_f16(p + 2);
  const uint8_t* high = p + 16;
  for (int sub = 0; sub < 8; sub++) {
    int scale, minimum;
    ggml_k_scale(p + 4, sub, &scale, &minimum);
    const uint8_t* qs = p + 48 + 32 * (sub / 2);
    const int shift = 4 * (sub % 2);
    const float s = d * static_cast<float>(scale), m = dmin * static_cast<float>(minimum);
    for (int l = 0; l < 32; l++) out[32 * sub + l] = s * static_cast<float>((qs[l] >> shift & 15) | (high[l] >> sub & 1) << 4) - m;
  }
}
static inline void q5_k_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 176, q5_k_unpack>(w, row, col, n, out);
}
void q5_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ5K;

}  // namespace dg
