// int4_asym, int8_asym: unsigned codes of 4 or 8 bits with a zero point, as AWQ, GPTQ and compressed-tensors checkpoints have
// them. Packs of 32 elements: f16 scale, u16 zero point, then the codes (4 bits: byte j holds element j in its low and element
// j + 16 in its high nibble). value = scale * (code - zero). Checkpoints with larger groups repeat scale and zero.
// The zero point of GPTQ may be one above the largest code (16, 256). Source: spec/quant_formats.md sections 5 to 7.
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

struct Int4AsymPack {
  uint16_t scale;  // f16
  uint16_t zero;
  uint8_t q[16];
};
static_assert(sizeof(Int4AsymPack) == 20);

struct Int8AsymPack {
  uint16_t scale;  // f16
  uint16_t zero;
  uint8_t q[32];
};
static_assert(sizeof(Int8AsymPack) == 36);

static inline const Int4AsymPack* int4_asym_pack(const Weight& w, int64_t row, int64_t col) {
  return reinterpret_cast<const Int4AsymPack*>(w.data) + row * ((w.in + 31) / 32) + col / 32;
}

static inline void int4_asym_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const Int4AsymPack* pack = int4_asym_pack(w, row, col);
  for (; n > 0; n -= 32, out += 32, pack++) {
    const float scale = f16_to_float(pack->scale);
    const int zero = pack->zero;
    if (n >= 32) {
      for (int j = 0; j < 16; j++) out[j] = scale * static_cast<float>((pack->q[j] & 15) - zero);
      for (int j = 0; j < 16; j++) out[j + 16] = scale * static_cast<float>((pack->q[j] >> 4) - zero);
    } else {
      for (int64_t j = 0; j < n; j++) {
        const int code = j < 16 ? pack->q[j] & 15 : pack->q[j - 16] >> 4;
        out[j] = scale * static_cast<float>(code - zero);
      }
    }
  }
}

static inline void int4_asym_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float* offset) {
  const Int4AsymPack* pack = int4_asym_pack(w, row, col);
  for (; n > 0; n -= 32, codes += 32, pack++) {
    *scale = f16_to_float(pack->scale);
    *offset++ = -*scale * static_cast<float>(pack->zero);
    scale++;
    for (int j = 0; j < 32 && j < n; j++) codes[j] = static_cast<uint8_t>(j < 16 ? pack->q[j] & 15 : pack->q[j - 16] >> 4);
  }
}

static inline void int8_asym_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* pack = reinterpret_cast<const Int8AsymPack*>(w.data) + row * ((w.in + 31) / 32) + col / 32;
  for (; n > 0; n -= 32, out += 32, pack++) {
    const float scale = f16_to_float(pack->scale);
    const int zero = pack->zero;
    const int64_t count = n < 32 ? n : 32;
    for (int64_t j = 0; j < count; j++) out[j] = scale * static_cast<float>(pack->q[j] - zero);
  }
}

void int4_asym_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);
void int8_asym_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kInt4Asym, kInt8Asym;

}  // namespace dg
