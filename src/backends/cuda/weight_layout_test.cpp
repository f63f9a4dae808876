// The device layouts hold the published weights: packed on the host in the loader's pieces, read back, compared.
#include "backends/cuda/weight_layout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "quant/formats.h"

namespace dg::cuda {
namespace {

class WeightLayoutTest : public ::testing::TestWithParam<std::string> {};

TEST_P(WeightLayoutTest, UnpackedIsWhatWasPublished) {
  const Format& format = *find_format(GetParam());
  const WeightKind kind = weight_kind(published(format));
  if (kind == WeightKind::kF32) return;  // never packed
  std::mt19937 engine(7);
  std::normal_distribution<float> normal;
  struct Shape {
    int64_t out, in;
  };
  for (Shape s : {Shape{1, 1}, {3, 33}, {17, 127}, {130, 530}, {300, 256}, {257, 1100}}) {
    std::vector<float> values(static_cast<size_t>(s.out * s.in));
    for (float& v : values) v = 0.05f * normal(engine);
    std::vector<std::byte> data(static_cast<size_t>(format.data_bytes(s.out, s.in))),
        scales(static_cast<size_t>(format.scale_bytes(s.out, s.in)) + 4);
    format.encode(values.data(), s.out, s.in, data.data(), scales.data());
    const WeightGeometry g = weight_geometry(kind, s.out, s.in);
    ASSERT_EQ(g.bytes % 64, 0);
    std::vector<std::byte> block(static_cast<size_t>(g.bytes), std::byte{0xff});
    for (int64_t first = 0; first < s.out; first += 128) {
      Weight rows{&format, data.data() + format.data_bytes(first, s.in), scales.data() + format.scale_bytes(first, s.in),
                  std::min<int64_t>(128, s.out - first), s.in};
      pack_weight(rows, first, s.out, [&](int64_t offset, const void* from, size_t bytes) {
        ASSERT_LE(offset + static_cast<int64_t>(bytes), g.bytes);
        std::memcpy(block.data() + offset, from, bytes);
      });
    }
    const Weight whole{&format, data.data(), scales.data(), s.out, s.in};
    std::vector<float> expected(static_cast<size_t>(s.in)), actual(expected);
    for (int64_t row = 0; row < s.out; row++) {
      whole.decode(row, 0, s.in, expected.data());
      unpack_weight_row(g, block.data(), row, actual.data());
      float most = 0;
      for (float v : expected) most = std::max(most, std::fabs(v));
      for (int64_t k = 0; k < s.in; k++) {
        const float e = expected[static_cast<size_t>(k)];
        double bound = 0;
        if (kind == WeightKind::kBf16 && GetParam() != "bf16") bound = std::fabs(e) / 256;
        if (kind == WeightKind::kIq4) bound = most / 2048;              // the scale is rounded to f16
        if (kind == WeightKind::kCode4Offset) bound = 3 * most / 2048;  // so are 15 scale <= 2 most and offset
        if (kind == WeightKind::kCode8Offset) bound = 1e-5 * most;
        ASSERT_NEAR(actual[static_cast<size_t>(k)], e, bound) << s.out << " x " << s.in << " at " << row << ", " << k;
      }
    }
  }
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const Format* f : all_formats()) all.push_back(f->name);
  return all;
}
INSTANTIATE_TEST_SUITE_P(Formats, WeightLayoutTest, ::testing::ValuesIn(names()), [](const auto& info) { return info.param; });

TEST(WeightLayout, EveryFormatIsKnown) {
  for (const Format* f : all_formats()) EXPECT_NE(published(*f), Published::kCount) << f->name;
}

}  // namespace
}  // namespace dg::cuda
