#include "quant/panel.h"

#include <algorithm>

#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/panel_pack.h"

namespace dg {
PanelKind panel_kind(const Format& format) {
  if (&format == &kF32) return PanelKind::kNone;
  if (&format == &kBf16 || &format == &kF16) return PanelKind::kBf16;
  if (&format == &kFp8BlockFormat || &format == &kFp8Channel) return PanelKind::kFp8;
  if (format.table4) return PanelKind::kInt4Table;
  if (format.codes4) return format.centred4 ? PanelKind::kInt4 : PanelKind::kInt4Offset;
  return PanelKind::kInt8;
}

int64_t panel_bytes(const Format& format, int64_t out, int64_t in) {
  const PanelKind kind = panel_kind(format);
  if (kind == PanelKind::kNone) return 0;
  return (out + kPanelRows - 1) / kPanelRows * panel_stride(kind, in);
}

void panel_pack(const Weight& rows, int64_t first, int64_t out, std::byte* to) {
  panel_pack_rows({rows, rows.format->decode}, first, out, to);
}

void panel_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* to) {
  const PanelKind kind = panel_kind(*w.format);
  const int64_t padded = panel_padded(kind, w.in), block = panel_block(kind), o = row % kPanelRows;
  const std::byte* panel = w.data + row / kPanelRows * panel_stride(kind, w.in);
  for (int64_t i = 0; i < n; i++) {
    const int64_t k = col + i;
    if (kind == PanelKind::kBf16) {
      to[i] = bf16_to_float(reinterpret_cast<const uint16_t*>(panel)[k / 2 * 32 + o * 2 + k % 2]);
      continue;
    }
    const int64_t begin = k / block * block, width = std::min(block, padded - begin), at = k - begin;
    const std::byte* base = panel + begin / block * (panel_code_bytes(kind, block) + 64);
    const float scale = reinterpret_cast<const float*>(base + panel_code_bytes(kind, width))[o];
    if (kind == PanelKind::kFp8) {
      to[i] = e4m3_to_float(static_cast<uint8_t>(base[fp8_panel_place(o, at)])) * scale;
    } else if (kind == PanelKind::kInt8) {
      to[i] = static_cast<float>(static_cast<int8_t>(base[at / 4 * 64 + o * 4 + at % 4])) * scale;
    } else {
      const std::byte* chunk = base + at / kInt4Chunk * panel_code_bytes(kind, kInt4Chunk);
      const int code = panel_nibble(kind, chunk, o, at % kInt4Chunk);
      const int64_t group = at % kInt4Chunk / kInt4PanelGroup;
      const int m = static_cast<int8_t>(chunk[1024 + group * 16 + o]);
      if (kind == PanelKind::kInt4Table) {
        to[i] = static_cast<float>((w.format->table4[code] * m + 64) >> 7) * scale;
        continue;
      }
      const int z = kind == PanelKind::kInt4 ? -m : static_cast<int8_t>(chunk[1024 + 64 + group * 16 + o]);
      to[i] = static_cast<float>(static_cast<int8_t>((((code * m + 4) >> 3) + z) & 255)) * scale;
    }
  }
}

}  // namespace dg
