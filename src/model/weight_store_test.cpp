#include "model/weight_store.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "device/memory_backend_for_tests.h"
#include "io/safetensors.h"
#include "quant/convert.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"
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

TEST_F(WeightStoreTest, LoadingCanBeGivenUp) {
  auto l = load(tensors());
  const std::atomic<bool> cancelled{true};
  Result<void> again = l->store->load({.threads = 2, .cancelled = &cancelled});
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().kind, ErrorKind::kCancelled);
}

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

// Keeps matrices for products as floats with every bit inverted, rows in reverse, behind a head of 64 bytes that counts rows.
class PackingBackend : public MemoryBackend {
 public:
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override {
    return &format == &kF32 ? 0 : 64 + (out * in * 4 + 63) / 64 * 64;
  }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override {
    ASSERT_EQ(first % kPrepareRows, 0);
    ASSERT_TRUE(rows.out % kPrepareRows == 0 || first + rows.out == out);
    std::vector<float> row(static_cast<size_t>(rows.in));
    for (int64_t r = 0; r < rows.out; r++) {
      rows.decode(r, 0, rows.in, row.data());
      auto* packed = reinterpret_cast<uint32_t*>(to + 64) + (out - 1 - first - r) * rows.in;
      for (size_t i = 0; i < row.size(); i++) packed[i] = ~float_to_bits(row[i]);
    }
    std::atomic_ref(*reinterpret_cast<int64_t*>(to)).fetch_add(rows.out);
    std::lock_guard lock(mutex);
    calls.emplace_back(std::this_thread::get_id(), first + rows.out / 2, out);
  }
  static int64_t packed_rows(const Weight& w) { return *reinterpret_cast<const int64_t*>(w.data); }
  static float element(const Weight& w, int64_t row, int64_t column) {
    return bits_to_float(~reinterpret_cast<const uint32_t*>(w.data + 64)[(w.out - 1 - row) * w.in + column]);
  }
  mutable std::mutex mutex;
  mutable std::vector<std::tuple<std::thread::id, int64_t, int64_t>> calls;
};

TEST_F(WeightStoreTest, PreparesMatricesOfProductsAndKeepsThoseReadByRows) {
  load(tensors());
  auto index = TensorIndex::open(directory_);
  PackingBackend backend;
  for (const Format* kept : {static_cast<const Format*>(nullptr), &kInt8Channel, &kFp8BlockFormat}) {
    WeightStore store(backend, &*index, {.linear = kept}), plain(backend_, &*index, {.linear = kept});
    Weight a, b, rows, plain_a, plain_b;
    Tensor norm;
    store.matrix(&a, "a.weight", 300, 200, WeightClass::kMlp);
    store.matrix(&b, "b.weight", 300, 200, WeightClass::kAttention, WeightUse::kRows);
    store.vector(&norm, "norm.weight", 200);
    plain.matrix(&plain_a, "a.weight", 300, 200, WeightClass::kMlp);
    plain.matrix(&plain_b, "b.weight", 300, 200, WeightClass::kMlp);
    plain.vector(&norm, "norm.weight", 200);
    ASSERT_TRUE(plain.load({.threads = 1}).ok());
    ASSERT_TRUE(store.load({.threads = 3}).ok());
    EXPECT_EQ(store.total(WeightClass::kMlp).bytes, 64 + 300 * 200 * 4);
    EXPECT_TRUE(a.prepared);
    EXPECT_EQ(a.scales, nullptr);
    EXPECT_EQ(a.format, plain_a.format);
    EXPECT_FALSE(b.prepared);
    EXPECT_EQ(PackingBackend::packed_rows(a), 300);
    std::vector<float> row(200), row_b(200);
    for (int64_t r = 0; r < 300; r++) {
      plain_a.decode(r, 0, 200, row.data());
      for (int64_t c = 0; c < 200; c++) ASSERT_EQ(PackingBackend::element(a, r, c), row[static_cast<size_t>(c)]) << r << " " << c;
      plain_b.decode(r, 0, 200, row.data());
      b.decode(r, 0, 200, row_b.data());
      ASSERT_EQ(row, row_b) << r;
    }
  }
}

TEST_F(WeightStoreTest, ATiedEmbeddingIsKeptOnceForProductsAndPlansTheSameBytes) {
  load(tensors());
  auto index = TensorIndex::open(directory_);
  PackingBackend backend;
  for (bool head_first : {false, true}) {
    WeightStore store(backend, &*index, {});
    Weight embedding, head;
    if (head_first) store.matrix(&head, "a.weight", 300, 200, WeightClass::kHead);
    store.matrix(&embedding, "a.weight", 300, 200, WeightClass::kEmbedding, WeightUse::kRows);
    if (!head_first) store.matrix(&head, "a.weight", 300, 200, WeightClass::kHead);
    store.ignore_prefix("b.");
    store.ignore("norm.weight");
    EXPECT_EQ(store.bytes(), 64 + 300 * 200 * 4);
    EXPECT_EQ(store.bytes_by_format().at("bf16"), 64 + 300 * 200 * 4);
    ASSERT_TRUE(store.load({}).ok());
    EXPECT_TRUE(embedding.prepared && head.prepared);
    EXPECT_EQ(embedding.data, head.data);
    EXPECT_EQ(PackingBackend::packed_rows(head), 300);
  }
}

