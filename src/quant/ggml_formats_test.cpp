// GGUF's block formats against the layouts of ggml-quants.c, element by element as ../spec quant_formats section 9.1 has
// them; the decoders work block by block.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "quant/formats.h"
#include "quant/ggml_block.h"
#include "quant/iq4_nl.h"
#include "quant/mxfp4_gguf.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"

namespace dg {
namespace {

using Block = const uint8_t*;

double half(Block p) { return f16_to_float(ggml_u16(p)); }
int nibble(Block qs, int e) { return e < 16 ? qs[e] & 15 : qs[e - 16] >> 4; }
int fifth_bit(Block qh, int e) { return static_cast<int>(ggml_u32(qh) >> e & 1) << 4; }

// Scale and minimum of sub-block i, from the picture in ggml-quants.c: bytes 0-3 and 4-7 hold the low six bits of the first
// four, bytes 8-11 the low nibbles of the last four, whose upper bits are the top bits of bytes 0-7.
std::pair<int, int> k_scale(Block b, int i) {
  if (i < 4) return {b[i] & 63, b[i + 4] & 63};
  return {(b[i + 4] & 15) + 16 * (b[i - 4] / 64), b[i + 4] / 16 + 16 * (b[i] / 64)};
}

double q2_k_value(Block p, int e) {
  const int n = e / 128, j = e % 128 / 32, h = e % 32 / 16, l = e % 16, scale = p[8 * n + 2 * j + h];
  const int q = p[16 + 32 * n + 16 * h + l] / (1 << (2 * j)) % 4;
  return half(p + 80) * (scale % 16) * q - half(p + 82) * (scale / 16);
}

double q3_k_value(Block p, int e) {
  const int n = e / 128, j = e % 128 / 32, h = e % 32 / 16, l = e % 16, s = 8 * n + 2 * j + h;
  Block scales = p + 96;
  const int low = s < 8 ? scales[s] % 16 : scales[s - 8] / 16, high = scales[8 + s % 4] / (1 << (2 * (s / 4))) % 4;
  const int q = p[32 + 32 * n + 16 * h + l] / (1 << (2 * j)) % 4 - (p[16 * h + l] & (1 << (4 * n + j)) ? 0 : 4);
  return half(p + 108) * (low + 16 * high - 32) * q;
}

double q4_k_value(Block p, int e) {
  const auto [scale, minimum] = k_scale(p + 4, e / 32);
  const int byte = p[16 + 32 * (e / 64) + e % 32], q = e / 32 % 2 ? byte / 16 : byte % 16;
  return half(p) * scale * q - half(p + 2) * minimum;
}

double q5_k_value(Block p, int e) {
  const auto [scale, minimum] = k_scale(p + 4, e / 32);
  const int byte = p[48 + 32 * (e / 64) + e % 32];
  const int q = (e / 32 % 2 ? byte / 16 : byte % 16) + 16 * (p[16 + e % 32] >> (e / 32) & 1);
  return half(p) * scale * q - half(p + 2) * minimum;
}

double q6_k_value(Block p, int e) {
  const int n = e / 128, part = e % 128 / 32, l = e % 32;
  const int low_byte = p[64 * n + (part % 2 ? 32 : 0) + l], low = part < 2 ? low_byte % 16 : low_byte / 16;
  const int q = low + 16 * (p[128 + 32 * n + l] / (1 << (2 * part)) % 4) - 32;
  return half(p + 208) * static_cast<int8_t>(p[192 + 8 * n + l / 16 + 2 * part]) * q;
}

double iq4_xs_value(Block p, int e) {
  const int b = e / 32, low = b % 2 ? p[4 + b / 2] / 16 : p[4 + b / 2] % 16, high = ggml_u16(p + 2) / (1 << (2 * b)) % 4;
  return half(p) * (low + 16 * high - 32) * kIq4Values[nibble(p + 8 + 16 * b, e % 32)];
}

double mxfp4_value(Block p, int e) {
  constexpr double kMagnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
  const int q = nibble(p + 1, e);
  return std::ldexp(q & 8 ? -kMagnitudes[q & 7] : kMagnitudes[q & 7], p[0] - 127);
}

struct Layout {
  const char* name;
  std::function<double(Block, int)> value;
  std::vector<int> halves;  // offsets of f16 members
  double error;             // of encoding normal rows: relative root mean square, from the number of levels
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> kLayouts{
      {"q8_0", [](Block p, int e) { return half(p) * static_cast<int8_t>(p[2 + e]); }, {0}, 0.006},
      {"q4_0", [](Block p, int e) { return half(p) * (nibble(p + 2, e) - 8); }, {0}, 0.10},
      {"q4_1", [](Block p, int e) { return half(p) * nibble(p + 4, e) + half(p + 2); }, {0, 2}, 0.09},
      {"q5_0", [](Block p, int e) { return half(p) * (nibble(p + 6, e) + fifth_bit(p + 2, e) - 16); }, {0}, 0.05},
      {"q5_1", [](Block p, int e) { return half(p) * (nibble(p + 8, e) + fifth_bit(p + 4, e)) + half(p + 2); }, {0, 2}, 0.045},
      {"q2_k", q2_k_value, {80, 82}, 0.40},
      {"q3_k", q3_k_value, {108}, 0.23},
      {"q4_k", q4_k_value, {0, 2}, 0.09},
      {"q5_k", q5_k_value, {0, 2}, 0.045},
      {"q6_k", q6_k_value, {208}, 0.025},
      {"iq4_nl", [](Block p, int e) { return half(p) * kIq4Values[nibble(p + 2, e)]; }, {0}, 0.10},
      {"iq4_xs", iq4_xs_value, {0}, 0.10},
      {"mxfp4_gguf", mxfp4_value, {}, 0.16},
  };
  return kLayouts;
}

class GgmlFormats : public testing::TestWithParam<size_t> {
 protected:
  const Layout& layout() const { return layouts()[GetParam()]; }
  const Format& format() const { return *find_format(layout().name); }

