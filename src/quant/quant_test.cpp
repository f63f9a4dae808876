#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/fp8_block.h"
#include "quant/int4_group.h"
#include "quant/q8_0.h"

namespace dg {
namespace {

// Value of an E4M3 code by the definition: (-1)^s 2^(e-7) (1 + m/8), subnormal 2^-6 m/8.
float e4m3_by_definition(int code) {
  int e = code >> 3 & 15, m = code & 7;
  float v = e == 0 ? std::ldexp(static_cast<float>(m), -9) : std::ldexp(1.0f + static_cast<float>(m) / 8.0f, e - 7);
  return code & 0x80 ? -v : v;
}

TEST(Convert, E4m3DecodesEveryCodeAndEncodesItBack) {
  for (int code = 0; code < 256; code++) {
    if ((code & 0x7f) == 0x7f) continue;  // NaN
    EXPECT_EQ(e4m3_to_float(static_cast<uint8_t>(code)), e4m3_by_definition(code)) << code;
    EXPECT_EQ(float_to_e4m3(e4m3_by_definition(code)), code) << code;
  }
}

TEST(Convert, E4m3RoundsToNearestEven) {
  std::mt19937 rng(1);
  std::uniform_real_distribution<float> exponent(-12, 9), mantissa(1, 2);
  for (int i = 0; i < 200000; i++) {
    float x = std::exp2(exponent(rng)) * mantissa(rng) * (i % 2 ? -1.0f : 1.0f);
    int best = 0;
    float best_error = INFINITY;
    for (int code = 0; code < 127; code++) {
      float error = std::fabs(e4m3_by_definition(code) - std::fabs(x));
      bool tie = error == best_error;
      if (error < best_error || (tie && code % 2 == 0)) best = code, best_error = error;
    }
    EXPECT_EQ(float_to_e4m3(x) & 0x7f, best) << x;
    if (best) {
      EXPECT_EQ(float_to_e4m3(x) >> 7, i % 2) << x;
    }
  }
  EXPECT_EQ(float_to_e4m3(1e9f), 0x7e);
  EXPECT_EQ(float_to_e4m3(464.0f), 0x7e);
  EXPECT_EQ(float_to_e4m3(NAN) & 0x7f, 0x7f);
}

TEST(Convert, F16RoundTripsEveryCode) {
  for (int code = 0; code < 65536; code++) {
    auto half = static_cast<uint16_t>(code);
    float f = f16_to_float(half);
    if (std::isnan(f)) {
      EXPECT_GT(code & 0x7fff, 0x7c00);
      continue;
    }
    int e = code >> 10 & 31, m = code & 1023;
    float v = e == 31  ? INFINITY
              : e == 0 ? std::ldexp(static_cast<float>(m), -24)
                       : std::ldexp(1.0f + static_cast<float>(m) / 1024.0f, e - 15);
    EXPECT_EQ(f, code & 0x8000 ? -v : v) << code;
    EXPECT_EQ(float_to_f16(f), half) << code;
  }
  EXPECT_EQ(float_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
}

TEST(Convert, Bf16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(float_to_bf16(bits_to_float(0x3f808000)), 0x3f80);  // tie to even
  EXPECT_EQ(float_to_bf16(bits_to_float(0x3f818000)), 0x3f82);
  EXPECT_EQ(float_to_bf16(bits_to_float(0x3f808001)), 0x3f81);
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(bits_to_float(0x7f800001)))));
  EXPECT_EQ(bf16_to_float(float_to_bf16(INFINITY)), INFINITY);
}

struct Encoded {
  std::vector<std::byte> data, scales;
  Weight weight;
};

Encoded encode(const Format& format, const std::vector<float>& x, int64_t rows, int64_t cols) {
  Encoded e;
  e.data.resize(static_cast<size_t>(format.data_bytes(rows, cols)));
  e.scales.resize(static_cast<size_t>(format.scale_bytes(rows, cols)));
  format.encode(x.data(), rows, cols, e.data.data(), e.scales.data());
  e.weight = {&format, e.data.data(), e.scales.data(), rows, cols};
  return e;
}

