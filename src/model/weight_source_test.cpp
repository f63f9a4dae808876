// Checkpoints in every published scheme, written here from known codes, scales and zero points, must load to the numbers of
// the scheme's formula, bit for bit.
#include "model/weight_source.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <filesystem>
#include <functional>
#include <numeric>
#include <random>

#include "backends/cpu/reference.h"
#include "backends/dry/dry.h"
#include "device/memory_backend_for_tests.h"
#include "io/safetensors.h"
#include "model/weight_store.h"
#include "quant/convert.h"
#include "quant/f32.h"
#include "quant/int4_group.h"
#include "quant/panel.h"

namespace dg {
namespace {

using Shape = std::vector<int64_t>;

// A matrix (out, in) as codes with a scale and a zero point per (group, out); group_of[k] is the group of column k.
struct Coded {
  int64_t out, in, groups;
  int bits;
  std::vector<int> codes;  // [n * in + k]
  std::vector<int> zeros;  // [g * out + n]
  std::vector<float> scales;
  std::vector<int32_t> group_of;

  float value(int64_t n, int64_t k) const {
    const int64_t g = group_of[static_cast<size_t>(k)];
    const int code = codes[static_cast<size_t>(n * in + k)], zero = zeros[static_cast<size_t>(g * out + n)];
    return scales[static_cast<size_t>(g * out + n)] * static_cast<float>(code - zero);
  }
};

// Scales are f16 numbers. `centred`: all zero points are 2^(bits - 1). `shuffled`: columns of a group lie anywhere.
Coded make_coded(int64_t out, int64_t in, int64_t group, int bits, bool centred, int lowest_zero, int highest_zero, bool shuffled) {
  Coded c{out, in, (in + group - 1) / group, bits, {}, {}, {}, {}};
  std::mt19937 rng(static_cast<unsigned>(out * 31 + in * 7 + bits));
  std::uniform_int_distribution<int> code(0, (1 << bits) - 1), zero(lowest_zero, highest_zero);
  std::uniform_real_distribution<float> scale(0.001f, 0.02f);
  for (int64_t i = 0; i < out * in; i++) c.codes.push_back(code(rng));
  for (int64_t i = 0; i < c.groups * out; i++) {
    c.zeros.push_back(centred ? 1 << (bits - 1) : zero(rng));
    c.scales.push_back(f16_to_float(float_to_f16(scale(rng))));
  }
  for (int64_t k = 0; k < in; k++) c.group_of.push_back(static_cast<int32_t>(k / group));
  if (shuffled) std::shuffle(c.group_of.begin(), c.group_of.end(), rng);
  return c;
}

class WeightSourceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/dougong source XXXXXX";
    directory_ = mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  template <class T>
  void add(const std::string& name, Dtype dtype, Shape shape, const std::vector<T>& data) {
    auto bytes = std::as_bytes(std::span(data));
    storage_.emplace_back(bytes.begin(), bytes.end());
    tensors_.push_back({name, dtype, std::move(shape), storage_.back()});
  }
  TensorToWrite& tensor(const std::string& name) {
    auto it = std::find_if(tensors_.begin(), tensors_.end(), [&](const TensorToWrite& t) { return t.name == name; });
    EXPECT_NE(it, tensors_.end()) << name;
    return *it;
  }
  void remove(const std::string& name) {
    std::erase_if(tensors_, [&](const TensorToWrite& t) { return t.name == name; });
  }
  void clear() { tensors_.clear(), storage_.clear(); }

  void add_f16(const std::string& name, Shape shape, const std::vector<float>& values) {
    std::vector<uint16_t> half;
    for (float v : values) half.push_back(float_to_f16(v));
    add(name, Dtype::kF16, std::move(shape), half);
  }

