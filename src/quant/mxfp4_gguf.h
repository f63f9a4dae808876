// mxfp4_gguf: GGUF's MXFP4, blocks of 32 in 17 bytes: E8M0 exponent, 16 bytes of E2M1 nibbles; elements j and j + 16 share a
// byte (other checkpoints pair neighbours). value = 2^(e - 127) * fp4. Source: OCP Microscaling Formats 1.0.
#pragma once
#include "quant/ggml_block.h"

namespace dg {

inline constexpr int8_t kFp4Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
// The same times -8, for table4: panels scale it with a factor that may be -128 and not 128 (quant/panel.h), so that powers of two are
// exact.
inline constexpr int8_t kFp4Table[16] = {0, -8, -16, -24, -32, -48, -64, -96, 0, 8, 16, 24, 32, 48, 64, 96};

// 2^(e - 128): half of the E8M0 value, for the doubled table. e = 0 and 1 are subnormal floats.
static inline float e8m0_half(uint8_t e) { return bits_to_float(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23); }

static inline void mxfp4_gguf_unpack(const uint8_t* p, float* out) {
  const float d = e8m0_half(p[0]);
  for (int j = 0; j < 16; j++) out[j] = d * static_cast<float>(kFp4Doubled[p[1 + j] & 15]);
  for (int j = 0; j < 16; j++) out[j + 16] = d * static_cast<float>(kFp4Doubled[p[1 + j] >> 4]);
}
static inline void mxfp4_gguf_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  ggml_decode<32, 17, mxfp4_gguf_unpack>(w, row, col, n, out);
}
static inline void mxfp4_gguf_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float*) {
  const uint8_t* p = ggml_block<32, 17>(w, row, col);
  for (; n > 0; n -= 32, codes += 32, p += 17) {
    *scale++ = e8m0_half(p[0]) * -0.125f;
    ggml_nibbles(p + 1, n, codes);
  }
}
void mxfp4_gguf_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kMxfp4Gguf;

}  // namespace dg
