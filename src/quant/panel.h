// Panels: how the CPU keeps weights for products. 16 output rows are interleaved so that 64 bytes hold what 16 lanes, or one
// row of an AMX tile, need at one step of k; a panel is one contiguous stream. The layout is the same for every instruction
// set; sizes do not depend on the machine, so that `plan` is exact.
//
// kind   one panel (16 rows)                                                      k is padded to
// bf16   [k/2][16][2] bf16                                                        32
// fp8    per 128 of k: E4M3 codes of 16 rows, then f32 scale[16]                   64
// int8   per 512 of k: [k/4][16][4] codes, then f32 scale[16]                     64
// int4   per 512 of k: chunks of 128 k, then f32 scale[16]                        128
//        chunk: 16 x 64 bytes of nibbles, int8 multiplier[4][16]; int4_offset: also int8 offset[4][16]; int4_table: as int4
//
// The integer kinds multiply with activations quantised to int8 per token and 512 of k, so a product over such a block is an
// exact integer and every instruction set gets the same one. |code| <= 127.
//  int8: w = scale * code. From other formats (q8_0, q6_k ...) the rows are rounded to this grid.
//  int4: w = scale * (((nibble * m + 4) >> 3) + z), the sum taken modulo 256 into [-128, 127], with a multiplier m per row and
//        group of 32, z = -m for centred formats (value 0 = code 8), else the offset. So 4-bit weights become int8 in a few instructions,
//        and a block of 512 needs one scaling. The group scale is kept to 1/127 of the block's largest.
//  int4_table: w = scale * ((table[nibble] * m + 64) >> 7), the 16 values of the format (Format::table4, at most 127) with a multiplier m
//        from -128 to 127 per row and group of 32. Multipliers that are powers of two down to an eighth of the block's largest are exact
//        for MXFP4: its table holds negative multiples of 8, its multipliers are -128, -64, -32, -16.
// Nibbles: 64 bytes hold the quads of k 2j and 2j + 1. The 16-bit word h of row o has, from bit 12 down, quad 2j byte 2h (but for
// int4_table as a signed number: code - 8), quad 2j+1 byte 2h, quad 2j+1 byte 2h+1, quad 2j byte 2h+1.
// FP8: 64 bytes hold the pairs of k 2j and 2j + 1: of the 32 codes of a pair (row o, k % 2), codes 8i..8i+7 stand at byte 16i of
// the first pair and 16i + 8 of the second.
#pragma once
#include <cstddef>
#include <cstdint>

#include "quant/format.h"

namespace dg {

enum class PanelKind : uint8_t { kNone, kBf16, kFp8, kInt8, kInt4, kInt4Offset, kInt4Table };

inline constexpr int64_t kPanelRows = 16;
inline constexpr int64_t kPanelBlock = 512;  // of k per scale of the integer kinds
inline constexpr int64_t kFp8PanelBlock = 128;
inline constexpr int64_t kInt4Chunk = 128;

static inline constexpr bool has_nibbles(PanelKind k) {
  return k == PanelKind::kInt4 || k == PanelKind::kInt4Offset || k == PanelKind::kInt4Table;
}
static inline constexpr bool is_integer(PanelKind k) { return k == PanelKind::kInt8 || has_nibbles(k); }
static inline constexpr int64_t panel_block(PanelKind k) { return k == PanelKind::kFp8 ? kFp8PanelBlock : kPanelBlock; }
static inline constexpr int64_t panel_padded(PanelKind k, int64_t in) {
  const int64_t unit = has_nibbles(k) ? kInt4Chunk : k == PanelKind::kBf16 ? 32 : 64;
  return (in + unit - 1) / unit * unit;
}
// Bytes of `k` columns (padded) of a panel's codes inside one block, scales excluded.
static inline constexpr int64_t panel_code_bytes(PanelKind kind, int64_t k) {
  switch (kind) {
    case PanelKind::kBf16: return k * kPanelRows * 2;
    case PanelKind::kInt4:
    case PanelKind::kInt4Table: return k / kInt4Chunk * (1024 + 64);
    case PanelKind::kInt4Offset: return k / kInt4Chunk * (1024 + 128);
    default: return k * kPanelRows;
  }
}
// Bytes of a whole panel.
static inline constexpr int64_t panel_stride(PanelKind kind, int64_t in) {
  const int64_t k = panel_padded(kind, in), block = panel_block(kind);
  if (kind == PanelKind::kBf16) return panel_code_bytes(kind, k);
  return panel_code_bytes(kind, k) + (k + block - 1) / block * 64;
}

// Byte of element (row o of the panel, column k of the block) among FP8 codes.
static inline constexpr int64_t fp8_panel_place(int64_t o, int64_t k) {
  const int64_t pair = k / 2, element = o * 2 + k % 2;
  return pair / 2 * 64 + element / 8 * 16 + pair % 2 * 8 + element % 8;
}
// The word of a chunk and the bit shift of nibble (o, k); `centred` ones are stored with 8 subtracted, but not those of int4_table.
struct NibblePlace {
  int64_t word;
  int shift;
  bool centred;
};
static inline constexpr NibblePlace nibble_place(int64_t o, int64_t k) {
  const int64_t quad = k / 4, byte = k % 4;
  const int shift = quad % 2 == 0 ? (byte % 2 == 0 ? 12 : 0) : (byte % 2 == 0 ? 8 : 4);
  return {quad / 2 * 32 + o * 2 + byte / 2, shift, shift == 12};
}

// 4-bit code (row o of the panel, column k of the chunk).
static inline int panel_nibble(PanelKind kind, const std::byte* chunk, int64_t o, int64_t k) {
  const NibblePlace place = nibble_place(o, k);
  const auto word = static_cast<int>(reinterpret_cast<const uint16_t*>(chunk)[place.word]);
  return (word >> place.shift & 15) ^ (place.centred && kind != PanelKind::kInt4Table ? 8 : 0);
}

// kNone for formats that are used as published (f32).
PanelKind panel_kind(const Format& format);
// Bytes of a whole (out, in) matrix; 0 for kNone.
int64_t panel_bytes(const Format& format, int64_t out, int64_t in);
// Packs rows [first, first + rows.out) of an (out, rows.in) matrix into the block `to` of the whole matrix; `first` is a
// multiple of 16. Rows behind `out` become zero.
void panel_pack(const Weight& rows, int64_t first, int64_t out, std::byte* to);
// to[0, n) = elements [col, col + n) of `row` of a prepared weight, as the products use them.
void panel_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* to);

}  // namespace dg
