// fp8_block: DeepSeek-V3's published format. E4M3 elements with one float scale per 128 x 128 block, multiplied despite
// its tensor name `weight_scale_inv`; edge blocks are partial (kv_a_proj_with_mqa: 576 rows = 4.5 blocks).
// fp8_block32 is the same with blocks of 32 x 32 (DeepSeek-V4.1).
// Source: DeepSeek-V3 README_WEIGHTS.md, inference/kernel.py; spec/quant_formats.md section 3.
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

inline constexpr int kFp8Block = 128;
inline constexpr int kFp8SmallBlock = 32;

template <int kBlock>
static inline void fp8_blocks_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + row * w.in;
  const auto* scales = reinterpret_cast<const float*>(w.scales) + row / kBlock * ((w.in + kBlock - 1) / kBlock);
  for (int64_t end = col + n; col < end;) {
    int64_t block = col / kBlock, stop = (block + 1) * kBlock;
    if (stop > end) stop = end;
    const float scale = scales[block];
    for (int64_t i = 0; i < stop - col; i++) out[i] = e4m3_to_float(p[col + i]) * scale;
    out += stop - col;
    col = stop;
  }
}
static inline void fp8_block_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  fp8_blocks_decode<kFp8Block>(w, row, col, n, out);
}
static inline void fp8_block32_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  fp8_blocks_decode<kFp8SmallBlock>(w, row, col, n, out);
}
void fp8_block_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);
void fp8_block32_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kFp8BlockFormat, kFp8Block32;

}  // namespace dg
