// Encoders of all formats. They run once per weight at load, in parallel over row blocks; the loops vectorise.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/q8_0.h"

namespace dg {
namespace {

float abs_max(const float* x, int64_t n) {
  float top = 0;
  for (int64_t i = 0; i < n; i++) top = std::max(top, std::fabs(x[i]));
  return top;
}

// Nearest integer of |v| < 2^22 by adding and taking away 1.5 * 2^23; unlike lrintf this vectorises.
float rounded(float v) { return (v + 12582912.0f) - 12582912.0f; }
float rounded_clamped(float v, float low, float high) { return std::min(std::max(rounded(v), low), high); }

// Squared error, weighted by x^2 (large weights matter more to the output), of one group rounded with `scale`. Eight
// partial sums, so that the loop runs in vector registers.
float int4_error(const float* x, float scale) {
  float sums[8] = {};
  const float inverse = 1.0f / scale;
  for (int i = 0; i < kInt4Group; i += 8)
    for (int lane = 0; lane < 8; lane++) {
      float v = x[i + lane], d = v - scale * rounded_clamped(v * inverse, -8.0f, 7.0f);
      sums[lane] += d * d * (v * v + 1e-12f);
    }
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// The scale of one padded group with the least error among candidates around absmax / -8 (the element of largest
// magnitude gets code -8 or +7). Returns the scale as it will be stored (f16).
float int4_scale(const float* x) {
  float top = 0;
  for (int i = 0; i < kInt4Group; i++)
    if (std::fabs(x[i]) > std::fabs(top)) top = x[i];
  float best_scale = 0, best_error = INFINITY;
  for (int step = -5; step <= 5; step++) {
    float scale = f16_to_float(float_to_f16(top / (-8.0f + 0.15f * static_cast<float>(step))));
    if (scale == 0) continue;
    float error = int4_error(x, scale);
    if (error < best_error) best_error = error, best_scale = scale;
  }
  return best_scale;
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
  auto* out = reinterpret_cast<uint8_t*>(data);
  auto* scale_out = reinterpret_cast<float*>(scales);
  int64_t scale_cols = (cols + kFp8Block - 1) / kFp8Block;
  for (int64_t r0 = 0; r0 < rows; r0 += kFp8Block)
    for (int64_t c0 = 0; c0 < cols; c0 += kFp8Block) {
      int64_t r1 = std::min(rows, r0 + kFp8Block), c1 = std::min(cols, c0 + kFp8Block);
      float top = 1e-12f;
      for (int64_t r = r0; r < r1; r++) top = std::max(top, abs_max(source + r * cols + c0, c1 - c0));
      float scale = top / 448.0f;
      scale_out[r0 / kFp8Block * scale_cols + c0 / kFp8Block] = scale;
      for (int64_t r = r0; r < r1; r++)
        for (int64_t c = c0; c < c1; c++) out[r * cols + c] = float_to_e4m3(source[r * cols + c] / scale);
    }
}

void q8_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  int64_t packs = (cols + 31) / 32;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t b = 0; b < packs; b++) {
      auto* pack = reinterpret_cast<Q80Pack*>(data + (r * packs + b) * 34);
      const float* x = source + r * cols + b * 32;
      int n = static_cast<int>(std::min<int64_t>(32, cols - b * 32));
      float scale = abs_max(x, n) / 127.0f;
      pack->scale = float_to_f16(scale);
      float stored = f16_to_float(pack->scale), inverse = stored > 0 ? 1.0f / stored : 0.0f;
      for (int i = 0; i < 32; i++) pack->q[i] = i < n ? static_cast<int8_t>(rounded_clamped(x[i] * inverse, -127, 127)) : int8_t{0};
    }
}

void int8_channel_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  auto* out = reinterpret_cast<int8_t*>(data);
  for (int64_t r = 0; r < rows; r++) {
    const float* x = source + r * cols;
    float scale = abs_max(x, cols) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
    reinterpret_cast<float*>(scales)[r] = scale;
    for (int64_t i = 0; i < cols; i++) out[r * cols + i] = static_cast<int8_t>(rounded_clamped(x[i] * inverse, -127, 127));
  }
}

void int4_group_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  int64_t groups = (cols + kInt4Group - 1) / kInt4Group;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < groups; g++) {
      int64_t n = std::min<int64_t>(kInt4Group, cols - g * kInt4Group);
      float x[kInt4Group] = {};
      std::memcpy(x, source + r * cols + g * kInt4Group, static_cast<size_t>(n) * 4);
      float scale = int4_scale(x), inverse = scale != 0 ? 1.0f / scale : 0.0f;
      reinterpret_cast<uint16_t*>(scales)[r * groups + g] = float_to_f16(scale);
      auto* p = reinterpret_cast<uint8_t*>(data) + (r * groups + g) * 16;
      auto code = [&](int j) { return static_cast<unsigned>(static_cast<int>(rounded_clamped(x[j] * inverse, -8, 7)) + 8); };
      for (int j = 0; j < 16; j++) p[j] = static_cast<uint8_t>(code(j) | code(j + 16) << 4);
    }
}

}  // namespace dg
