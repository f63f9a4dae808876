// fp8_block: DeepSeek-V3's published format. E4M3 elements with one float scale per 128 x 128 block, multiplied despite
// its tensor name `weight_scale_inv`; edge blocks are partial (kv_a_proj_with_mqa: 576 rows = 4.5 blocks).
// Source: DeepSeek-V3 README_WEIGHTS.md, inference/kernel.py.
#pragma once
#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

inline constexpr int kFp8Block = 128;

static inline void fp8_block_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const auto* p = reinterpret_cast<const uint8_t*>(w.data) + row * w.in;
  const auto* scales = reinterpret_cast<const float*>(w.scales) + row / kFp8Block * ((w.in + kFp8Block - 1) / kFp8Block);
  for (int64_t end = col + n; col < end;) {
    int64_t block = col / kFp8Block, stop = (block + 1) * kFp8Block;
    if (stop > end) stop = end;
    const float scale = scales[block];
    for (int64_t i = 0; i < stop - col; i++) out[i] = e4m3_to_float(p[col + i]) * scale;
    out += stop - col;
    col = stop;
  }
}
void fp8_block_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales);

extern const Format kFp8BlockFormat;

}  // namespace dg
