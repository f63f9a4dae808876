#include "device/cache_format.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tensor/dtype.h"

namespace dg {
namespace {

std::vector<float> through_int8(const std::vector<float>& values) {
  const auto width = static_cast<int64_t>(values.size());
  std::vector<unsigned char> row(static_cast<size_t>(int8_cache_row_bytes(width)) + 1, 0xa5);
  int8_cache_encode(values.data(), width, row.data());
  EXPECT_EQ(row.back(), 0xa5) << "written behind the row";
  std::vector<float> back(values.size());
  for (int64_t i = 0; i < width; i++)
    back[static_cast<size_t>(i)] =
        static_cast<float>(static_cast<int8_t>(row[static_cast<size_t>(i)])) * int8_cache_scale(row.data(), width, i);
  return back;
}

TEST(CacheFormat, RowBytes) {
  EXPECT_EQ(cache_row_bytes(Dtype::kF32, 7), 28);
  EXPECT_EQ(cache_row_bytes(Dtype::kBf16, 576), 1152);
  EXPECT_EQ(cache_row_bytes(Dtype::kF8E4m3, 576), 576);
  EXPECT_EQ(cache_row_bytes(Dtype::kI8, 576), 576 + 9 * 2);
  EXPECT_EQ(cache_row_bytes(Dtype::kI8, 65), 66 + 2 * 2);  // padded to the scales' alignment
  EXPECT_TRUE(is_cache_dtype(Dtype::kI8) && is_cache_dtype(Dtype::kF8E4m3) && !is_cache_dtype(Dtype::kU8));
}

// Half a step of the group's scale, which is its largest magnitude / 127 rounded up to f16: 2^-10 more at most.
TEST(CacheFormat, Int8StaysWithinHalfAStep) {
  for (size_t width : {1u, 7u, 64u, 65u, 200u}) {
    std::vector<float> values(width);
    for (size_t i = 0; i < width; i++) values[i] = std::sin(static_cast<float>(i) * 1.7f) * (i / 64 == 1 ? 1000.0f : 0.3f);
    const std::vector<float> back = through_int8(values);
    for (size_t group = 0; group < width; group += 64) {
      float largest = 0;
      for (size_t i = group; i < std::min(width, group + 64); i++) largest = std::max(largest, std::fabs(values[i]));
      for (size_t i = group; i < std::min(width, group + 64); i++)
        EXPECT_NEAR(back[i], values[i], largest / 127 * 0.5 * (1 + 1.0 / 512)) << i << " of " << width;
    }
  }
}

TEST(CacheFormat, Int8KeepsFaultsVisible) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    std::vector<float> values(130, 1.0f);
    values[70] = bad;
    const std::vector<float> back = through_int8(values);
    EXPECT_EQ(back[0], back[63]);
    EXPECT_NEAR(back[0], 1.0f, 0.005f);
    EXPECT_TRUE(std::isnan(back[70]));
    EXPECT_NEAR(back[129], 1.0f, 0.005f);
  }
  EXPECT_EQ(through_int8({0.0f, -0.0f}), (std::vector<float>{0.0f, 0.0f}));
  const std::vector<float> huge = through_int8({3e38f, -3e38f, 1.0f});
  EXPECT_EQ(huge[0], 127.0f * 65504.0f);
  EXPECT_EQ(huge[1], -127.0f * 65504.0f);
  const std::vector<float> tiny = through_int8({1e-30f, -1e-6f});
  EXPECT_NEAR(tiny[1], -1e-6f, 6e-8f);
}

}  // namespace
}  // namespace dg
