// iq4_nl: GGUF's IQ4_NL, blocks of 32 in 18 bytes: f16 d, 16 bytes of nibbles. value = d * kIq4Values[q].
#pragma once
#include "quant/ggml_block.h"

namespace dg {

static inline void iq4_nl_unpack(const uint8_t* p, float* out) {
  const float d = ggml_f16(p);
  for (int j = 0; j < 16; j++) out[j] = d * static_cast<float>(kIq4Values[p[2 + j] & 15]);
  for (int j = 0; j < 16; j++) out[j + 16] = d * static_cast<float>(kIq4Values[p[2 + j] >> 4]);
}
static inline void iq4_nl_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<32, 18, iq4_nl_unpack>(w, row, col, n, out);
}
static inline void iq4_nl_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float*) {
  const uint8_t* p = ggml_block<32, 18>(w, row, col);
  for (; n > 0; n -= 32, codes += 32, p += 18) {
    *scale++ = ggml_f16(p);
    ggml_nibbles(p + 2, n, codes);
  }
}
void iq4_nl_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kIq4Nl;

}  // namespace dg
