// Tile products in portable vectors: the definition of what a family's panel_dot_*.h provides, and the fall-back of families
// without one. Integers go through 32-bit lanes, four multiply-adds per quad.
#pragma once
#include "backends/cpu/kernels/panel_rows_f32.h"
#include "backends/cpu/kernels/vec.h"
#include "quant/convert.h"
#include "quant/panel.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr bool kUnsignedCodes = false;
constexpr int kTilesAtATime = 1, kPanelsAtATime = 1, kPanelsOfOneTile = 1;

// All kinds are unpacked, see unpack_codes.
template <PanelKind kKind>
constexpr bool kNeedsUnpack = true;

// Integer codes -> int8 rows [k][16]; bf16 and fp8 -> bf16 pairs as in a bf16 panel.
template <PanelKind kKind>
inline void unpack_codes(const std::byte* from, int64_t width, [[maybe_unused]] const int8_t* table, std::byte* to) {
  auto* codes = reinterpret_cast<int8_t*>(to);
  if constexpr (kKind == PanelKind::kBf16) {
    std::memcpy(to, from, static_cast<size_t>(width * 32));
  } else if constexpr (kKind == PanelKind::kFp8) {
    auto* out = reinterpret_cast<uint16_t*>(to);
    for (int64_t k = 0; k < width; k++)
      for (int64_t o = 0; o < 16; o++)
        out[k / 2 * 32 + o * 2 + k % 2] = float_to_bf16(e4m3_to_float(static_cast<uint8_t>(from[fp8_panel_place(o, k)])));
  } else if constexpr (kKind == PanelKind::kInt8) {
    for (int64_t quad = 0; quad < width / 4; quad++)
      for (int o = 0; o < 16; o++)
        for (int i = 0; i < 4; i++) codes[(quad * 4 + i) * 16 + o] = static_cast<int8_t>(from[quad * 64 + o * 4 + i]);
  } else {
    for (int64_t k0 = 0; k0 < width; k0 += kInt4Chunk) {
      for (int64_t quad = 0; quad < 32; quad++) {
        const std::byte* side = from + 1024 + quad / 8 * 16;
        for (int o = 0; o < 16; o++) {
          const int m = static_cast<int8_t>(side[o]);
          const int z = kKind == PanelKind::kInt4Offset ? static_cast<int8_t>(side[64 + o]) : -m;
          for (int i = 0; i < 4; i++) {
            const int code = panel_nibble(kKind, from, o, quad * 4 + i);
            int value = ((code * m + 4) >> 3) + z;
            if constexpr (kKind == PanelKind::kInt4Table) value = (table[code] * m + 64) >> 7;
            codes[(k0 + quad * 4 + i) * 16 + o] = static_cast<int8_t>(value);
          }
        }
      }
      from += panel_code_bytes(kKind, kInt4Chunk);
    }
  }
}

template <bool kPrefetch, class Pending>
inline void dot_integer(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/,
                        int64_t width, int32_t* c, int64_t /*c_tile*/, Pending& /*pending*/) {
  typedef int8_t v8 __attribute__((vector_size(kLanes)));
  const auto* codes = reinterpret_cast<const int8_t*>(b[0]);
  for (int64_t t = 0; t < rows; t++) {
    const auto* xs = reinterpret_cast<const int8_t*>(x) + t * 64;
    vi sum[kParts] = {};
    for (int64_t k = 0; k < width; k++) {
      const int32_t value = xs[k / 64 * 1024 + k % 64];
      for (int part = 0; part < kParts; part++) {
        v8 narrow;
        std::memcpy(&narrow, codes + k * 16 + part * kLanes, sizeof narrow);
        sum[part] += __builtin_convertvector(narrow, vi) * value;
      }
    }
    std::memcpy(c + t * 16, sum, 64);
  }
}

template <int T>
inline void dot_float_rows(const float* x, const std::byte* b, int64_t width, bool accumulate, float* c) {
  for (int part = 0; part < kParts; part++) {
    vf sum[T];
    for (int t = 0; t < T; t++) sum[t] = accumulate ? load(c + t * 16 + part * kLanes) : vf{};
    for (int64_t k = 0; k < width; k += 2) {
      vi pairs;
      std::memcpy(&pairs, b + k * 32 + part * kLanes * 4, sizeof pairs);
      const vf even = reinterpret_cast<vf>(pairs << 16), odd = reinterpret_cast<vf>(pairs & static_cast<int32_t>(0xffff0000));
      const float* xs = x + k / 16 * 256 + k % 16;
      for (int t = 0; t < T; t++) {
        sum[t] += even * xs[t * 16];
        sum[t] += odd * xs[t * 16 + 1];
      }
    }
    for (int t = 0; t < T; t++) store(c + t * 16 + part * kLanes, sum[t]);
  }
}

template <bool kPrefetch>
inline void dot_float(const std::byte* x, int64_t /*x_bytes*/, int /*m*/, int64_t rows, const std::byte* const* b, int /*n*/, int64_t width,
                      bool accumulate, float* c, int64_t /*c_tile*/) {
  const auto* xs = reinterpret_cast<const float*>(x);
  int64_t t = 0;
  for (; t + 4 <= rows; t += 4) dot_float_rows<4>(xs + t * 16, b[0], width, accumulate, c + t * 16);
  for (; t < rows; t++) dot_float_rows<1>(xs + t * 16, b[0], width, accumulate, c + t * 16);
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
