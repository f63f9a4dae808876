// q6_k: GGUF's Q6_K, blocks of 256 in 210 bytes: 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 int8 scales (one per
// 16 elements), f16 d. value = d * scale * (q - 32).
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q6_k_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p + 208);
  for (int quarter = 0; quarter < 8; quarter++) {  // 32 elements each, four per half of 128
    const int half = quarter / 4, q = quarter % 4;
    const uint8_t *low = p + 64 * half + 32 * (q % 2), *high = p + 128 + 32 * half;
    const int low_shift = 4 * (q / 2), high_shift = 2 * q;
    for (int part = 0; part < 2; part++) {
      const float scale = d * static_cast<float>(static_cast<int8_t>(p[192 + 2 * quarter + part]));
      for (int l = 16 * part; l < 16 * part + 16; l++)
        out[32 * quarter + l] = scale * static_cast<float>(((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4) - 32);
    }
  }
}
static inline void q6_k_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<kKQuantBlock, 210, q6_k_unpack>(w, row, col, n, out);
}
void q6_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ6K;

}  // namespace dg