TEST_F(WeightStoreTest, EachRowRangeIsTouchedByAThreadOfItsReadersNode) {
  auto topology = Topology::from_synthetic("node:2 core:4 pu:2");
  if (!topology.ok()) GTEST_SKIP() << topology.error().message;
  const int64_t rows = 4096, in = 160;
  std::vector<uint16_t> big(static_cast<size_t>(rows * in), float_to_bf16(1));
  ASSERT_TRUE(
      write_safetensors(directory_ + "/model.safetensors", std::vector<TensorToWrite>{tensor("w.weight", Dtype::kBf16, {rows, in}, big)})
          .ok());
  auto index = TensorIndex::open(directory_);
  for (int threads : {1, 2, 5}) {
    PackingBackend backend;
    WeightStore store(backend, &*index, {});
    Weight w;
    store.matrix(&w, "w.weight", rows, in, WeightClass::kMlp);
    std::mutex mutex;
    std::map<std::thread::id, std::vector<int>> bound;
    const std::thread::id caller = std::this_thread::get_id();
    std::vector<std::string> wrong;
    LoadOptions options{.threads = threads, .placement = LoadPlacement(*topology, 8)};
    // A thread that fills two nodes binds itself twice: what it packed before must lie on the first.
    auto check = [&](std::thread::id id, const std::vector<int>& cpus) {
      std::lock_guard lock(backend.mutex);
      for (const auto& [thread, middle, out] : backend.calls) {
        if (thread != id) continue;
        const bool second = middle >= out / 2;
        if (cpus.empty() || (cpus[0] >= 8) != second) wrong.push_back(std::to_string(middle));
      }
      std::erase_if(backend.calls, [&](const auto& call) { return std::get<0>(call) == id; });
    };
    options.bind = [&](const std::vector<int>& cpus) {
      std::lock_guard lock(mutex);
      EXPECT_NE(std::this_thread::get_id(), caller) << "the calling thread must not stay bound to a node";
      check(std::this_thread::get_id(), bound[std::this_thread::get_id()]);
      bound[std::this_thread::get_id()] = cpus;
      EXPECT_EQ(cpus.size(), 8u);
      return true;
    };
    ASSERT_TRUE(store.load(options).ok());
    EXPECT_EQ(PackingBackend::packed_rows(w), rows);
    EXPECT_FALSE(backend.calls.empty());
    for (const auto& [id, cpus] : bound) check(id, cpus);
    EXPECT_TRUE(backend.calls.empty());
    EXPECT_TRUE(wrong.empty()) << "rows around " << wrong[0] << " on the wrong node, " << threads << " threads";
  }
}

TEST(LoadPlacement, SharesFollowThePoolsWorkers) {
  auto two = Topology::from_synthetic("node:2 core:4 pu:1");
  if (!two.ok()) GTEST_SKIP() << two.error().message;
  LoadPlacement all(*two, 8), most(*two, 6), one(*two, 4), many(*two, 9);
  EXPECT_TRUE(all.active() && most.active());
  EXPECT_FALSE(one.active()) << "four workers are all on the first node";
  EXPECT_FALSE(many.active()) << "more workers than cores are not pinned";
  EXPECT_EQ(all.cpus(0), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(all.cpus(1), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(most.cpus(1), (std::vector<int>{4, 5}));
  EXPECT_EQ(all.node_of_rows(0, 128, 1024), 0);
  EXPECT_EQ(all.node_of_rows(384, 128, 1024), 0);
  EXPECT_EQ(all.node_of_rows(512, 128, 1024), 1);
  EXPECT_EQ(all.node_of_rows(896, 128, 1024), 1);
  EXPECT_EQ(most.node_of_rows(512, 128, 1024), 0) << "workers 0 to 3 of 6 take two thirds";
  EXPECT_EQ(most.node_of_rows(768, 128, 1024), 1);
  EXPECT_EQ(all.nodes_of_thread(0, 1), (std::vector<int>{0, 1}));
  EXPECT_EQ(all.nodes_of_thread(1, 4), (std::vector<int>{0}));
  EXPECT_EQ(all.nodes_of_thread(2, 4), (std::vector<int>{1}));
  auto four = Topology::from_synthetic("node:4 core:2 pu:1");
  LoadPlacement quarters(*four, 8);
  EXPECT_EQ(quarters.nodes_of_thread(0, 2), (std::vector<int>{0, 1}));
  EXPECT_EQ(quarters.nodes_of_thread(1, 2), (std::vector<int>{2, 3}));
  std::vector<int> served(4);
  for (int t = 0; t < 3; t++)
    for (int node : quarters.nodes_of_thread(t, 3)) served[static_cast<size_t>(node)]++;
  EXPECT_EQ(served, (std::vector<int>{1, 1, 1, 1}));
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

TEST_F(WeightStoreTest, MatricesOfOneOpMustBeAlike) {
  auto written = write_safetensors(directory_ + "/model.safetensors", tensors());
  ASSERT_TRUE(written.ok());
  auto index = TensorIndex::open(directory_);
  ASSERT_TRUE(index.ok());
  auto declare = [&](WeightPolicy policy) {
    WeightStore store(backend_, &*index, policy);
    Weight a, b;
    Tensor norm;
    store.matrix(&a, "a.weight", 300, 200, WeightClass::kExpert);
    store.matrix(&b, "b.weight", 300, 200, WeightClass::kExpert);
    store.vector(&norm, "norm.weight", 200);
    store.alike("a.weight", "b.weight", true);
    Result<void> status = store.status();
    return status.ok() ? std::string() : status.error().message;
  };
  EXPECT_EQ(declare({}), directory_ +
                             "/model.safetensors: tensor b.weight: weight format fp8_block differs from that of a.weight: bf16; the "
                             "experts of a layer need one: convert with "
                             "--quantization");
  EXPECT_EQ(declare({.linear = &kInt8Channel}), "");
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
