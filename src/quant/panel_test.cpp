#include "quant/panel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "quant/formats.h"
#include "quant/iq4_nl.h"
#include "quant/mxfp4_gguf.h"
#include "quant/q4_0.h"
#include "quant/q8_0.h"

namespace dg {
namespace {

struct Packed {
  explicit Packed(const Weight& from)
      : bytes(static_cast<size_t>(panel_bytes(*from.format, from.out, from.in)), std::byte{0x5a}), weight(from) {
    panel_pack(from, 0, from.out, bytes.data());
    weight.data = bytes.data();
  }
  std::vector<std::byte> bytes;
  Weight weight;
};

// f(row, column, published, packed) for every element of w.
template <class F>
void each_element(const Weight& w, F f) {
  const Packed p(w);
  std::vector<float> published(static_cast<size_t>(w.in)), packed(published);
  for (int64_t row = 0; row < w.out; row++) {
    w.decode(row, 0, w.in, published.data());
    panel_decode(p.weight, row, 0, w.in, packed.data());
    for (int64_t k = 0; k < w.in; k++) f(row, k, published[static_cast<size_t>(k)], packed[static_cast<size_t>(k)]);
  }
}

// Random MXFP4 rows whose exponents lie in [lowest, lowest + spread].
std::vector<std::byte> mxfp4_rows(int64_t rows, int64_t in, int lowest, int spread, unsigned seed) {
  std::mt19937 rng(seed);
  std::vector<std::byte> data(static_cast<size_t>(kMxfp4Gguf.data_bytes(rows, in)));
  for (size_t i = 0; i < data.size(); i++)
    data[i] = static_cast<std::byte>(i % 17 == 0 ? static_cast<unsigned>(lowest) + rng() % static_cast<unsigned>(spread + 1) : rng());
  return data;
}

// A block of 512 whose scales lie within a factor of 8 is held exactly, whatever the exponent: the smallest, 2^-127, are subnormal
// floats and far below those of f16.
TEST(Panel, Mxfp4IsExact) {
  constexpr int64_t kRows = 21, kIn = 1100;
  for (int lowest : {0, 1, 2, 60, 124, 127, 200, 251}) {
    const auto data = mxfp4_rows(kRows, kIn, lowest, 3, 5);
    const Weight w{.format = &kMxfp4Gguf, .data = data.data(), .out = kRows, .in = kIn};
    each_element(w, [&](int64_t row, int64_t k, float expected, float actual) {
      ASSERT_EQ(actual, expected) << "exponents from " << lowest << " at " << row << ", " << k;
    });
    if (HasFatalFailure()) return;
  }
}

// Scales further apart: half a step of the block's largest, which is 1/8 of the unit of that group's codes.
TEST(Panel, Mxfp4KeepsTheBlockToHalfAStep) {
  constexpr int64_t kIn = 1024;
  const auto data = mxfp4_rows(16, kIn, 100, 20, 6);
  const Weight w{.format = &kMxfp4Gguf, .data = data.data(), .out = 16, .in = kIn};
  each_element(w, [&](int64_t row, int64_t k, float expected, float actual) {
    const int64_t begin = k / kPanelBlock * kPanelBlock;
    float largest = 0;
    for (int64_t i = begin; i < begin + kPanelBlock; i += 32)
      largest = std::max(largest, e8m0_half(static_cast<uint8_t>(data[static_cast<size_t>((row * kIn + i) / 32 * 17)])));
    ASSERT_LE(std::fabs(actual - expected), largest / 16) << row << ", " << k;
  });
}

// Negative scales, as llama.cpp writes them, a block of zeros and rows behind the end.
TEST(Panel, TablesTakeScalesOfBothSigns) {
  constexpr int64_t kRows = 18, kIn = 1056;
  std::mt19937 rng(3);
  std::vector<std::byte> data(static_cast<size_t>(kIq4Nl.data_bytes(kRows, kIn)));
  for (size_t block = 0; block < data.size() / 18; block++) {
    auto* at = reinterpret_cast<uint8_t*>(data.data()) + block * 18;
    for (int i = 0; i < 18; i++) at[i] = static_cast<uint8_t>(rng());
    const bool zero = block < 33 && block >= 16 && block < 32;  // columns 512 .. 1023 of row 0
    const uint16_t d = zero ? 0 : float_to_f16((rng() % 2 ? 1.0f : -1.0f) * (0.01f + static_cast<float>(rng() % 100) / 1000));
    at[0] = static_cast<uint8_t>(d), at[1] = static_cast<uint8_t>(d >> 8);
  }
  const Weight w{.format = &kIq4Nl, .data = data.data(), .out = kRows, .in = kIn};
  each_element(w, [&](int64_t row, int64_t k, float expected, float actual) {
    const int64_t begin = k / kPanelBlock * kPanelBlock, end = std::min(kIn, begin + kPanelBlock);
    std::vector<float> block(static_cast<size_t>(end - begin));
    w.decode(row, begin, end - begin, block.data());
    float most = 0;
    for (float v : block) most = std::max(most, std::fabs(v));
    ASSERT_LE(std::fabs(actual - expected), most / 100) << row << ", " << k;
  });
}

// One scale in a block, as repacked GPTQ and compressed-tensors rows have it: the published codes. -128 becomes -127. Different scales, of
// both signs: half a step of the largest.
TEST(Panel, Q80KeepsTheCodesOfOneScale) {
  constexpr int64_t kRows = 19, kIn = 1100;
  for (const bool same : {true, false}) {
    std::mt19937 rng(4);
    std::vector<std::byte> data(static_cast<size_t>(kQ80.data_bytes(kRows, kIn)));
    auto* packs = reinterpret_cast<Q80Pack*>(data.data());
    for (size_t i = 0; i < data.size() / sizeof(Q80Pack); i++) {
      const float scale = 0.01f * (same ? 1.0f : static_cast<float>(rng() % 100) - 50);
      packs[i].scale = float_to_f16(scale);
      for (int8_t& q : packs[i].q) q = static_cast<int8_t>(rng());
    }
    const Weight w{.format = &kQ80, .data = data.data(), .out = kRows, .in = kIn};
    each_element(w, [&](int64_t row, int64_t k, float expected, float actual) {
      const int64_t begin = k / kPanelBlock * kPanelBlock, end = std::min(kIn, begin + kPanelBlock);
      const Q80Pack* const packs_of_row = packs + row * ((kIn + 31) / 32);
      float step = 0;
      for (int64_t i = begin; i < end; i += 32) step = std::max(step, std::fabs(f16_to_float(packs_of_row[i / 32].scale)));
      const bool least = packs_of_row[k / 32].q[k % 32] == -128;
      const float bound = least ? 1.001f * step : same ? 1e-6f * std::fabs(expected) : 0.51f * step;
      ASSERT_NEAR(actual, expected, bound) << row << ", " << k;
    });
  }
}

// What repacking costs in memory: never twice the published bytes.
TEST(Panel, BytesPerWeight) {
  constexpr int64_t kRows = 1024, kIn = 4096;
  for (const Format* format : all_formats()) {
    if (panel_kind(*format) == PanelKind::kNone || format->row_bytes(kIn) * 8 < kIn * 4) continue;  // q2_k, q3_k
    const double ratio = static_cast<double>(panel_bytes(*format, kRows, kIn)) / static_cast<double>(format->total_bytes(kRows, kIn));
    EXPECT_LT(ratio, format->codes4 ? 1.05 : 1.5) << format->name;
  }
  EXPECT_EQ(panel_bytes(kMxfp4Gguf, kRows, kIn) * 8, kRows * kIn / 512 * (512 * 4 + 16 * 8 + 32));
  EXPECT_EQ(panel_bytes(kIq4Nl, kRows, kIn), panel_bytes(kMxfp4Gguf, kRows, kIn));
  EXPECT_EQ(panel_bytes(kIq4Nl, kRows, kIn), panel_bytes(kQ40, kRows, kIn));
}

}  // namespace
}  // namespace dg