  // Random blocks whose scales are ordinary numbers.
  std::vector<std::byte> random_rows(int64_t rows, int64_t in, uint32_t seed) const {
    std::mt19937 rng(seed);
    std::vector<std::byte> data(static_cast<size_t>(format().data_bytes(rows, in)));
    for (auto& b : data) b = static_cast<std::byte>(rng());
    for (size_t at = 0; at < data.size(); at += static_cast<size_t>(format().pack_bytes)) {
      for (int offset : layout().halves) {
        const uint16_t h = float_to_f16(std::ldexp(1.0f + static_cast<float>(rng() % 1024) / 1024, static_cast<int>(rng() % 12) - 8));
        data[at + static_cast<size_t>(offset)] = static_cast<std::byte>(h);
        data[at + static_cast<size_t>(offset) + 1] = static_cast<std::byte>(h >> 8 | (rng() % 2 ? 0x80 : 0));
      }
      if (layout().halves.empty()) data[at] = static_cast<std::byte>(rng() % 60 + 100);
    }
    return data;
  }
};

TEST_P(GgmlFormats, DecodeFollowsTheLayout) {
  const int64_t in = 4 * format().pack_elements, rows = 5;
  const auto data = random_rows(rows, in, 7);
  const Weight w{.format = &format(), .data = data.data(), .out = rows, .in = in};
  std::vector<float> out(static_cast<size_t>(in));
  for (int64_t r = 0; r < rows; r++) {
    w.decode(r, 0, in, out.data());
    for (int64_t i = 0; i < in; i++) {
      const auto* block =
          reinterpret_cast<Block>(data.data() + r * format().row_bytes(in) + i / format().pack_elements * format().pack_bytes);
      const double expected = layout().value(block, static_cast<int>(i % format().pack_elements));
      // Two roundings of terms below 64 * 255 * 16.
      ASSERT_NEAR(out[static_cast<size_t>(i)], expected, 3e-7 * std::max(1.0, std::fabs(expected)) + 2e-3 * (layout().error > 0.3))
          << "row " << r << " element " << i;
    }
  }
}

TEST_P(GgmlFormats, DecodesFromAnyBlockAndARaggedEnd) {
  const int64_t pack = format().pack_elements, in = 3 * pack - 5;
  const auto data = random_rows(2, in, 9);
  const Weight w{.format = &format(), .data = data.data(), .out = 2, .in = in};
  std::vector<float> whole(static_cast<size_t>(in)), part(static_cast<size_t>(in) + 1, 99.0f);
  w.decode(1, 0, in, whole.data());
  for (int64_t col = 0; col < in; col += pack)
    for (int64_t n : {int64_t{1}, pack / 2 + 1, in - col}) {
      w.decode(1, col, std::min(n, in - col), part.data());
      for (int64_t i = 0; i < std::min(n, in - col); i++) ASSERT_EQ(part[static_cast<size_t>(i)], whole[static_cast<size_t>(col + i)]);
    }
  EXPECT_EQ(part.back(), 99.0f);
}

TEST_P(GgmlFormats, EncodedRowsComeBackWithinTheStep) {
  const int64_t in = 2 * format().pack_elements + (format().pack_elements == 32 ? 7 : 100), rows = 24;
  std::mt19937 rng(3);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> x(static_cast<size_t>(rows * in)), back(static_cast<size_t>(in));
  for (float& v : x) v = normal(rng);
  for (int64_t i = 0; i < in; i++) x[static_cast<size_t>(i)] = 0;  // a row of zeros stays one
  std::vector<std::byte> data(static_cast<size_t>(format().data_bytes(rows, in)), std::byte{0xcc});
  format().encode(x.data(), rows, in, data.data(), nullptr);
  const Weight w{.format = &format(), .data = data.data(), .out = rows, .in = in};
  double error = 0, power = 0;
  for (int64_t r = 0; r < rows; r++) {
    w.decode(r, 0, in, back.data());
    for (int64_t i = 0; i < in; i++) {
      const double v = x[static_cast<size_t>(r * in + i)], d = v - back[static_cast<size_t>(i)];
      if (r == 0) {
        ASSERT_EQ(back[static_cast<size_t>(i)], 0.0f) << i;
      }
      error += d * d;
      power += v * v;
    }
  }
  EXPECT_LT(std::sqrt(error / power), layout().error);
  EXPECT_GT(std::sqrt(error / power), layout().error / 6) << "the bound says nothing";
}

TEST_P(GgmlFormats, CodesTimesScalePlusOffsetIsTheValue) {
  const std::string name = layout().name;
  const bool table = name == "iq4_nl" || name == "iq4_xs" || name == "mxfp4_gguf";
  ASSERT_EQ(format().table4 != nullptr, table);
  ASSERT_EQ(format().codes4 != nullptr, table || name == "q4_0" || name == "q4_1" || name == "q4_k");
  if (!format().codes4) return;
  const int64_t in = format().pack_elements * 2 + 37;
  const auto data = random_rows(3, in, 11);
  const Weight w{.format = &format(), .data = data.data(), .out = 3, .in = in};
  std::vector<float> values(static_cast<size_t>(in));
  w.decode(2, 0, in, values.data());
  for (int64_t col : {int64_t{0}, int64_t{32}, int64_t{64}}) {
    const int64_t n = in - col, groups = (n + 31) / 32;
    std::vector<uint8_t> codes(static_cast<size_t>(n) + 1, 77);
    std::vector<float> scale(static_cast<size_t>(groups)), offset(static_cast<size_t>(groups));
    format().codes4(w, 2, col, n, codes.data(), scale.data(), table ? nullptr : offset.data());
    EXPECT_EQ(codes.back(), 77) << "wrote behind the end";
    for (int64_t i = 0; i < n; i++) {
      const auto g = static_cast<size_t>(i / 32);
      ASSERT_LT(codes[static_cast<size_t>(i)], 16);
      if (table) {
        ASSERT_EQ(scale[g] * format().table4[codes[static_cast<size_t>(i)]], values[static_cast<size_t>(col + i)]) << col << " " << i;
        continue;
      }
      const float expected = values[static_cast<size_t>(col + i)], bound = std::fabs(scale[g]) * 15 + std::fabs(offset[g]);
      ASSERT_NEAR(scale[g] * static_cast<float>(codes[static_cast<size_t>(i)]) + offset[g], expected, 3e-7f * bound) << col << " " << i;
      if (format().centred4) {
        ASSERT_EQ(offset[g], -8 * scale[g]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, GgmlFormats, testing::Range<size_t>(0, 13),
                         [](const auto& info) { return std::string(layouts()[info.param].name); });

TEST(GgmlBlocks, ExponentsOfMxfp4AreRight) {
  for (int e = 0; e < 255; e++) EXPECT_EQ(e8m0_half(static_cast<uint8_t>(e)), std::ldexp(1.0f, e - 128)) << e;
}

TEST(GgmlBlocks, HaveTheSizesOfGgml) {
  const std::pair<const char*, int> kBytes[] = {{"q8_0", 34},   {"q4_0", 18},    {"q4_1", 20},      {"q5_0", 22},  {"q5_1", 24},
                                                {"q2_k", 84},   {"q3_k", 110},   {"q4_k", 144},     {"q5_k", 176}, {"q6_k", 210},
                                                {"iq4_nl", 18}, {"iq4_xs", 136}, {"mxfp4_gguf", 17}};
  for (auto [name, bytes] : kBytes) {
    ASSERT_NE(find_format(name), nullptr) << name;
    EXPECT_EQ(find_format(name)->pack_bytes, bytes) << name;
  }
}

}  // namespace
}  // namespace dg
