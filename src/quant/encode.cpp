// Encoders of the float formats; encode_int.cpp has the integer ones. They run once per weight at load, in parallel over row
// blocks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"
#include "quant/fp8_channel.h"

namespace dg {
namespace {

float abs_max(const float* x, int64_t n) {
  float top = 0;
  for (int64_t i = 0; i < n; i++) top = std::max(top, std::fabs(x[i]));
  return top;
}

template <int kBlock>
void fp8_blocks_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  auto* out = reinterpret_cast<uint8_t*>(data);
  auto* scale_out = reinterpret_cast<float*>(scales);
  int64_t scale_cols = (cols + kBlock - 1) / kBlock;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock)
    for (int64_t c0 = 0; c0 < cols; c0 += kBlock) {
      int64_t r1 = std::min(rows, r0 + kBlock), c1 = std::min(cols, c0 + kBlock);
      float top = 1e-12f;
      for (int64_t r = r0; r < r1; r++) top = std::max(top, abs_max(source + r * cols + c0, c1 - c0));
      float scale = top / 448.0f;
      scale_out[r0 / kBlock * scale_cols + c0 / kBlock] = scale;
      for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) out[r * cols + c] = float_to_e4m3(source[r * cols + c] / scale);
    }
}

}  // namespace

void f32_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  std::memcpy(data, source, static_cast<size_t>(rows * cols) * 4);
}

void bf16_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  auto* out = reinterpret_cast<uint16_t*>(data);
  for (int64_t i = 0; i < rows * cols; i++) out[i] = float_to_bf16(source[i]);
}

void f16_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  auto* out = reinterpret_cast<uint16_t*>(data);
  for (int64_t i = 0; i < rows * cols; i++) out[i] = float_to_f16(source[i]);
}

void fp8_block_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  fp8_blocks_encode<kFp8Block>(source, rows, cols, data, scales);
}
void fp8_block32_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  fp8_blocks_encode<kFp8SmallBlock>(source, rows, cols, data, scales);
}

void fp8_channel_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  auto* out = reinterpret_cast<uint8_t*>(data);
  for (int64_t r = 0; r < rows; r++) {
    float scale = std::max(abs_max(source + r * cols, cols), 1e-12f) / 448.0f;
    reinterpret_cast<float*>(scales)[r] = scale;
    for (int64_t c = 0; c < cols; c++) out[r * cols + c] = float_to_e4m3(source[r * cols + c] / scale);
  }
}

}  // namespace dg
