// AMX tile instructions. GCC 12's intrinsics declare too small memory operands (8 bytes for the configuration, none for tile
// loads), so that the optimiser drops the stores that fill the memory they read: these are written with a memory clobber.
//
// A worker brackets its use of the tiles with TileScope. All eight tiles are 16 rows x 64 bytes; shorter operands are padded
// with zeros by whoever packs them. Tile operands are numbers 0-7 known at compile time.
// A: 16 rows of K elements (64 bytes). B: row r holds elements 4r..4r+3 (int8) or 2r, 2r+1 (bf16) of 16 columns. C += A B.
#pragma once
#include <cstdint>

namespace dg::DG_ISA_NAMESPACE {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

class TileScope {
 public:
  TileScope() {
    TileConfig config;
    asm volatile("ldtilecfg (%0)" ::"r"(&config) : "memory");
  }
  ~TileScope() { asm volatile("tilerelease" ::: "memory"); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

#define DG_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define DG_TILE_LOAD(t, base, stride_bytes) \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(base), "r"(static_cast<int64_t>(stride_bytes)) : "memory")
#define DG_TILE_STORE(t, base, stride_bytes) \
  asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(base), "r"(static_cast<int64_t>(stride_bytes)) : "memory")
#define DG_TILE_DOT_INT8(c, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define DG_TILE_DOT_BF16(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
