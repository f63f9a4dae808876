// q2_k: GGUF's Q2_K, blocks of 256 in 84 bytes: 16 bytes of scale | minimum << 4 (one per 16 elements), 64 bytes of 2-bit codes,
// f16 d, f16 dmin. value = d * scale * q - dmin * minimum.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q2_k_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p + 80), dmin = ggml_f16(p + 82);
  for (int sub = 0; sub < 16; sub++) {  // 8 of them per half of 128 elements, two per bit position
    const uint8_t* qs = p + 16 + 32 * (sub / 8) + 16 * (sub % 2);
    const int shift = 2 * (sub % 8 / 2);
    const float scale = d * static_cast<float>(p[sub] & 15), minimum = dmin * static_cast<float>(p[sub] >> 4);
    for (int l = 0; l < 16; l++) out[16 * sub + l] = scale * static_cast<float>(qs[l] >> shift & 3) - minimum;
  }
}
static inline void q2_k_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 84, q2_k_unpack>(w, row, col, n, out);
}
void q2_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ2K;

}  // namespace dg
