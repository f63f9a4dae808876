// Packing of panels (quant/panel.h). `static inline`, as the decoders are: the CPU kernels compile it once per instruction set,
// quant/panel.cpp once for everybody else. Loops are written to vectorise; packing is a good part of the time to load a model.
#pragma once
#include <cstring>

#include "quant/bf16.h"
#include "quant/fp8_block.h"
#include "quant/fp8_channel.h"
#include "quant/int8_channel.h"
#include "quant/panel.h"

namespace dg {

struct PanelPacker {
  const Weight& w;
  void (*decode)(const Weight& w, int64_t row, int64_t col, int64_t n, float* out);
};

static inline constexpr int kInt4PanelGroup = 32;

// Nearest integer, ties to even, of |x| < 2^22.
static inline int32_t panel_round(float x) {
  return static_cast<int32_t>(float_to_bits(x + 12582912.0f)) - 0x4b400000;  // 1.5 * 2^23
}
static inline float panel_largest(const float* x, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = float_to_bits(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return bits_to_float(most);
}

// One row of one block of 512 of k.
struct Int4PanelRow {
  uint8_t codes[kPanelBlock];
  int8_t multiplier[kPanelBlock / kInt4PanelGroup];
  int8_t offset[kPanelBlock / kInt4PanelGroup];
  float scale;
};

// The grid step is the smallest that keeps every multiplier within 127 and, with free offsets, every value too.
static inline void panel_int4_row(const Weight& w, int64_t row, int64_t col, int64_t n, bool centred, Int4PanelRow& to) {
  constexpr int kGroups = kPanelBlock / kInt4PanelGroup;
  float scale[kGroups] = {}, offset[kGroups] = {};
  if (n < kPanelBlock) std::memset(to.codes, 8, sizeof to.codes);
  w.format->codes4(w, row, col, n, to.codes, scale, offset);
  for (int64_t k = n; k < kPanelBlock; k++) to.codes[k] = 8;
  const int64_t groups = (n + kInt4PanelGroup - 1) / kInt4PanelGroup;
  float step = 0;
  for (int64_t g = 0; g < groups; g++) {
    const float size = (scale[g] < 0 ? -scale[g] : scale[g]) * (8.0f / 127);
    step = size > step ? size : step;
    if (centred) continue;
    const float ends[2] = {offset[g], offset[g] + 15 * scale[g]};
    for (float end : ends) {
      const float reach = (end < 0 ? -end : end) * (1 / 126.5f);
      step = reach > step ? reach : step;
    }
  }
  if (!(step > 0 && step < 3e38f)) step = 0;
  to.scale = step;
  const float inverse = step > 0 ? 1 / step : 0;
  for (int g = 0; g < kGroups; g++) {
    int m = panel_round(scale[g] * 8 * inverse);
    m = m > 127 ? 127 : m < -127 ? -127 : m;
    int z = centred ? -m : panel_round(offset[g] * inverse);
    if (!centred) {
      const int ends[2] = {z, ((15 * m + 4) >> 3) + z};  // rounding of both may leave the range by one
      for (int value : ends) z += value > 127 ? 127 - value : value < -127 ? -127 - value : 0;
    }
    to.multiplier[g] = static_cast<int8_t>(m);
    to.offset[g] = static_cast<int8_t>(z);
  }
}

// Multipliers are 128ths of the row's scale in the block, the largest group scale; a positive one cannot be 128.
static inline void panel_table_row(const Weight& w, int64_t row, int64_t col, int64_t n, Int4PanelRow& to) {
  constexpr int kGroups = kPanelBlock / kInt4PanelGroup;
  float scale[kGroups] = {};
  w.format->codes4(w, row, col, n, to.codes, scale, nullptr);
  for (int64_t k = n; k < kPanelBlock; k++) to.codes[k] = 0;
  float step = 0;
  for (int g = 0; g < kGroups; g++) {
    const float size = scale[g] < 0 ? -scale[g] : scale[g] * (128.0f / 127);
    step = size > step ? size : step;
  }
  if (!(step > 0 && step < 3e38f)) step = 0;
  to.scale = step;
  for (int g = 0; g < kGroups; g++) {
    const int m = step > 0 ? panel_round(scale[g] / step * 128) : 0;  // no reciprocal: that of the smallest steps overflows
    to.multiplier[g] = static_cast<int8_t>(m > 127 ? 127 : m < -128 ? -128 : m);
  }
}

static inline void panel_pack_int4(const PanelPacker& p, int64_t row, int64_t rows, int64_t col, int64_t n, int64_t padded, PanelKind kind,
                                   std::byte* to) {
  const bool table = kind == PanelKind::kInt4Table, offsets = kind == PanelKind::kInt4Offset;
  const int centre = table ? 0 : 8;
  const int64_t chunk_bytes = panel_code_bytes(kind, kInt4Chunk), chunks = padded / kInt4Chunk;
  Int4PanelRow r;
  for (int64_t o = 0; o < kPanelRows; o++) {
    if (o < rows) {
      if (table) panel_table_row(p.w, row + o, col, n, r);
      else panel_int4_row(p.w, row + o, col, n, !offsets, r);
    } else {
      std::memset(&r, 0, sizeof r);
      std::memset(r.codes, centre, sizeof r.codes);
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
      std::byte* base = to + chunk * chunk_bytes;
      const uint8_t* codes = r.codes + chunk * kInt4Chunk;
      for (int64_t j = 0; j < kInt4Chunk / 8; j++) {  // nibble_place, for 8 codes at once
        const uint8_t* c = codes + j * 8;
        const uint32_t low = static_cast<uint32_t>((c[0] ^ centre) << 12 | c[4] << 8 | c[5] << 4 | c[1]);
        const uint32_t high = static_cast<uint32_t>((c[2] ^ centre) << 12 | c[6] << 8 | c[7] << 4 | c[3]);
        const uint32_t both = low | high << 16;
        std::memcpy(base + j * 64 + o * 4, &both, 4);
      }
      for (int64_t g = 0; g < 4; g++) {
        base[1024 + g * 16 + o] = static_cast<std::byte>(r.multiplier[chunk * 4 + g]);
        if (offsets) base[1024 + 64 + g * 16 + o] = static_cast<std::byte>(r.offset[chunk * 4 + g]);
      }
    }
    std::memcpy(to + chunks * chunk_bytes + o * 4, &r.scale, 4);
  }
}

static inline void panel_pack_int8(const PanelPacker& p, int64_t row, int64_t rows, int64_t col, int64_t n, int64_t padded, std::byte* to) {
  float values[kPanelBlock];
  int8_t codes[kPanelBlock];
  const bool exact = p.w.format == &kInt8Channel;  // the codes themselves
  for (int64_t o = 0; o < kPanelRows; o++) {
    float step = 0;
    std::memset(codes, 0, sizeof codes);
    if (o < rows) {
      p.decode(p.w, row + o, col, n, values);
      step = exact ? reinterpret_cast<const float*>(p.w.scales)[row + o] : panel_largest(values, n) / 127;
      const float inverse = step != 0 ? 1 / step : 0;
      for (int64_t k = 0; k < n; k++) {
        int32_t code = panel_round(values[k] * inverse);
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        codes[k] = static_cast<int8_t>(code);
      }
    }
    for (int64_t quad = 0; quad < padded / 4; quad++) std::memcpy(to + quad * 64 + o * 4, codes + quad * 4, 4);
    std::memcpy(to + padded * kPanelRows + o * 4, &step, 4);
  }
}

static inline void panel_pack_bf16(const PanelPacker& p, int64_t row, int64_t rows, std::byte* to) {
  constexpr int64_t kStep = 512;
  const int64_t in = p.w.in, padded = panel_padded(PanelKind::kBf16, in);
  float values[kStep];
  uint16_t line[kStep];
  for (int64_t col = 0; col < padded; col += kStep) {
    const int64_t width = padded - col < kStep ? padded - col : kStep, n = in - col < width ? in - col : width;
    for (int64_t o = 0; o < kPanelRows; o++) {
      if (n < width || o >= rows) std::memset(line, 0, sizeof line);
      if (o < rows) {
        if (p.w.format == &kBf16) {
          std::memcpy(line, p.w.data + ((row + o) * in + col) * 2, static_cast<size_t>(n) * 2);
        } else {
          p.decode(p.w, row + o, col, n, values);
          for (int64_t k = 0; k < n; k++) line[k] = float_to_bf16(values[k]);
        }
      }
      for (int64_t pair = 0; pair < width / 2; pair++) std::memcpy(to + (col / 2 + pair) * 64 + o * 4, line + pair * 2, 4);
    }
  }
}

static inline void panel_pack_fp8(const PanelPacker& p, int64_t row, int64_t rows, std::byte* to) {
  const int64_t in = p.w.in, padded = panel_padded(PanelKind::kFp8, in), scale_columns = (in + kFp8Block - 1) / kFp8Block;
  const auto* scales = reinterpret_cast<const float*>(p.w.scales);
  for (int64_t col = 0; col < padded; col += kFp8PanelBlock) {
    const int64_t width = padded - col < kFp8PanelBlock ? padded - col : kFp8PanelBlock, n = in - col < width ? in - col : width;
    std::byte line[kFp8PanelBlock];
    for (int64_t o = 0; o < kPanelRows; o++) {
      if (n < width || o >= rows) std::memset(line, 0, sizeof line);
      float scale = 0;
      if (o < rows) {
        std::memcpy(line, p.w.data + (row + o) * in + col, static_cast<size_t>(n));
        scale = p.w.format == &kFp8BlockFormat ? scales[(row + o) / kFp8Block * scale_columns + col / kFp8Block] : scales[row + o];
      }
      for (int64_t pair = 0; pair < width / 2; pair++) std::memcpy(to + fp8_panel_place(o, pair * 2), line + pair * 2, 2);
      std::memcpy(to + width * kPanelRows + o * 4, &scale, 4);
    }
    to += width * kPanelRows + 64;
  }
}

static inline void panel_pack_rows(const PanelPacker& p, int64_t first, int64_t out, std::byte* to) {
  const PanelKind kind = panel_kind(*p.w.format);
  const int64_t in = p.w.in, stride = panel_stride(kind, in), padded = panel_padded(kind, in);
  for (int64_t row = 0; row < p.w.out; row += kPanelRows) {
    std::byte* panel = to + (first + row) / kPanelRows * stride;
    int64_t count = p.w.out - row < out - first - row ? p.w.out - row : out - first - row;
    if (count > kPanelRows) count = kPanelRows;
    if (kind == PanelKind::kBf16) {
      panel_pack_bf16(p, row, count, panel);
    } else if (kind == PanelKind::kFp8) {
      panel_pack_fp8(p, row, count, panel);
    } else {
      for (int64_t col = 0; col < padded; col += kPanelBlock) {
        const int64_t width = padded - col < kPanelBlock ? padded - col : kPanelBlock, n = in - col < width ? in - col : width;
        if (kind == PanelKind::kInt8) panel_pack_int8(p, row, count, col, n, width, panel);
        else panel_pack_int4(p, row, count, col, n, width, kind, panel);
        panel += panel_code_bytes(kind, width) + 64;
      }
    }
  }
}

}  // namespace dg
