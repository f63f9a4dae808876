// Parts of matrices against slices of the whole, in every format; where a part may be cut, and what is said where it may not.
#include "model/weight_part.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "io/safetensors.h"
#include "model/split.h"
#include "model/weight_source.h"
#include "quant/formats.h"
#include "quant/fp8_block.h"

namespace dg {
namespace {

// A matrix in memory, as a published one.
class MemorySource : public WeightSource {
 public:
  MemorySource(const TensorIndex& index, const Format& format, int64_t out, int64_t in, int64_t word = 1)
      : WeightSource(index, format, out, in), word_(word) {
    std::mt19937 rng(static_cast<unsigned>(out * 7 + in));
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(out * in));
    for (float& v : values) v = normal(rng);
    data_.resize(static_cast<size_t>(format.data_bytes(out, in)));
    scales_.resize(static_cast<size_t>(format.scale_bytes(out, in)));
    // Not every format can be written: of those any bytes will do, without NaN in the floats.
    if (format.encode) format.encode(values.data(), out, in, data_.data(), scales_.data());
    else
      for (std::byte& b : data_) b = static_cast<std::byte>(rng() & 0x3f);
    tensors_ = {&index.tensors()[0]};
  }
  Weight weight() const { return {format_, data_.data(), scales_.data(), out_, in_}; }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch&) const override {
    EXPECT_EQ(first % format_->scale_rows, 0);
    EXPECT_EQ(first % word_, 0);
    EXPECT_LE(first + rows, out_);
    std::memcpy(data, data_.data() + first * format_->row_bytes(in_), static_cast<size_t>(format_->data_bytes(rows, in_)));
    if (!scales_.empty())
      std::memcpy(scales, scales_.data() + first / format_->scale_rows * format_->scale_col_count(in_) * format_->scale_bytes_each(),
                  static_cast<size_t>(format_->scale_bytes(rows, in_)));
    return {};
  }

 protected:
  int64_t rows_of_word() const override { return word_; }

 private:
  int64_t word_;
  std::vector<std::byte> data_, scales_;
};

class WeightPartTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/dougong part XXXXXX";
    directory_ = mkdtemp(name);
    const std::vector<float> one = {1};
    const TensorToWrite tensor{"x", Dtype::kF32, {1}, std::as_bytes(std::span(one))};
    ASSERT_TRUE(write_safetensors(directory_ + "/model.safetensors", {&tensor, 1}).ok());
    auto index = TensorIndex::open(directory_);
    ASSERT_TRUE(index.ok());
    index_ = std::make_unique<TensorIndex>(std::move(*index));
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  // Reads the part in steps of 128 rows and compares it with the whole, bit for bit.
  void expect_slice(const Format& format, int64_t out, int64_t in, const WeightPart& part) {
    auto source = std::make_unique<MemorySource>(*index_, format, out, in);
    const Weight whole = source->weight();
    auto made = part_of_source(std::move(source), part, "x");
    ASSERT_TRUE(made.ok()) << made.error().message;
    WeightSource& cut = **made;
    ASSERT_EQ(cut.out(), part.local_out(out));
    ASSERT_EQ(cut.in(), part.local_in(in));
    const Format& kept = cut.format();
    std::vector<std::byte> data(static_cast<size_t>(kept.data_bytes(cut.out(), cut.in()))),
        scales(static_cast<size_t>(kept.scale_bytes(cut.out(), cut.in())));
    LoadScratch scratch;
    for (int64_t r = 0; r < cut.out(); r += 256) {  // tasks, each in two steps
      scratch.task_first = r;
      scratch.task_rows = std::min<int64_t>(256, cut.out() - r);
      for (int64_t s = r; s < r + scratch.task_rows; s += 128) {
        const int64_t rows = std::min<int64_t>(128, cut.out() - s);
        ASSERT_TRUE(cut.read(s, rows, data.data() + s * kept.row_bytes(cut.in()),
                             scales.data() + s / kept.scale_rows * kept.scale_col_count(cut.in()) * kept.scale_bytes_each(), scratch)
                        .ok());
        EXPECT_EQ(scratch.task_first, r);
      }
    }
    const Weight local{&kept, data.data(), scales.data(), cut.out(), cut.in()};
    std::vector<float> expected(static_cast<size_t>(in)), found(static_cast<size_t>(cut.in()));
    for (int64_t r = 0; r < cut.out(); r++) {
      whole.decode(part.first_row + r, 0, in, expected.data());
      local.decode(r, 0, cut.in(), found.data());
      for (size_t k = 0; k < found.size(); k++)
        ASSERT_EQ(found[k], expected[static_cast<size_t>(part.first_column) + k]) << format.name << " row " << r << " column " << k;
    }
  }

  std::string directory_;
  std::unique_ptr<TensorIndex> index_;
};