  // AWQ as the spec words it: the nibble at bit 4 p of word n holds output column 8 n + P[p].
  void add_awq(const Coded& c) {
    constexpr int kP[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    auto pack = [&](int64_t rows, const std::function<int(int64_t, int64_t)>& at) {
      std::vector<uint32_t> words;
      for (int64_t r = 0; r < rows; r++)
        for (int64_t w = 0; w < c.out / 8; w++) {
          uint32_t word = 0;
          for (int p = 0; p < 8; p++) word |= static_cast<uint32_t>(at(r, 8 * w + kP[p])) << (4 * p);
          words.push_back(word);
        }
      return words;
    };
    add("m.qweight", Dtype::kI32, {c.in, c.out / 8},
        pack(c.in, [&](int64_t k, int64_t n) { return c.codes[static_cast<size_t>(n * c.in + k)]; }));
    add("m.qzeros", Dtype::kI32, {c.groups, c.out / 8},
        pack(c.groups, [&](int64_t g, int64_t n) { return c.zeros[static_cast<size_t>(g * c.out + n)]; }));
    add_f16("m.scales", {c.groups, c.out}, c.scales);
  }

  void add_gptq(const Coded& c, bool minus_one, bool g_idx) {
    const int per = 32 / c.bits;
    std::vector<uint32_t> weight, zeros;
    for (int64_t r = 0; r < c.in / per; r++)
      for (int64_t n = 0; n < c.out; n++) {
        uint32_t word = 0;
        for (int i = 0; i < per; i++) word |= static_cast<uint32_t>(c.codes[static_cast<size_t>(n * c.in + r * per + i)]) << (c.bits * i);
        weight.push_back(word);
      }
    for (int64_t g = 0; g < c.groups; g++)
      for (int64_t w = 0; w < c.out / per; w++) {
        uint32_t word = 0;
        for (int i = 0; i < per; i++)
          word |= static_cast<uint32_t>(c.zeros[static_cast<size_t>(g * c.out + w * per + i)] - (minus_one ? 1 : 0)) << (c.bits * i);
        zeros.push_back(word);
      }
    add("m.qweight", Dtype::kI32, {c.in / per, c.out}, weight);
    add("m.qzeros", Dtype::kI32, {c.groups, c.out / per}, zeros);
    add_f16("m.scales", {c.groups, c.out}, c.scales);
    if (g_idx) add("m.g_idx", Dtype::kI32, {c.in}, c.group_of);
  }

  void add_packed(const Coded& c, bool symmetric, bool g_idx, Dtype scale_dtype) {
    const int64_t per = 32 / c.bits, words = (c.in + per - 1) / per, zero_words = (c.out + per - 1) / per;
    std::vector<uint32_t> weight(static_cast<size_t>(c.out * words)), zeros(static_cast<size_t>(zero_words * c.groups));
    for (int64_t n = 0; n < c.out; n++)
      for (int64_t k = 0; k < c.in; k++)
        weight[static_cast<size_t>(n * words + k / per)] |= static_cast<uint32_t>(c.codes[static_cast<size_t>(n * c.in + k)])
                                                            << (k % per * c.bits);
    for (int64_t n = 0; n < c.out; n++)
      for (int64_t g = 0; g < c.groups; g++)
        zeros[static_cast<size_t>(n / per * c.groups + g)] |= static_cast<uint32_t>(c.zeros[static_cast<size_t>(g * c.out + n)])
                                                              << (n % per * c.bits);
    std::vector<float> scales;
    for (int64_t n = 0; n < c.out; n++)
      for (int64_t g = 0; g < c.groups; g++) scales.push_back(c.scales[static_cast<size_t>(g * c.out + n)]);
    add("m.weight_packed", Dtype::kI32, {c.out, words}, weight);
    if (scale_dtype == Dtype::kF16) add_f16("m.weight_scale", {c.out, c.groups}, scales);
    else add("m.weight_scale", Dtype::kF32, {c.out, c.groups}, scales);
    if (!symmetric) add("m.weight_zero_point", Dtype::kI32, {zero_words, c.groups}, zeros);
    if (g_idx) add("m.weight_g_idx", Dtype::kI32, {c.in}, c.group_of);
    add("m.weight_shape", Dtype::kI64, {2}, std::vector<int64_t>{c.out, c.in});
  }

  struct Loaded {
    std::unique_ptr<TensorIndex> index;
    std::unique_ptr<WeightStore> store;
    Weight weight;
    Result<void> result;
  };
  std::unique_ptr<Loaded> load(Backend& backend, int64_t out, int64_t in, const QuantConfig& config, WeightPolicy policy = {},
                               WeightUse use = WeightUse::kProduct, const LoadOptions& options = {.threads = 2}) {
    auto written = write_safetensors(directory_ + "/model.safetensors", tensors_);
    EXPECT_TRUE(written.ok()) << written.error().message;
    auto l = std::make_unique<Loaded>();
    auto index = TensorIndex::open(directory_);
    EXPECT_TRUE(index.ok()) << index.error().message;
    l->index = std::make_unique<TensorIndex>(std::move(*index));
    l->store = std::make_unique<WeightStore>(backend, l->index.get(), policy);
    l->store->set_quantization(config);
    EXPECT_TRUE(tensors_.empty() || l->store->has("m.weight"));
    l->store->matrix(&l->weight, "m.weight", out, in, WeightClass::kMlp, use);
    l->result = l->store->load(options);
    return l;
  }
  std::unique_ptr<Loaded> load(int64_t out, int64_t in, const QuantConfig& config, WeightPolicy policy = {},
                               WeightUse use = WeightUse::kProduct) {
    return load(backend_, out, in, config, policy, use);
  }

  // Every scheme in parts: rows, columns, and with the values of the whole in each. `row` and `column`: where to cut.
  void expect_parts(int64_t out, int64_t in, const QuantConfig& config, int64_t row, int64_t column) {
    auto whole = load(out, in, config);
    ASSERT_TRUE(whole->result.ok()) << whole->result.error().message;
    std::vector<WeightPart> parts = {WeightPart::of_rows(0, row), WeightPart::of_rows(row, out - row)};
    if (column > 0) {
      parts.push_back(WeightPart::of_columns(0, column));
      parts.push_back(WeightPart::of_columns(column, in - column));
    }
    for (const WeightPart& part : parts)
      for (bool float32 : {false, true}) {
        WeightStore store(backend_, whole->index.get(), {.float32 = float32});
        store.set_quantization(config);
        Weight w;
        store.matrix(&w, "m.weight", out, in, WeightClass::kMlp, WeightUse::kProduct, part);
        Result<void> result = store.load({.threads = 2});
        ASSERT_TRUE(result.ok()) << result.error().message;
        ASSERT_EQ(w.out, part.local_out(out));
        ASSERT_EQ(w.in, part.local_in(in));
        EXPECT_LE(store.bytes(), w.bytes() + (w.columns ? 4 * in : 0) + 3 * 64);
        for (int64_t n = 0; n < w.out; n++) {
          const std::vector<float> found = row_of(w, n), expected = row_of(whole->weight, part.first_row + n);
          for (size_t k = 0; k < found.size(); k++)
            ASSERT_EQ(found[k], expected[static_cast<size_t>(part.first_column) + k]) << "row " << n << " column " << k;
        }
      }
  }

  // The loaded rows, columns back in the published order.
  static std::vector<float> row_of(const Weight& w, int64_t row) {
    std::vector<float> stored(static_cast<size_t>(w.in)), out(stored.size());
    w.decode(row, 0, w.in, stored.data());
    for (size_t k = 0; k < stored.size(); k++) out[w.columns ? static_cast<size_t>(w.columns[k]) : k] = stored[k];
    return out;
  }
  void expect_equal(const Loaded& l, const Coded& c, const char* format, int64_t row_step = 1) {
    ASSERT_TRUE(l.result.ok()) << l.result.error().message;
    EXPECT_STREQ(l.weight.format->name, format);
    for (int64_t n = 0; n < c.out; n += row_step) {
      std::vector<float> row = row_of(l.weight, n);
      for (int64_t k = 0; k < c.in; k++) ASSERT_EQ(row[static_cast<size_t>(k)], c.value(n, k)) << format << " " << n << " " << k;
    }
  }
  std::string error_of(int64_t out, int64_t in, const QuantConfig& config) {
    auto l = load(out, in, config);
    EXPECT_FALSE(l->result.ok());
    std::string message = l->result.ok() ? "" : l->result.error().message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_EQ(message.find(directory_ + "/model.safetensors: "), 0u) << message;
    return message.substr(std::min(message.size(), directory_.size() + 20));
  }

  static constexpr QuantConfig kAwq{.method = QuantConfig::Method::kAwq, .bits = 4, .group = 64, .symmetric = false};
  static constexpr QuantConfig kCt{.method = QuantConfig::Method::kCompressedTensors};

  std::string directory_;
  MemoryBackend backend_;
  std::deque<std::vector<std::byte>> storage_;
  std::vector<TensorToWrite> tensors_;
};

TEST_F(WeightSourceTest, Awq) {
  for (int64_t in : {64, 160, 256}) {
    Coded c = make_coded(264, in, 64, 4, false, 0, 15, false);
    clear();
    add_awq(c);
    expect_equal(*load(264, in, kAwq), c, "int4_asym");
  }
}

TEST_F(WeightSourceTest, GptqOfBothWidthsAndVersionsWithAndWithoutActOrder) {
  for (int bits : {4, 8})
    for (bool v1 : {true, false})
      for (bool symmetric : {true, false})
        for (bool act_order : {true, false})
          for (int64_t group : {32, 128, -1}) {
            const int64_t out = 160, in = 256;
            // v1 stores zero - 1, so its zero points run from 1 to 2^bits: 16 must not become 0.
            Coded c = make_coded(out, in, group < 0 ? in : group, bits, symmetric, v1 ? 1 : 0, (1 << bits) - (v1 ? 0 : 1), act_order);
            if (!symmetric && v1) c.zeros[5] = 1 << bits;
            clear();
            add_gptq(c, v1, act_order || group == 32);
            QuantConfig config{.method = QuantConfig::Method::kGptq,
                               .bits = bits,
                               .group = group,
                               .symmetric = symmetric,
                               .act_order = act_order,
                               .zero_minus_one = v1};
            const char* format = bits == 4 ? (symmetric ? "int4" : "int4_asym") : symmetric ? "q8_0" : "int8_asym";
            auto l = load(out, in, config);
            expect_equal(*l, c, format);
            EXPECT_EQ(l->weight.columns != nullptr, act_order);
            if (!act_order || group != 32) continue;

            // Other uses get the columns in order: conversion, and who reads rows.
            auto exact = load(out, in, config, {.float32 = true});
            expect_equal(*exact, c, "f32");
            EXPECT_EQ(exact->weight.columns, nullptr);
            auto rows = load(out, in, config, {}, WeightUse::kRows);
            ASSERT_TRUE(rows->result.ok());
            EXPECT_STREQ(rows->weight.format->name, "f16");
            EXPECT_EQ(rows->weight.columns, nullptr);
            for (int64_t k = 0; k < in; k++)
              ASSERT_EQ(row_of(rows->weight, 7)[static_cast<size_t>(k)], f16_to_float(float_to_f16(c.value(7, k))));
          }
}

TEST_F(WeightSourceTest, PartsOfEveryScheme) {
  clear();
  add_awq(make_coded(2056, 256, 64, 4, false, 0, 15, false));
  expect_parts(2056, 256, kAwq, 1032, 96);
  for (int bits : {4, 8})
    for (bool act_order : {false, true}) {
      clear();
      add_gptq(make_coded(160, 256, 64, bits, true, 0, 0, act_order), false, act_order);
      const QuantConfig config{.method = QuantConfig::Method::kGptq,
                               .bits = bits,
                               .group = 64,
                               .symmetric = true,
                               .act_order = act_order,
                               .zero_minus_one = false};
      expect_parts(160, 256, config, 72, act_order ? 0 : 160);
      for (bool g_idx : {false, true}) {
        clear();
        add_packed(make_coded(148, 256, 64, bits, false, 0, (1 << bits) - 1, g_idx), false, g_idx, Dtype::kF16);
        expect_parts(148, 256, kCt, 51, g_idx ? 0 : 32);
      }
    }
  // In act order a rank's columns of x lie anywhere.
  clear();
  add_gptq(make_coded(160, 256, 64, 4, true, 0, 0, true), false, true);
  const QuantConfig act_order{
      .method = QuantConfig::Method::kGptq, .bits = 4, .group = 64, .symmetric = true, .act_order = true, .zero_minus_one = false};
  auto l = load(160, 256, act_order);
  WeightStore cut(backend_, l->index.get(), {});
  cut.set_quantization(act_order);
  Weight w;
  cut.matrix(&w, "m.weight", 160, 256, WeightClass::kMlp, WeightUse::kProduct, WeightPart::of_columns(128, 128));
  ASSERT_FALSE(cut.status().ok());
  EXPECT_NE(cut.status().error().message.find("m.qweight: cannot be split by columns: they are in act order (desc_act)"),
            std::string::npos);

  clear();
  std::vector<uint8_t> bytes(static_cast<size_t>(320 * 224));
  for (size_t i = 0; i < bytes.size(); i++) bytes[i] = static_cast<uint8_t>(i * 29 % 120);
  add("m.weight", Dtype::kI8, {320, 224}, bytes);
  add("m.weight_scale", Dtype::kF32, {320, 1}, std::vector<float>(320, 0.5f));
  expect_parts(320, 224, kCt, 33, 7);
  for (const auto& [rows, columns, row, column] :
       {std::tuple<int64_t, int64_t, int64_t, int64_t>{3, 2, 128, 128}, {3, 2, 96, 32}, {10, 7, 64, 96}}) {
    clear();
    std::vector<float> scales;
    for (int64_t i = 0; i < rows * columns; i++) scales.push_back(0.01f * static_cast<float>(i + 1));
    add("m.weight", Dtype::kF8E4m3, {320, 224}, bytes);
    add("m.scale", Dtype::kF32, {rows, columns}, scales);
    expect_parts(320, 224, {.method = QuantConfig::Method::kFp8}, row, column);
  }
  clear();
  add("m.weight", Dtype::kF8E4m3, {320, 224}, bytes);
  add("m.weight_scale", Dtype::kF32, {320, 1}, std::vector<float>(320, 0.25f));
  expect_parts(320, 224, kCt, 5, 9);
  clear();
  add("m.weight", Dtype::kI8, {320, 112}, std::vector<uint8_t>(bytes.begin(), bytes.begin() + 320 * 112));
  add("m.scale", Dtype::kF8E8m0, {320, 7}, std::vector<uint8_t>(320 * 7, 120));
  expect_parts(320, 224, {.method = QuantConfig::Method::kFp8}, 5, 64);
  clear();
  std::vector<uint16_t> half;
  for (size_t i = 0; i < bytes.size(); i++) half.push_back(float_to_bf16(static_cast<float>(i % 1000)));
  add("m.weight", Dtype::kBf16, {320, 224}, half);
  expect_parts(320, 224, {}, 1, 3);
}

TEST_F(WeightSourceTest, AProductInActOrderIsThatOfTheWeights) {
  const int64_t out = 48, in = 192;
  Coded c = make_coded(out, in, 64, 4, false, 1, 15, true);
  add_gptq(c, true, true);
  auto l = load(out, in, {.method = QuantConfig::Method::kGptq, .bits = 4, .group = 64, .symmetric = false, .act_order = true});
  ASSERT_TRUE(l->result.ok()) << l->result.error().message;
  auto reference = make_reference_backend();
  std::vector<float> x(static_cast<size_t>(2 * in)), y(static_cast<size_t>(2 * out)), up(y.size());
  for (size_t i = 0; i < x.size(); i++) x[i] = std::sin(static_cast<float>(i * i % 101));
  reference->linear(
      {.out = Tensor::of(y.data(), Dtype::kF32, {2, out}), .x = Tensor::of(x.data(), Dtype::kF32, {2, in}), .weight = l->weight});
  for (int64_t t = 0; t < 2; t++)
    for (int64_t n = 0; n < out; n++) {
      double sum = 0, norm = 0;
      for (int64_t k = 0; k < in; k++) {
        sum += static_cast<double>(c.value(n, k)) * x[static_cast<size_t>(t * in + k)];
        norm += std::fabs(static_cast<double>(c.value(n, k)) * x[static_cast<size_t>(t * in + k)]);
      }
      EXPECT_NEAR(y[static_cast<size_t>(t * out + n)], sum, norm * 1e-5);
    }
}

TEST_F(WeightSourceTest, MatricesOfOneOpNeedOneActOrder) {
  const QuantConfig config{.method = QuantConfig::Method::kGptq, .bits = 4, .group = 64, .symmetric = false, .act_order = true};
  Coded c = make_coded(48, 192, 64, 4, false, 1, 15, true);
  auto load_two = [&](bool same_order, WeightPolicy policy) {
    clear();
    Coded other = c;
    if (!same_order) std::reverse(other.group_of.begin(), other.group_of.end());
    add_gptq(other, true, true);
    for (TensorToWrite& t : tensors_) t.name[0] = 'n';
    add_gptq(c, true, true);
    EXPECT_TRUE(write_safetensors(directory_ + "/model.safetensors", tensors_).ok());
    auto index = TensorIndex::open(directory_);
    EXPECT_TRUE(index.ok());
    WeightStore store(backend_, &*index, policy);
    store.set_quantization(config);
    Weight m, n;
    store.matrix(&m, "m.weight", 48, 192, WeightClass::kExpert);
    store.matrix(&n, "n.weight", 48, 192, WeightClass::kExpert);
    store.alike("m.weight", "n.weight", true);
    Result<void> result = store.load({.threads = 1});
    return result.ok() ? std::string() : result.error().message;
  };
  EXPECT_EQ(load_two(true, {}), "");
  EXPECT_EQ(load_two(false, {}), directory_ +
                                     "/model.safetensors: tensor n.qweight: its columns are in another act order than those of m.weight; "
                                     "the experts of a layer need one: convert with "
                                     "--quantization");
  EXPECT_EQ(load_two(false, {.float32 = true}), "");
}

TEST_F(WeightSourceTest, CompressedTensorsPacked) {
  for (int bits : {4, 8})
    for (bool symmetric : {true, false})
      for (bool g_idx : {false, true})
        for (Dtype dtype : {Dtype::kF16, Dtype::kF32}) {
          Coded c = make_coded(148, 256, 64, bits, symmetric, 0, (1 << bits) - 1, g_idx);
          clear();
          add_packed(c, symmetric, g_idx, dtype);
          const char* format = bits == 4 ? (symmetric ? "int4" : "int4_asym") : symmetric ? "q8_0" : "int8_asym";
          expect_equal(*load(148, 256, kCt), c, format);
        }
  // One group for a row that is no multiple of 32: padded words.
  Coded c = make_coded(9, 100, 128, 4, true, 8, 8, false);
  clear();
  add_packed(c, true, false, Dtype::kF16);
  expect_equal(*load(9, 100, kCt), c, "int4");
}

TEST_F(WeightSourceTest, Int8PerRowAndPerTensor) {
  const int64_t out = 200, in = 70;
  std::vector<int8_t> weight;
  for (int i = 0; i < out * in; i++) weight.push_back(static_cast<int8_t>(i * 37 % 256 - 128));
  std::vector<uint16_t> scales;
  for (int i = 0; i < out; i++) scales.push_back(float_to_bf16(0.001f * static_cast<float>(i + 1)));
  for (bool single : {false, true}) {
    clear();
    add("m.weight", Dtype::kI8, {out, in}, weight);
    if (single) add("m.weight_scale", Dtype::kF32, {1}, std::vector<float>{0.03f});
    else add("m.weight_scale", Dtype::kBf16, {out, 1}, scales);
    add("m.input_scale", Dtype::kF32, {1}, std::vector<float>{1});
    add("m.weight_zero_point", Dtype::kI8, {single ? 1 : out, 1}, std::vector<int8_t>(single ? 1 : static_cast<size_t>(out), 0));
    auto l = load(out, in, kCt);
    ASSERT_TRUE(l->result.ok()) << l->result.error().message;
    EXPECT_STREQ(l->weight.format->name, "int8");
    for (int64_t n = 0; n < out; n++) {
      std::vector<float> row = row_of(l->weight, n);
      const float scale = single ? 0.03f : bf16_to_float(scales[static_cast<size_t>(n)]);
      for (int64_t k = 0; k < in; k++) ASSERT_EQ(row[static_cast<size_t>(k)], scale * weight[static_cast<size_t>(n * in + k)]);
    }
  }
}

TEST_F(WeightSourceTest, Fp8WithEveryKindOfScale) {
  const int64_t out = 300, in = 200;
  std::vector<uint8_t> weight;
  for (int i = 0; i < out * in; i++) weight.push_back(static_cast<uint8_t>((i * 29 + i / 256) % 255 == 127 ? 3 : (i * 29 + i / 256) % 255));
  for (auto& w : weight)
    if ((w & 0x7f) == 0x7f) w = 1;
  struct Kind {
    const char* name;
    Dtype dtype;
    Shape shape;
    int64_t rows, columns;  // of a scale
    const char* format;
  };
  const Kind kinds[] = {
      {"m.weight_scale", Dtype::kF32, {1}, out, in, "fp8_channel"},
      {"m.weight_scale", Dtype::kF32, {}, out, in, "fp8_channel"},
      {"m.weight_scale", Dtype::kBf16, {out, 1}, 1, in, "fp8_channel"},
      {"m.weight_scale", Dtype::kF32, {3, 2}, 128, 128, "fp8_block"},
      {"m.weight_scale_inv", Dtype::kF32, {3, 2}, 128, 128, "fp8_block"},
      {"m.scale", Dtype::kF8E8m0, {3, 2}, 128, 128, "fp8_block"},
      {"m.scale", Dtype::kF32, {3, 2}, 128, 128, "fp8_block"},
      {"m.scale", Dtype::kF8E8m0, {10, 7}, 32, 32, "fp8_block32"},
  };
  for (const Kind& kind : kinds) {
    clear();
    add("m.weight", Dtype::kF8E4m3, {out, in}, weight);
    const auto count = static_cast<size_t>(std::accumulate(kind.shape.begin(), kind.shape.end(), int64_t{1}, std::multiplies<>()));
    std::vector<float> scales;
    std::vector<uint16_t> halves;
    std::vector<uint8_t> exponents;
    for (size_t i = 0; i < count; i++) {
      const int e = kind.dtype == Dtype::kF8E8m0 && i == 1 ? 0 : static_cast<int>(110 + i % 12);  // 0 is 2^-127
      scales.push_back(kind.dtype == Dtype::kF8E8m0 ? std::ldexp(1.0f, e - 127)
                                                    : bf16_to_float(float_to_bf16(0.01f * static_cast<float>(i + 1))));
      halves.push_back(float_to_bf16(scales.back()));
      exponents.push_back(static_cast<uint8_t>(e));
    }
    if (kind.dtype == Dtype::kF32) add(kind.name, kind.dtype, kind.shape, scales);
    else if (kind.dtype == Dtype::kBf16) add(kind.name, kind.dtype, kind.shape, halves);
    else add(kind.name, kind.dtype, kind.shape, exponents);
    auto l = load(out, in, {.method = QuantConfig::Method::kFp8});
    ASSERT_TRUE(l->result.ok()) << l->result.error().message;
    EXPECT_STREQ(l->weight.format->name, kind.format) << kind.name;
    const int64_t across = (in + kind.columns - 1) / kind.columns;
    for (int64_t n = 0; n < out; n++) {
      std::vector<float> row = row_of(l->weight, n);
      for (int64_t k = 0; k < in; k++)
        ASSERT_EQ(row[static_cast<size_t>(k)], e4m3_to_float(weight[static_cast<size_t>(n * in + k)]) *
                                                   scales[static_cast<size_t>(n / kind.rows * across + k / kind.columns)])
            << kind.name << " " << n << " " << k;
    }
  }
}

TEST_F(WeightSourceTest, Mxfp4OfDeepSeekV4) {
  const int64_t out = 131, in = 96;
  const float table[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
  std::vector<uint8_t> weight, scale;
  for (int i = 0; i < out * in / 2; i++) weight.push_back(static_cast<uint8_t>(i * 73 + i / 7));
  for (int i = 0; i < out * in / 32; i++) scale.push_back(static_cast<uint8_t>(i % 2 ? 100 + i % 50 : i % 5));
  add("m.weight", Dtype::kI8, {out, in / 2}, weight);
  add("m.scale", Dtype::kF8E8m0, {out, in / 32}, scale);
  auto l = load(out, in, {.method = QuantConfig::Method::kFp8});
  ASSERT_TRUE(l->result.ok()) << l->result.error().message;
  for (int64_t n = 0; n < out; n++) {
    std::vector<float> row = row_of(l->weight, n);
    for (int64_t k = 0; k < in; k++) {
      const int byte = weight[static_cast<size_t>(n * in / 2 + k / 2)], code = k % 2 ? byte >> 4 : byte & 15;
      ASSERT_EQ(row[static_cast<size_t>(k)], table[code] * std::ldexp(1.0f, scale[static_cast<size_t>(n * in / 32 + k / 32)] - 127));
    }
  }
  scale[7] = 255;
  remove("m.scale");
  add("m.scale", Dtype::kF8E8m0, {out, in / 32}, scale);
  EXPECT_EQ(error_of(out, in, kCt), "tensor m.scale: expected finite scales, found nan at [2, 1]");
  tensor("m.scale").shape = {in / 32, out};
  EXPECT_EQ(error_of(out, in, kCt), "tensor m.scale: expected shape [131, 3] (one scale for 32 columns), found [3, 131]");
}

// 9 MiB of codes: two strips, and with two memory nodes strips of one node's rows.
TEST_F(WeightSourceTest, WideMatricesAreReadInStrips) {
  const int64_t out = 512, in = 36864;
  Coded c = make_coded(out, in, 128, 4, false, 0, 15, false);
  add_awq(c);
  QuantConfig config = kAwq;
  config.group = 128;
  expect_equal(*load(out, in, config), c, "int4_asym", 37);
  if (auto topology = Topology::from_synthetic("node:2 core:2 pu:1"); topology.ok()) {
    LoadOptions options{.threads = 2, .placement = LoadPlacement(*topology, 4), .bind = [](const std::vector<int>&) { return true; }};
    expect_equal(*load(backend_, out, in, config, {}, WeightUse::kProduct, options), c, "int4_asym", 61);
  }
}

// A backend with the CPU's panels.
class PanelBackend : public MemoryBackend {
 public:
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override { return panel_bytes(format, out, in); }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override { panel_pack(rows, first, out, to); }
};

TEST_F(WeightSourceTest, PanelsHoldTheWeightsAndPlanningKnowsTheirBytes) {
  const int64_t out = 264, in = 640;
  PanelBackend panels;
  for (bool centred : {true, false}) {
    Coded c = make_coded(out, in, 64, 4, centred, 1, 15, true);
    clear();
    add_gptq(c, true, true);
    QuantConfig config{.method = QuantConfig::Method::kGptq, .bits = 4, .group = 64, .symmetric = centred, .act_order = true};
    for (const Format* kept : {static_cast<const Format*>(nullptr), &kInt4GroupFormat}) {
      auto l = load(panels, out, in, config, {.linear = kept});
      ASSERT_TRUE(l->result.ok()) << l->result.error().message;
      ASSERT_TRUE(l->weight.prepared);
      EXPECT_EQ(l->weight.columns != nullptr, l->weight.format != &kInt4GroupFormat || !kept || centred);
      std::vector<float> stored(static_cast<size_t>(in)), row(stored.size());
      for (int64_t n = 0; n < out; n += 13) {
        panel_decode(l->weight, n, 0, in, stored.data());
        for (size_t k = 0; k < row.size(); k++) row[l->weight.columns ? static_cast<size_t>(l->weight.columns[k]) : k] = stored[k];
        float largest = 0;
        double error = 0;
        for (int64_t k = 0; k < in; k++) {
          largest = std::max(largest, std::fabs(c.value(n, k)));
          error += std::pow(static_cast<double>(row[static_cast<size_t>(k)]) - c.value(n, k), 2);
        }
        // A panel's grid is the largest value / 127 wide; a second rounding to int4 is coarser.
        EXPECT_LT(std::sqrt(error / static_cast<double>(in)), largest / (kept ? 15 : 127)) << n;
      }
      DryBackend dry(panel_bytes);
      WeightStore plan(dry, l->index.get(), {.linear = kept});
      plan.set_quantization(config);
      Weight planned;
      plan.matrix(&planned, "m.weight", out, in, WeightClass::kMlp);
      EXPECT_EQ(plan.bytes(), l->store->bytes());
      ASSERT_TRUE(plan.bind_dry().ok());
      EXPECT_TRUE(planned.prepared);
    }
  }
}

TEST_F(WeightSourceTest, UnquantisedModulesAndZeroBiasesOfAGptqCheckpoint) {
  Coded c = make_coded(32, 64, 32, 4, true, 8, 8, false);
  add_gptq(c, true, false);
  add("m.bias", Dtype::kF16, {32}, std::vector<uint16_t>(32, 0));
  const QuantConfig config{.method = QuantConfig::Method::kGptq, .bits = 4, .group = 32};
  expect_equal(*load(32, 64, config), c, "int4");
  remove("m.bias");
  std::vector<uint16_t> bias(32, 0);
  bias[31] = float_to_f16(1);
  add("m.bias", Dtype::kF16, {32}, bias);
  EXPECT_EQ(error_of(32, 64, config), "unexpected tensor m.bias does not belong to this architecture");
  // The same module left as it was: plain tensors win over no list.
  clear();
  add_f16("m.weight", {2, 3}, {1, 2, 3, 4, 5, 6});
  auto l = load(2, 3, config);
  ASSERT_TRUE(l->result.ok()) << l->result.error().message;
  EXPECT_EQ(row_of(l->weight, 1), (std::vector<float>{4, 5, 6}));
}

TEST_F(WeightSourceTest, FaultsAreOneLineThatNamesTensorExpectedAndFound) {
  const int64_t out = 32, in = 128;
  QuantConfig gptq{.method = QuantConfig::Method::kGptq, .bits = 4, .group = 64};
  Coded c = make_coded(out, in, 64, 4, true, 8, 8, false);
  auto fresh = [&](bool g_idx = false) {
    clear();
    add_gptq(c, true, g_idx);
  };
  fresh();
  tensor("m.qweight").shape = {out, in / 8};
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.qweight: expected shape [16, 32] (4 bits: in / 8, out), found [32, 16]");
  fresh();
  tensor("m.qweight").dtype = Dtype::kF32;
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.qweight: expected dtype I32, found F32");
  fresh();
  remove("m.qzeros");
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.qweight: dtype I32 needs tensor m.qzeros of shape [2, 4], which is missing");
  fresh();
  remove("m.scales");
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.qweight: dtype I32 needs tensor m.scales of shape [2, 32], which is missing");
  fresh();
  gptq.group = 32;
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.qzeros: expected shape [4, 4] (groups of 32), found [2, 4]");
  gptq.group = 64;
  gptq.act_order = true;
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.qweight: desc_act needs tensor m.g_idx of shape [128], which is missing");
  fresh(true);
  tensor("m.g_idx").shape = {2, 64};
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.g_idx: expected shape [128], found [2, 64]");
  Coded right = c;
  c.group_of[3] = 2;
  fresh(true);
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.g_idx: expected groups from 0 to 1, found 2 at [3]");
  c.group_of[3] = -1;
  fresh(true);
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.g_idx: expected groups from 0 to 1, found -1 at [3]");
  c.group_of[3] = 1;
  fresh(true);
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.g_idx: expected a multiple of 32 columns in each group, found 63 in group 0");
  c = right;
  std::swap(c.group_of[3], c.group_of[100]);
  fresh(true);
  gptq.act_order = false;
  EXPECT_EQ(
      error_of(out, in, gptq),
      "tensor m.g_idx: expected groups in order, found column 4 at [3]; set \"desc_act\": true in the quantization_config of config.json");
  c = right;
  c.zeros[33] = 7;
  fresh();
  EXPECT_EQ(error_of(out, in, gptq),
            "tensor m.qzeros: expected zero points of 8, found 7 at [1, 1]; set \"sym\": false in the quantization_config of config.json");
  c = right;
  c.scales[34] = INFINITY;
  fresh();
  EXPECT_EQ(error_of(out, in, gptq), "tensor m.scales: expected finite scales below 65520, found inf at [1, 2]");
  c = right;
  fresh();
  EXPECT_EQ(error_of(out, in, {}),
            "tensor m.qweight: packed weights need quantization_config in config.json (quant_method awq or gptq), found none");

  clear();
  add_awq(c);
  QuantConfig awq = kAwq;
  EXPECT_TRUE(load(out, in, awq)->result.ok());
  EXPECT_EQ(error_of(out + 4, in, awq), "tensor m.qweight: AWQ packs 8 columns to a word: expected a multiple of 8 outputs, found 36");
  EXPECT_EQ(error_of(out + 8, in, awq), "tensor m.qweight: expected shape [128, 5] (in, out / 8), found [128, 4]");

  clear();
  add_packed(c, true, false, Dtype::kF16);
  EXPECT_TRUE(load(out, in, kCt)->result.ok());
  tensor("m.weight_packed").shape = {in / 8, out};
  EXPECT_EQ(error_of(out, in, kCt),
            "tensor m.weight_packed: expected shape [32, 16] (4 bits) or [32, 32] (8 bits) for 32 x 128 weights, found [16, 32]");
  tensor("m.weight_packed").shape = {out, in / 8};
  tensor("m.weight_scale").shape = {2, out};
  EXPECT_EQ(error_of(out, in, kCt),
            "tensor m.weight_scale: expected shape [32, groups] with groups of a multiple of 32 of 128 columns, found [2, 32]");
  remove("m.weight_scale");
  add_f16("m.weight_scale", {out, 0}, {});
  EXPECT_EQ(error_of(out, in, kCt),
            "tensor m.weight_scale: expected shape [32, groups] with groups of a multiple of 32 of 128 columns, found [32, 0]");
  remove("m.weight_scale");
  EXPECT_EQ(error_of(out, in, kCt), "tensor m.weight_packed: dtype I32 needs tensor m.weight_scale of shape [32, 1], which is missing");

  clear();
  add("m.weight", Dtype::kF8E4m3, {2, 3}, std::vector<uint8_t>(6, 1));
  add("m.weight_scale", Dtype::kF32, {3}, std::vector<float>{1, 1, 1});
  EXPECT_EQ(error_of(2, 3, kCt),
            "tensor m.weight_scale: expected shape [1], [2, 1] (a scale per row) or [1, 1] (128 x 128 blocks of [2, 3]), found [3]");
  clear();
  add("m.weight", Dtype::kI8, {2, 3}, std::vector<int8_t>(6, 1));
  add("m.weight_scale", Dtype::kF32, {2, 1}, std::vector<float>{1, NAN});
  EXPECT_EQ(error_of(2, 3, kCt), "tensor m.weight_scale: expected finite scales, found nan at [1]");
  add("m.weight_zero_point", Dtype::kI8, {2, 1}, std::vector<int8_t>{0, 3});
  remove("m.weight_scale");
  add("m.weight_scale", Dtype::kF32, {2, 1}, std::vector<float>{1, 1});
  EXPECT_EQ(error_of(2, 3, kCt),
            "tensor m.weight_zero_point: expected zero points of 0, found 3 at [1]; use a checkpoint with symmetric weights");
}

}  // namespace
}  // namespace dg
