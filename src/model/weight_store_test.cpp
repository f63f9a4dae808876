#include "model/weight_store.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <filesystem>

#include "device/memory_backend_for_tests.h"
#include "io/safetensors.h"
#include "quant/convert.h"
#include "quant/f32.h"
#include "quant/int8_channel.h"

namespace dg {
namespace {

// One file with: a.weight bf16 (300, 200), b.weight fp8 (300, 200) + scales (3, 2), norm.weight bf16 (200).
class WeightStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/dougong store \xe6\xb5\x8bXXXXXX";
    directory_ = mkdtemp(name);
    for (int i = 0; i < 300 * 200; i++) {
      bf16_.push_back(float_to_bf16(std::sin(static_cast<float>(i))));
      fp8_.push_back(float_to_e4m3(4 * std::cos(static_cast<float>(i))));
    }
    scales_ = {0.5f, 1, 2, 0.25f, 4, 8};
    norm_.assign(200, float_to_bf16(1.5f));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  template <class T>
  static TensorToWrite tensor(std::string name, Dtype dtype, std::vector<int64_t> shape, const std::vector<T>& data) {
    return {std::move(name), dtype, std::move(shape), std::as_bytes(std::span(data))};
  }
  std::vector<TensorToWrite> tensors() {
    return {tensor("a.weight", Dtype::kBf16, {300, 200}, bf16_), tensor("b.weight", Dtype::kF8E4m3, {300, 200}, fp8_),
            tensor("b.weight_scale_inv", Dtype::kF32, {3, 2}, scales_), tensor("norm.weight", Dtype::kBf16, {200}, norm_)};
  }

  struct Loaded {
    std::unique_ptr<TensorIndex> index;
    std::unique_ptr<WeightStore> store;
    Weight a, b;
    Tensor norm, constant;
    Result<void> result;
  };
  std::unique_ptr<Loaded> load(const std::vector<TensorToWrite>& content, WeightPolicy policy = {}) {
    std::string path = directory_ + "/model.safetensors";
    auto written = write_safetensors(path, content);
    EXPECT_TRUE(written.ok()) << written.error().message;
    auto l = std::make_unique<Loaded>();
    auto index = TensorIndex::open(directory_);
    EXPECT_TRUE(index.ok()) << index.error().message;
    l->index = std::make_unique<TensorIndex>(std::move(*index));
    l->store = std::make_unique<WeightStore>(backend_, l->index.get(), policy);
    l->store->matrix(&l->a, "a.weight", 300, 200, WeightClass::kMlp);
    l->store->matrix(&l->b, "b.weight", 300, 200, WeightClass::kExpert);
    l->store->vector(&l->norm, "norm.weight", 200);
    l->store->constant(&l->constant, {1, 2, 3});
    l->result = l->store->load({.threads = 3});
    return l;
  }
  std::string error_of(const std::vector<TensorToWrite>& content) {
    auto l = load(content);
    EXPECT_FALSE(l->result.ok());
    std::string message = l->result.ok() ? "" : l->result.error().message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_EQ(message.find(directory_ + "/model.safetensors: "), 0u) << message;
    return message.substr(std::min(message.size(), directory_.size() + 20));
  }

  float fp8_value(int r, int c) const {
    return e4m3_to_float(fp8_[static_cast<size_t>(r * 200 + c)]) * scales_[static_cast<size_t>(r / 128 * 2 + c / 128)];
  }

