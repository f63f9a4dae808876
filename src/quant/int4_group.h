// int4: symmetric 4-bit, groups of 32 along `in`, f16 scale per group in a separate matrix (4.5 bits per weight).
// Byte j of a group holds element j in its low and element j + 16 in its high nibble; value = scale * (nibble - 8).
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

inline constexpr int kInt4Group = 32;

static inline void int4_group_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const int64_t groups = (w.in + kInt4Group - 1) / kInt4Group;
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + (row * groups + col / kInt4Group) * 16;
  const auto* scales = reinterpret_cast<const uint16_t*>(w.scales) + row * groups + col / kInt4Group;
  for (; n > 0; n -= 32, out += 32, p += 16, scales++) {
    const float scale = f16_to_float(*scales);
    if (n >= 32) {
      for (int j = 0; j < 16; j++) out[j] = scale * static_cast<float>(static_cast<int>(p[j] & 15) - 8);
      for (int j = 0; j < 16; j++) out[j + 16] = scale * static_cast<float>(static_cast<int>(p[j] >> 4) - 8);
    } else {
      for (int64_t j = 0; j < n; j++) {
        int nibble = j < 16 ? p[j] & 15 : p[j - 16] >> 4;
        out[j] = scale * static_cast<float>(nibble - 8);
      }
    }
  }
}
// Format::codes4: offset is always -8 * scale.
static inline void int4_group_codes4(const Weight& w, int64_t row, int64_t col, int64_t n, uint8_t* codes, float* scale, float* offset) {
  const int64_t groups = (w.in + kInt4Group - 1) / kInt4Group;
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + (row * groups + col / kInt4Group) * 16;
  const auto* scales = reinterpret_cast<const uint16_t*>(w.scales) + row * groups + col / kInt4Group;
  for (; n > 0; n -= 32, codes += 32, p += 16) {
    *scale = f16_to_float(*scales++);
    *offset++ = *scale * -8;
    scale++;
    for (int j = 0; j < 32 && j < n; j++) codes[j] = static_cast<uint8_t>(j < 16 ? p[j] & 15 : p[j - 16] >> 4);
  }
}
void int4_group_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kInt4GroupFormat;

}  // namespace dg
