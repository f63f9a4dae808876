// Layouts of weights on the GPU: what CudaBackend::prepare makes of the published formats, and who reads it where.
//
// Row-major, for who needs plain rows (cuBLASLt): bf16, rows padded with zeros to 32 columns (64 bytes). f32 stays as published.
//
// Blocks, for everything with codes of 8 or 4 bits. A block holds 16 rows times one chunk of columns (64 of 8 bits, 128 of 4 bits) in
// 1024 bytes of codes, then the scales of these rows and groups of 32 columns. It is laid out as the A operands of mma.m16n8k16 come out of
// registers: lane 4 g + t of a warp holds rows g and g + 8; of each group of 32 columns it holds columns 8 t .. 8 t + 7. Its codes of
// row g are the 16 bytes at 16 lane, those of row g + 8 the 16 bytes at 512 + 16 lane: a warp reads 512 contiguous bytes per instruction.
// kFp8Block128 differs in one thing: of row r, the 16 bytes of lane part t are the t ^ (r / 2 % 4)'th of the row's 64 (lane_place()). That
// is the 64-byte swizzle of Hopper's matrix unit, so 128 rows of a chunk are copied to shared memory as they are and multiplied from there
// (grouped_wgmma.cu). The order of columns within 64 does not matter there: rows of x take the same.
//   8 bits: bytes 8 j .. 8 j + 7 of the 16 are group j; in each word columns 0, 2, 1, 3, so that a mask gives pairs (0, 1) and (2, 3)
//   4 bits: word j is group j; column i is nibble i / 2 + 4 (i % 2), so that a shift and a mask give the pair (2 p, 2 p + 1)
// Blocks of the same 16 rows follow each other along the columns (a "tile"), tiles follow along the rows; rows and columns beyond the
// matrix are zeros. Behind the last tile lies `aux`: scales per row or per square of columns, where the kind has such.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

#include "quant/format.h"

#ifdef __CUDACC__
#define DG_HOST_DEVICE __host__ __device__
#else
#define DG_HOST_DEVICE
#endif