  std::string directory_;
  MemoryBackend backend_;
  std::vector<uint16_t> bf16_, norm_;
  std::vector<uint8_t> fp8_;
  std::vector<float> scales_;
};

TEST_F(WeightStoreTest, LoadsAsPublished) {
  auto l = load(tensors());
  ASSERT_TRUE(l->result.ok()) << l->result.error().message;
  EXPECT_STREQ(l->a.format->name, "bf16");
  EXPECT_STREQ(l->b.format->name, "fp8_block");
  std::vector<float> row(200);
  for (int r : {0, 127, 128, 299}) {
    l->b.decode(r, 0, 200, row.data());
    for (int c : {0, 127, 128, 199}) EXPECT_EQ(row[static_cast<size_t>(c)], fp8_value(r, c));
    l->a.decode(r, 0, 200, row.data());
    EXPECT_EQ(row[5], bf16_to_float(bf16_[static_cast<size_t>(r * 200 + 5)]));
  }
  EXPECT_EQ(*l->norm.f32(199), 1.5f);
  EXPECT_EQ(*l->constant.f32(2), 3);
  EXPECT_EQ(l->store->total(WeightClass::kExpert).bytes, 300 * 200 + 6 * 4);
}

TEST_F(WeightStoreTest, ConvertsExactlyToFloatAndWithinAStepToInt8) {
  auto l = load(tensors(), {.float32 = true});
  ASSERT_TRUE(l->result.ok()) << l->result.error().message;
  std::vector<float> row(200);
  for (int r = 0; r < 300; r++) {
    l->b.decode(r, 0, 200, row.data());
    for (int c = 0; c < 200; c++) ASSERT_EQ(row[static_cast<size_t>(c)], fp8_value(r, c)) << r << " " << c;
  }
  auto q = load(tensors(), {.linear = &kInt8Channel});
  ASSERT_TRUE(q->result.ok());
  for (int r = 0; r < 300; r++) {
    q->b.decode(r, 0, 200, row.data());
    float top = 0;
    for (int c = 0; c < 200; c++) top = std::max(top, std::fabs(fp8_value(r, c)));
    for (int c = 0; c < 200; c++) ASSERT_NEAR(row[static_cast<size_t>(c)], fp8_value(r, c), top / 127 * 0.51f) << r << " " << c;
  }
}

TEST_F(WeightStoreTest, ATensorDeclaredTwiceIsStoredOnce) {
  load(tensors());
  auto index = TensorIndex::open(directory_);
  WeightStore store(backend_, &*index, {});
  Weight first, second;
  store.matrix(&first, "a.weight", 300, 200, WeightClass::kEmbedding);
  int64_t bytes = store.bytes();
  store.matrix(&second, "a.weight", 300, 200, WeightClass::kHead);
  EXPECT_EQ(store.bytes(), bytes);
  store.ignore_prefix("b.");
  store.ignore("norm.weight");
  ASSERT_TRUE(store.load({}).ok());
  EXPECT_EQ(first.data, second.data);
}

TEST_F(WeightStoreTest, FaultsNameTensorExpectedAndFound) {
  auto t = tensors();
  t.erase(t.begin());
  EXPECT_EQ(error_of(t), "tensor a.weight is missing: expected shape [300, 200]");

  t = tensors();
  t[0].shape = {200, 300};
  EXPECT_EQ(error_of(t), "tensor a.weight: expected shape [300, 200] from config.json, found [200, 300]");

  t = tensors();
  t[0].dtype = Dtype::kI16;
  EXPECT_EQ(error_of(t), "tensor a.weight: expected dtype F32, F16, BF16 or F8_E4M3, found I16");

  t = tensors();
  t.erase(t.begin() + 2);
  EXPECT_EQ(error_of(t), "tensor b.weight: dtype F8_E4M3 needs tensor b.weight_scale_inv of shape [3, 2], which is missing");

  t = tensors();
  t[2].shape = {2, 3};
  EXPECT_EQ(error_of(t), "tensor b.weight_scale_inv: expected shape [3, 2] (128 x 128 blocks of [300, 200]), found [2, 3]");

  std::vector<uint16_t> extra(4);
  t = tensors();
  t.push_back(tensor("x.weight", Dtype::kBf16, {4}, extra));
  t.push_back(tensor("y.weight", Dtype::kBf16, {4}, extra));
  EXPECT_EQ(error_of(t), "unexpected tensor x.weight does not belong to this architecture (1 more like it)");

  scales_[3] = NAN;
  EXPECT_EQ(error_of(tensors()), "tensor b.weight_scale_inv: expected finite scales, found nan at block [1, 1]");
  scales_[3] = 1;
  fp8_[131 * 200 + 7] = 0xff;
  EXPECT_EQ(error_of(tensors()), "tensor b.weight: expected numbers, found NaN at [131, 7]");
  fp8_[131 * 200 + 7] = 0;
  norm_[9] = float_to_bf16(INFINITY);
  EXPECT_EQ(error_of(tensors()), "tensor norm.weight: expected finite numbers, found inf at [9]");
}

TEST_F(WeightStoreTest, NanScalesAreFoundOnTheConvertingPathToo) {
  scales_[5] = INFINITY;
  auto l = load(tensors(), {.float32 = true});
  ASSERT_FALSE(l->result.ok());
  EXPECT_NE(l->result.error().message.find("tensor b.weight_scale_inv: expected finite scales, found inf at block [2, 1]"),
            std::string::npos);
}

TEST_F(WeightStoreTest, AFileThatShrinksWhileLoadingIsAnError) {
  load(tensors());
  auto index = TensorIndex::open(directory_);
  ASSERT_TRUE(index.ok());
  std::filesystem::resize_file(directory_ + "/model.safetensors", 4096);
  WeightStore store(backend_, &*index, {});
  Weight a;
  store.matrix(&a, "a.weight", 300, 200, WeightClass::kMlp);
  store.ignore_prefix("b.");
  store.ignore("norm.weight");
  auto result = store.load({});
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("model.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace dg
