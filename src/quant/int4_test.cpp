// The 4- and 8-bit group formats: int4 is never looser than GGUF's Q4_0, the codes that backends repack are those that decode
// sees, and zero points do what AWQ and GPTQ mean by them.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "quant/convert.h"
#include "quant/formats.h"
#include "quant/int4_asym.h"
#include "quant/int4_group.h"
#include "tensor/tensor.h"

namespace dg {
namespace {

struct EncodedRows {
  std::vector<std::byte> data, scales;
  Weight weight;
};

EncodedRows encode_rows(const Format& format, const std::vector<float>& x, int64_t rows, int64_t cols) {
  EncodedRows e;
  e.data.resize(static_cast<size_t>(format.data_bytes(rows, cols)));
  e.scales.resize(static_cast<size_t>(format.scale_bytes(rows, cols)));
  format.encode(x.data(), rows, cols, e.data.data(), e.scales.data());
  e.weight = {&format, e.data.data(), e.scales.data(), rows, cols};
  return e;
}

// Squared error of each group of 32.
std::vector<double> group_errors(const Format& format, const std::vector<float>& x, int64_t rows, int64_t cols) {
  EncodedRows e = encode_rows(format, x, rows, cols);
  std::vector<double> errors;
  std::vector<float> y(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; r++) {
    e.weight.decode(r, 0, cols, y.data());
    for (int64_t c = 0; c < cols; c++) {
      if (c % 32 == 0) errors.push_back(0);
      errors.back() += std::pow(static_cast<double>(x[static_cast<size_t>(r * cols + c)]) - y[static_cast<size_t>(c)], 2);
    }
  }
  return errors;
}

// GGUF's Q4_0: d = value of largest magnitude / -8, codes min(15, floor(x / d + 8.5)) with d before it is rounded to f16.
double q4_0_error(const float* x) {
  float top = 0;
  for (int i = 0; i < 32; i++)
    if (std::fabs(x[i]) > std::fabs(top)) top = x[i];
  const float d = top / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f, stored = f16_to_float(float_to_f16(d));
  double error = 0;
  for (int i = 0; i < 32; i++) {
    const float q = std::min(15.0f, std::floor(x[i] * inverse + 8.5f)) - 8.0f;
    error += std::pow(static_cast<double>(x[i]) - stored * q, 2);
  }
  return error;
}

struct Sample {
  const char* name;
  std::vector<float> values;
};

std::vector<Sample> samples(size_t n) {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal(0, 0.03f);
  std::student_t_distribution<float> heavy(3);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<Sample> all{{"normal", {}}, {"heavy-tailed", {}}, {"outliers", {}}, {"uniform", {}}, {"tiny", {}}, {"one-sided", {}}};
  for (size_t i = 0; i < n; i++) {
    all[0].values.push_back(normal(rng));
    all[1].values.push_back(0.02f * heavy(rng));
    all[2].values.push_back(normal(rng) * (i % 97 == 0 ? 20.0f : 1.0f));
    all[3].values.push_back(uniform(rng));
    all[4].values.push_back(normal(rng) * 1e-5f);
    all[5].values.push_back(std::fabs(normal(rng)) + 0.05f);
  }
  return all;
}

TEST(Int4, NoGroupIsLooserThanQ4_0AndTheSumIsClearlyTighter) {
  constexpr int64_t kRows = 64, kCols = 1024;
  for (const Sample& s : samples(kRows * kCols)) {
    std::vector<double> ours = group_errors(kInt4GroupFormat, s.values, kRows, kCols);
    double sum = 0, theirs = 0;
    for (size_t g = 0; g < ours.size(); g++) {
      const double q4_0 = q4_0_error(s.values.data() + g * 32);
      // Sums in float and codes of exact ties differ in the last bits.
      ASSERT_LE(ours[g], q4_0 * (1 + 1e-5) + 1e-20) << s.name << " group " << g;
      sum += ours[g];
      theirs += q4_0;
    }
    EXPECT_LT(sum, theirs * 0.98) << s.name << ": normal 0.89, heavy-tailed 0.93, outliers 0.976, uniform 0.82";
  }
}

TEST(Int4, ZeroPointsTakeOneSidedRowsCloser) {
  constexpr int64_t kRows = 8, kCols = 256;
  for (const Sample& s : samples(kRows * kCols)) {
    double centred = 0, free = 0;
    for (double e : group_errors(kInt4GroupFormat, s.values, kRows, kCols)) centred += e;
    for (double e : group_errors(kInt4Asym, s.values, kRows, kCols)) free += e;
    if (std::string(s.name) == "one-sided") {
      EXPECT_LT(free, centred * 0.6);
    } else if (std::string(s.name) != "tiny") {  // f16 scales have few bits there
      EXPECT_LT(free, centred * 1.15) << s.name;
    }
  }
}

TEST(Int4, Codes4AreWhatDecodeSees) {
  std::vector<float> x = samples(5 * 200)[1].values;
  for (const Format* format : {&kInt4GroupFormat, &kInt4Asym}) {
    ASSERT_NE(format->codes4, nullptr);
    EncodedRows e = encode_rows(*format, x, 5, 200);
    for (int64_t row = 0; row < 5; row++)
      for (auto [col, n] : {std::pair<int64_t, int64_t>{0, 200}, {64, 128}, {192, 8}}) {
        std::vector<float> decoded(static_cast<size_t>(n)), scale(8), offset(8);
        std::vector<uint8_t> codes(static_cast<size_t>(n) + 1, 77);
        format->codes4(e.weight, row, col, n, codes.data(), scale.data(), offset.data());
        e.weight.decode(row, col, n, decoded.data());
        for (int64_t k = 0; k < n; k++) {
          const auto g = static_cast<size_t>(k / 32);
          ASSERT_LE(codes[static_cast<size_t>(k)], 15);
          ASSERT_NEAR(scale[g] * codes[static_cast<size_t>(k)] + offset[g], decoded[static_cast<size_t>(k)],
                      std::fabs(scale[g]) * 16 * 1.2e-7);
          if (format->centred4) {
            ASSERT_EQ(offset[g], scale[g] * -8);
          }
        }
        EXPECT_EQ(codes.back(), 77) << "written behind the end";
      }
  }
}

TEST(Int4, ZeroPointsAboveTheLargestCodeKeepTheirValue) {
  Int4AsymPack nibbles{float_to_f16(0.5f), 16, {}};
  Weight w{&kInt4Asym, reinterpret_cast<const std::byte*>(&nibbles), nullptr, 1, 32};
  nibbles.q[3] = 0xf2;
  std::vector<float> row(32);
  w.decode(0, 0, 32, row.data());
  EXPECT_EQ(row[3], 0.5f * (2 - 16));
  EXPECT_EQ(row[19], 0.5f * (15 - 16));
  Int8AsymPack bytes{float_to_f16(0.25f), 256, {}};
  Weight w8{&kInt8Asym, reinterpret_cast<const std::byte*>(&bytes), nullptr, 1, 20};
  bytes.q[19] = 255;
  w8.decode(0, 0, 20, row.data());
  EXPECT_EQ(row[19], -0.25f);
  EXPECT_EQ(row[0], -64.0f);
}

TEST(Int4, NotANumberEncodesToSomethingReadable) {
  std::vector<float> x(64, NAN);
  x[1] = INFINITY;
  for (const Format* format : {&kInt4GroupFormat, &kInt4Asym, &kInt8Asym}) {
    EncodedRows e = encode_rows(*format, x, 1, 64);
    std::vector<float> row(64);
    e.weight.decode(0, 0, 64, row.data());
    for (float v : row) EXPECT_TRUE(std::isfinite(v)) << format->name;
  }
}

}  // namespace
}  // namespace dg