namespace dg::cuda {

// Published formats, in the order of quant/formats.cpp. The plug-in has its own copy of the Format constants: only names identify them.
enum class Published : int32_t {
  kF32,
  kBf16,
  kF16,
  kFp8Block,
  kQ80,
  kInt8,
  kInt4,
  kFp8Block32,
  kFp8Channel,
  kInt4Asym,
  kInt8Asym,
  kQ40,
  kQ41,
  kQ50,
  kQ51,
  kQ2K,
  kQ3K,
  kQ4K,
  kQ5K,
  kQ6K,
  kIq4Nl,
  kIq4Xs,
  kMxfp4,
  kCount
};
// kCount for a format that this file does not know.
Published published(const Format& format);

enum class WeightKind : int32_t {
  kF32,
  kBf16,         // also f16 and the GGUF formats without a kind of their own (2, 3, 5, 6 bits): rounded to bf16 at load
  kFp8Block128,  // e4m3; aux: f32 per 128 rows x 128 columns
  kFp8Block32,   // e4m3; aux: f32 per 32 x 32
  kFp8Row,       // e4m3; aux: f32 per row
  kInt8Row,      // int8; aux: f32 per row
  kCode8,        // int8 codes; f16 scale per row and group (q8_0)
  kCode8Offset,  // int8 codes; f32 (scale, offset) per row and group (int8_asym)
  kCode4,        // codes minus 8; f16 scale (int4, q4_0)
  kCode4Offset,  // f16 (scale, offset), both times the row's factor, aux: f32 per row (int4_asym, q4_1, q4_k)
  kFp4,          // e2m1; e8m0 scale (mxfp4_gguf)
  kIq4,          // kIq4Values[code]; f16 scale times the row's factor, aux: f32 per row (iq4_nl, iq4_xs)
  kCount
};
WeightKind weight_kind(Published format);
const char* weight_kind_name(WeightKind kind);

constexpr int kTileRows = 16;
constexpr int kBlockCodeBytes = 1024;

DG_HOST_DEVICE constexpr int chunk_columns(WeightKind kind) {
  return kind <= WeightKind::kBf16 ? 32 : kind <= WeightKind::kCode8Offset ? 64 : 128;
}
// Groups of 32 columns in a chunk.
DG_HOST_DEVICE constexpr int chunk_groups(WeightKind kind) { return chunk_columns(kind) / 32; }
DG_HOST_DEVICE constexpr bool has_blocks(WeightKind kind) { return kind > WeightKind::kBf16; }
// Bytes of scales in a block: of one group of one row.
DG_HOST_DEVICE constexpr int group_scale_bytes(WeightKind kind) {
  switch (kind) {
    case WeightKind::kCode8:
    case WeightKind::kCode4:
    case WeightKind::kIq4: return 2;
    case WeightKind::kCode8Offset: return 8;
    case WeightKind::kCode4Offset: return 4;
    case WeightKind::kFp4: return 1;
    default: return 0;
  }
}
DG_HOST_DEVICE constexpr int block_bytes(WeightKind kind) {
  return kBlockCodeBytes + kTileRows * chunk_groups(kind) * group_scale_bytes(kind);
}
// One f32 per row in `aux`, by which the row's sum is multiplied at the end.
DG_HOST_DEVICE constexpr bool has_row_scale(WeightKind kind) {
  return kind == WeightKind::kFp8Row || kind == WeightKind::kInt8Row || kind == WeightKind::kCode4Offset || kind == WeightKind::kIq4;
}
// Side of the squares that share one f32 in `aux`, or 0.
DG_HOST_DEVICE constexpr int square_side(WeightKind kind) {
  return kind == WeightKind::kFp8Block128 ? 128 : kind == WeightKind::kFp8Block32 ? 32 : 0;
}
// Floats of a row of `aux` of such squares: for all chunks, in whole chunks.
DG_HOST_DEVICE constexpr int64_t square_pitch(WeightKind kind, int64_t chunks) {
  return kind == WeightKind::kFp8Block128 ? (chunks + 1) / 2 : chunks * 2;
}

// Which 16 bytes of a half of a block are lane `lane`'s.
DG_HOST_DEVICE constexpr int lane_place(WeightKind kind, int lane) {
  return kind == WeightKind::kFp8Block128 ? lane ^ (lane / 8 % 4) : lane;
}
// Byte of a block's codes with column i (0..7) of lane `lane`'s part of group j, of row lane / 4 (half 0) or lane / 4 + 8 (half 1); of
// 4 bits: its low nibble is column i = 0.., see nibble_shift().
DG_HOST_DEVICE constexpr int code8_offset(WeightKind kind, int half, int lane, int j, int i) {
  return half * 512 + lane_place(kind, lane) * 16 + j * 8 + i / 4 * 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4);
}
// Bit of the 32-bit word at half * 512 + lane * 16 + j * 4.
DG_HOST_DEVICE constexpr int nibble_shift(int i) { return 4 * (i / 2 + 4 * (i % 2)); }
// Byte of a block with the scale of row r (0..15), group j.
DG_HOST_DEVICE constexpr int scale_offset(WeightKind kind, int r, int j) {
  return kBlockCodeBytes + (r * chunk_groups(kind) + j) * group_scale_bytes(kind);
}

// Sizes of one prepared matrix.
struct WeightGeometry {
  WeightKind kind;
  int64_t out, in;
  int64_t chunks;      // along the columns
  int64_t tiles;       // of 16 rows, the last one perhaps not whole
  int64_t tile_bytes;  // of 16 rows
  int64_t aux_offset;
  int64_t bytes;  // a multiple of 64

  // Columns from row to row, of the kinds with rows; in general those that x must have.
  int64_t padded_in() const { return kind == WeightKind::kF32 ? in : chunks * chunk_columns(kind); }
};
WeightGeometry weight_geometry(WeightKind kind, int64_t out, int64_t in);

// A matrix on the device as kernels take it: prepared, or bf16 / f32 rows.
struct WeightView {
  const uint8_t* data;
  const uint8_t* aux;
  WeightKind kind;
  int32_t out, in, chunks;
  int64_t tile_bytes;
};

// Packs rows [first, first + rows.out) of an (out, rows.in) matrix, given as published in host memory, and calls write(offset in the
// matrix' block, data, bytes). `first` is a multiple of 128. Thread-safe.
void pack_weight(const Weight& rows, int64_t first, int64_t out, const std::function<void(int64_t, const void*, size_t)>& write);

// A row of a packed matrix in host memory, as the kernels decode it: for tests and as the definition. to: (in).
void unpack_weight_row(const WeightGeometry& g, const std::byte* block, int64_t row, float* to);

}  // namespace dg::cuda