std::vector<float> gaussian(size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

// Root mean square error of encode + decode relative to the root mean square of the input.
double relative_error(const Format& format, int64_t rows, int64_t cols) {
  std::vector<float> x = gaussian(static_cast<size_t>(rows * cols), 7), y(static_cast<size_t>(cols));
  Encoded e = encode(format, x, rows, cols);
  double error = 0, square = 0;
  for (int64_t r = 0; r < rows; r++) {
    e.weight.decode(r, 0, cols, y.data());
    for (int64_t c = 0; c < cols; c++) {
      double d = static_cast<double>(x[static_cast<size_t>(r * cols + c)]) - y[static_cast<size_t>(c)];
      error += d * d;
      square += static_cast<double>(x[static_cast<size_t>(r * cols + c)]) * x[static_cast<size_t>(r * cols + c)];
    }
  }
  return std::sqrt(error / square);
}

TEST(Formats, ErrorOfEachFormatIsWhatItsBitsAllow) {
  // Expected for Gaussian data: bf16 2^-9 uniform, e4m3 about 2.6 %, int8 per 32 about 0.6 %, per row 0.8 %, int4 8 %.
  struct Limit {
    const char* name;
    double low, high;
  };
  constexpr Limit kLimits[] = {
      {"f32", 0, 0},           {"bf16", 1e-4, 3e-3},   {"f16", 1e-5, 5e-4},       {"fp8_block", 1e-2, 3e-2}, {"fp8_block32", 1e-2, 3e-2},
      {"fp8_channel", 1e-2, 3e-2}, {"q8_0", 2e-3, 7e-3}, {"int8", 3e-3, 1.3e-2},  {"int8_asym", 2e-3, 7e-3}, {"int4", 4e-2, 9e-2},
      {"int4_asym", 4e-2, 9e-2},
  };
  for (const Limit& limit : kLimits) {
    const Format* format = find_format(limit.name);
    ASSERT_NE(format, nullptr) << limit.name;
    for (auto [rows, cols] : {std::pair<int64_t, int64_t>{256, 512}, {131, 333}, {1, 1}, {5, 40}}) {
      double error = relative_error(*format, rows, cols);
      if (rows * cols > 1000) {
        EXPECT_GE(error, limit.low) << limit.name;
      }
      EXPECT_LE(error, limit.high) << limit.name << " " << rows << "x" << cols;
    }
  }
}

TEST(Formats, Int4IsNotLooserThanPlainAbsmaxRounding) {
  std::vector<float> x = gaussian(64 * 1024, 3), y(1024);
  Encoded e = encode(kInt4GroupFormat, x, 64, 1024);
  double ours = 0, plain = 0;
  for (int64_t r = 0; r < 64; r++) {
    e.weight.decode(r, 0, 1024, y.data());
    for (size_t g = 0; g < 32; g++) {
      const float* block = x.data() + static_cast<size_t>(r) * 1024 + g * 32;
      float top = 0;
      for (int i = 0; i < 32; i++)
        if (std::fabs(block[i]) > std::fabs(top)) top = block[i];
      float scale = f16_to_float(float_to_f16(top / -8.0f));
      for (size_t i = 0; i < 32; i++) {
        double d = static_cast<double>(block[i]) - y[g * 32 + i];
        double q = std::min(15.0, std::floor(block[i] / scale + 8.5)) - 8.0;
        ours += d * d;
        plain += std::pow(block[i] - scale * q, 2);
      }
    }
  }
  EXPECT_LT(ours, plain);
}

TEST(Formats, PartialReadsEqualWholeRows) {
  std::vector<float> x = gaussian(40 * 200, 9), row(200), part(200);
  for (const Format* format : all_formats()) {
    if (200 % format->pack_elements != 0 && format->pack_elements > 32) continue;  // rows are whole packs: see their own tests
    Encoded e = encode(*format, x, 40, 200);
    for (int64_t r : {0, 17, 39}) {
      e.weight.decode(r, 0, 200, row.data());
      for (int64_t col = 0; col < 200; col += 32)
        for (int64_t n : {int64_t{1}, int64_t{8}, std::min<int64_t>(96, 200 - col)}) {
          if (n > 200 - col) continue;
          e.weight.decode(r, col, n, part.data());
          for (int64_t i = 0; i < n; i++) ASSERT_EQ(part[static_cast<size_t>(i)], row[static_cast<size_t>(col + i)]) << format->name;
        }
    }
  }
}

TEST(Formats, Fp8UsesTheScaleOfTheElementsBlock) {
  constexpr int64_t kRows = 130, kCols = 257;  // ragged: 2 x 3 blocks
  std::vector<uint8_t> data(kRows * kCols, float_to_e4m3(1.0f));
  std::vector<float> scales = {1, 2, 3, 4, 5, 6}, row(kCols);
  Weight w{&kFp8BlockFormat, reinterpret_cast<std::byte*>(data.data()), reinterpret_cast<std::byte*>(scales.data()), kRows, kCols};
  w.decode(127, 0, kCols, row.data());
  EXPECT_EQ(row[0], 1);
  EXPECT_EQ(row[127], 1);
  EXPECT_EQ(row[128], 2);
  EXPECT_EQ(row[256], 3);
  w.decode(129, 120, 20, row.data());
  EXPECT_EQ(row[7], 4);
  EXPECT_EQ(row[8], 5);
}

TEST(Formats, ByteCounts) {
  EXPECT_EQ(kFp8BlockFormat.total_bytes(576, 7168), 576 * 7168 + 5 * 56 * 4);  // V3 kv_a_proj_with_mqa
  EXPECT_EQ(kQ80.total_bytes(2, 64), 2 * 2 * 34);
  EXPECT_EQ(kInt4GroupFormat.total_bytes(1, 33), 2 * 16 + 2 * 2);
  EXPECT_EQ(find_format("nf4"), nullptr);
  EXPECT_EQ(format_names().find("f32, bf16, f16, fp8_block, q8_0, int8, int4"), 0u);
}

}  // namespace
}  // namespace dg
