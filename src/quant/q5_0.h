// q5_0: GGUF's Q5_0, blocks of 32 in 22 bytes: f16 d, u32 fifth bits, 16 bytes of nibbles. value = d * (q - 16).
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void q5_0_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p);
  const uint32_t high = ggml_u32(p + 2);
  for (int j = 0; j < 16; j++) {
    const int low = (p[6 + j] & 15) | static_cast<int>((high >> j & 1) << 4);
    const int upper = (p[6 + j] >> 4) | static_cast<int>((high >> (j + 16) & 1) << 4);
    out[j] = d * static_cast<float>(low - 16);
    out[j + 16] = d * static_cast<float>(upper - 16);
  }
}
static inline void q5_0_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<32, 22, q5_0_unpack>(w, row, col, n, out);
}
void q5_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kQ50;

}  // namespace dg
