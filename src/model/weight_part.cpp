#include "model/weight_part.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "model/weight_source.h"
#include "quant/fp8_block.h"

namespace dg {
namespace {

class PartSource : public WeightSource {
 public:
  PartSource(std::unique_ptr<WeightSource> whole, const Format& format, const WeightPart& part)
      : WeightSource(whole->index(), format, part.local_out(whole->out()), part.local_in(whole->in())),
        whole_(std::move(whole)),
        first_row_(part.first_row),
        first_column_(part.first_column) {
    tensors_ = whole_->tensors();
  }

  int64_t strip_rows() const override { return whole_->strip_rows(); }
  bool permuted() const override { return whole_->permuted(); }
  Result<std::vector<int32_t>> columns() const override { return whole_->columns(); }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const override {
    scratch.task_first += first_row_;  // strips are of the whole matrix
    Result<void> done = in_ == whole_->in() && format_ == &whole_->format() ? whole_->read(first_row_ + first, rows, data, scales, scratch)
                                                                            : read_columns(first, rows, data, scales, scratch);
    scratch.task_first -= first_row_;
    return done;
  }

 private:
  Result<void> read_columns(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const {
    const Format &from = whole_->format(), &to = *format_;
    const int64_t whole_in = whole_->in(), from_bytes = from.row_bytes(whole_in), to_bytes = to.row_bytes(in_);
    const int64_t from_columns = from.scale_col_count(whole_in), to_columns = to.scale_col_count(in_), each = from.scale_bytes_each();
    const int64_t skipped = first_column_ / from.pack_elements * from.pack_bytes;
    // Elements from one scale of the part to the next, in columns; 0: one scale of a whole row.
    const int64_t to_scale_columns = to.scale_cols == 0 ? 1 : to.scale_cols,
                  from_scale_columns = from.scale_cols == 0 ? in_ + first_column_ : from.scale_cols;
    for (int64_t r = 0; r < rows; r += kReadRows) {
      const int64_t count = std::min(kReadRows, rows - r), begin = first_row_ + first + r;
      const int64_t aligned = begin / from.scale_rows * from.scale_rows, read_rows = begin + count - aligned;
      scratch.part_data.resize(static_cast<size_t>(from.data_bytes(read_rows, whole_in)));
      scratch.part_scales.resize(static_cast<size_t>(from.scale_bytes(read_rows, whole_in)));
      DG_TRY(whole_->read(aligned, read_rows, scratch.part_data.data(), scratch.part_scales.data(), scratch));
      for (int64_t i = 0; i < count; i++)
        std::memcpy(data + (r + i) * to_bytes, scratch.part_data.data() + (begin - aligned + i) * from_bytes + skipped,
                    static_cast<size_t>(to_bytes));
      if (each == 0) continue;
      for (int64_t i = 0; i < count; i += to.scale_rows) {
        const std::byte* source = scratch.part_scales.data() + (begin - aligned + i) / from.scale_rows * from_columns * each;
        std::byte* target = scales + (r + i) / to.scale_rows * to_columns * each;
        for (int64_t c = 0; c < to_columns; c++)
          std::memcpy(target + c * each, source + (first_column_ + c * to_scale_columns) / from_scale_columns * each,
                      static_cast<size_t>(each));
      }
    }
    return {};
  }

  std::unique_ptr<WeightSource> whole_;
  int64_t first_row_, first_column_;
};

}  // namespace

WeightCuts cuts_of(const Format& format) {
  if (&format == &kFp8BlockFormat) return {kFp8SmallBlock, kFp8SmallBlock};  // part_format()
  return {format.scale_rows, std::lcm(static_cast<int64_t>(format.pack_elements), std::max<int64_t>(1, format.scale_cols))};
}

Result<const Format*> part_format(const Format& format, const WeightCuts& cuts, const WeightPart& part, const std::string& where) {
  if (part.first_row % cuts.rows != 0)
    return input_error(
        fmt::format("{}: cannot be split in front of row {}: weights of format {} are cut every {} rows only; use another "
                    "--tensor-parallel-size",
                    where, part.first_row, format.name, cuts.rows));
  if (part.columns >= 0 && cuts.columns == 0)
    return input_error(
        fmt::format("{}: cannot be split by columns: they are in act order (desc_act); use --tensor-parallel-size 1 or a checkpoint "
                    "without act order",
                    where));
  if (part.first_column > 0 && part.first_column % cuts.columns != 0)
    return input_error(
        fmt::format("{}: cannot be split in front of column {}: weights of format {} are cut every {} columns only; use "
                    "another --tensor-parallel-size",
                    where, part.first_column, format.name, cuts.columns));
  const bool divides = part.first_row % format.scale_rows != 0 || (format.scale_cols > 0 && part.first_column % format.scale_cols != 0);
  return divides ? &kFp8Block32 : &format;
}

Result<std::unique_ptr<WeightSource>> part_of_source(std::unique_ptr<WeightSource> whole, const WeightPart& part,
                                                     const std::string& where) {
  if (part.whole(whole->out(), whole->in())) return whole;
  CHECK(part.first_row + part.local_out(whole->out()) <= whole->out() && part.first_column + part.local_in(whole->in()) <= whole->in());
  DG_ASSIGN(const Format* format, part_format(whole->format(), whole->cuts(), part, where));
  return std::unique_ptr<WeightSource>(std::make_unique<PartSource>(std::move(whole), *format, part));
}

}  // namespace dg
