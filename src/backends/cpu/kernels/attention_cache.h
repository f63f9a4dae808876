// Rows of the paged cache (device/cache_format.h) as floats, and back.
#pragma once
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/vec.h"
#include "device/cache_format.h"
#include "quant/convert.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

inline const char* cache_row(const CacheView& c, int64_t position) {
  return static_cast<const char*>(c.data) + c.blocks[position / c.block_tokens] * c.block_bytes + position % c.block_tokens * c.row_bytes;
}

// to[i] = element column + i of the row at `position`; column counts from the view's own.
void cache_row_floats(const CacheView& c, int64_t position, int64_t column, int64_t n, float* to) {
  const char* row = cache_row(c, position);
  column += c.column;
  switch (c.element) {
    case CacheElement::kF32: std::memcpy(to, row + column * 4, static_cast<size_t>(n) * 4); return;
    case CacheElement::kBf16: {
      const auto* from = reinterpret_cast<const uint16_t*>(row) + column;
      for (int64_t i = 0; i < n; i++) to[i] = bf16_to_float(from[i]);
      return;
    }
    case CacheElement::kF16: {
      const auto* from = reinterpret_cast<const uint16_t*>(row) + column;
      for (int64_t i = 0; i < n; i++) to[i] = f16_to_float(from[i]);
      return;
    }
    case CacheElement::kFp8: {
      const auto* from = reinterpret_cast<const uint8_t*>(row) + column;
      for (int64_t i = 0; i < n; i++) to[i] = e4m3_to_float(from[i]);
      return;
    }
    case CacheElement::kInt8: {
      const auto* from = reinterpret_cast<const int8_t*>(row) + column;
      for (int64_t i = 0; i < n;) {
        int64_t stop = (column + i) / kInt8CacheGroup * kInt8CacheGroup + kInt8CacheGroup - column;
        if (stop > n) stop = n;
        const float scale = int8_cache_scale(row, c.width, column + i);
        for (; i < stop; i++) to[i] = static_cast<float>(from[i]) * scale;
      }
      return;
    }
  }
}

// float_to_e4m3 without branches, so that the loop vectorises: all three cases are computed and one is chosen.
inline uint8_t e4m3_select(float f) {
  const uint32_t bits = float_to_bits(f), sign = (bits >> 24) & 0x80u, a = bits & 0x7fffffffu;
  const uint32_t subnormal = float_to_bits(bits_to_float(a) + 16384.0f) - 0x46800000u;
  const uint32_t normal = ((a + 0x7ffffu + ((a >> 20) & 1u)) >> 20) - (120u << 3);
  uint32_t code = a < 0x3c800000u ? subnormal : normal;
  code = a >= 0x43e80000u ? 0x7eu : code;
  code = a > 0x7f800000u ? 0x7fu : code;
  return static_cast<uint8_t>(sign | (code & 0x7fu));
}

// row = values in the cache's type.
void cache_write(const float* values, int64_t width, CacheElement element, void* row) {
  switch (element) {
    case CacheElement::kF32: std::memcpy(row, values, static_cast<size_t>(width) * 4); return;
    case CacheElement::kBf16: {
      auto* to = static_cast<uint16_t*>(row);
      for (int64_t i = 0; i < width; i++) to[i] = float_to_bf16(values[i]);
      return;
    }
    case CacheElement::kF16: {
      auto* to = static_cast<uint16_t*>(row);
      for (int64_t i = 0; i < width; i++) to[i] = float_to_f16(values[i]);
      return;
    }
    case CacheElement::kFp8: {
      auto* to = static_cast<uint8_t*>(row);
      for (int64_t i = 0; i < width; i++) to[i] = e4m3_select(values[i]);
      return;
    }
    case CacheElement::kInt8: int8_cache_encode(values, width, row); return;
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