TEST_F(WeightPartTest, EveryFormatGivesTheSliceOfTheWhole) {
  for (const Format* format : all_formats()) {
    const WeightCuts cuts = cuts_of(*format);
    // A ragged end where the format has one.
    const int64_t out = 700, in = 3 * std::max<int64_t>(cuts.columns, 256) + (format->pack_elements <= 32 ? 20 : 0);
    SCOPED_TRACE(format->name);
    const int64_t row = 9 * cuts.rows, column = 256;
    expect_slice(*format, out, in, {});
    expect_slice(*format, out, in, WeightPart::of_rows(0, row));
    expect_slice(*format, out, in, WeightPart::of_rows(row, 300));
    expect_slice(*format, out, in, WeightPart::of_rows(row, out - row));
    expect_slice(*format, out, in, WeightPart::of_columns(0, column));
    expect_slice(*format, out, in, WeightPart::of_columns(column, in - column));
    expect_slice(*format, out, in, WeightPart::of_columns(cuts.columns, 256));
    expect_slice(*format, out, in, {.first_row = row, .rows = 290, .first_column = cuts.columns, .columns = cuts.columns});
  }
}

TEST_F(WeightPartTest, BlocksThatACutDividesBecomeSmaller) {
  for (const WeightPart& part : {WeightPart::of_rows(288, 288), WeightPart::of_columns(96, 200), WeightPart::of_rows(32, 1)})
    expect_slice(kFp8BlockFormat, 700, 500, part);
  auto format_of = [&](const WeightPart& part) {
    auto made = part_of_source(std::make_unique<MemorySource>(*index_, kFp8BlockFormat, 700, 500), part, "x");
    return made.ok() ? (*made)->format().name : made.error().message;
  };
  EXPECT_EQ(format_of(WeightPart::of_rows(256, 100)), "fp8_block");
  EXPECT_EQ(format_of(WeightPart::of_rows(288, 100)), "fp8_block32");
  EXPECT_EQ(format_of(WeightPart::of_columns(384, 116)), "fp8_block");
  EXPECT_EQ(format_of(WeightPart::of_rows(80, 80)),
            "x: cannot be split in front of row 80: weights of format fp8_block are cut every 32 rows only; use another "
            "--tensor-parallel-size");
  EXPECT_EQ(format_of(WeightPart::of_columns(36, 36)),
            "x: cannot be split in front of column 36: weights of format fp8_block are cut every 32 columns only; use another "
            "--tensor-parallel-size");
}

TEST_F(WeightPartTest, RowsOfAWordStayTogether) {
  auto source = [&] { return std::make_unique<MemorySource>(*index_, *find_format("int4"), 64, 64, 8); };
  EXPECT_EQ(source()->cuts().rows, 8);
  EXPECT_FALSE(part_of_source(source(), WeightPart::of_rows(4, 4), "x").ok());
  EXPECT_TRUE(part_of_source(source(), WeightPart::of_rows(8, 4), "x").ok());
}

TEST(Split, IsEqualWhereItCanBeAndCoversEverything) {
  for (int n : {1, 2, 3, 4, 6, 8})
    for (int64_t unit : {1, 8, 32, 128, 256})
      for (int64_t size : {36, 208, 325, 1408, 2048, 10944, 18432, 129280}) {
        int64_t end = 0;
        bool possible = true;
        for (int r = 0; r < n; r++) {
          const Share share = split_evenly({.rank = r, .size = n}, size, unit);
          if (share.count == 0) {
            possible = false;
            continue;
          }
          EXPECT_EQ(share.first, end) << size << " over " << n << " in blocks of " << unit;
          if (r > 0) {
            EXPECT_EQ(share.first % unit, 0);
          }
          end = share.first + share.count;
        }
        if (possible) {
          EXPECT_EQ(end, size);
        }
        EXPECT_EQ(possible, n == 1 || (size + unit - 1) / unit >= n) << size << " over " << n << " in blocks of " << unit;
      }
  EXPECT_EQ(split_evenly({.rank = 1, .size = 4}, 2048, 128).count, 512);
  EXPECT_EQ(split_evenly({.rank = 3, .size = 4}, 129280, 1).first, 96960);
  EXPECT_EQ(split_evenly({.rank = 0, .size = 2}, 1408, 128).count, 640);
  EXPECT_EQ(split_evenly({.rank = 1, .size = 2}, 100, 0).count, 0) << "nowhere";
}

TEST(Split, KeyValueHeadsFollowTheirQueryHeads) {
  auto share = [](int rank, int size, int64_t heads, int64_t kv) {
    const HeadShare s = split_heads({.rank = rank, .size = size}, heads, kv);
    return std::vector<int64_t>{s.q.first, s.q.count, s.kv.first, s.kv.count};
  };
  EXPECT_EQ(share(1, 2, 32, 8), (std::vector<int64_t>{16, 16, 4, 4}));
  EXPECT_EQ(share(3, 4, 8, 2), (std::vector<int64_t>{6, 2, 1, 1})) << "two ranks share a key-value head";
  EXPECT_EQ(share(2, 3, 6, 2)[1], 0) << "two heads of rank 1 read different key-value heads";
  EXPECT_EQ(share(0, 2, 5, 5)[1], 0);
}

}  // namespace
}  // namespace dg
