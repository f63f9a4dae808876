// int-quantized compressed-tensors (W8A8): X.weight I8 (out, in), X.weight_scale F32, BF16 or F16: one, or one per row.
// Activations are quantised per token whatever X.input_scale says. Source: spec/quant_formats.md section 7.
#include <fmt/core.h>

#include <algorithm>

#include "io/shape_text.h"
#include "model/weight_source_parts.h"
#include "quant/int8_channel.h"

namespace dg {
namespace {

class Int8Source : public WeightSource {
 public:
  Int8Source(const TensorIndex& index, const TensorInfo& weight, const TensorInfo& scale, const TensorInfo* zero, int64_t out, int64_t in,
             bool single)
      : WeightSource(index, kInt8Channel, out, in), zero_(zero), single_(single) {
    tensors_ = {&weight, &scale};
    if (zero) tensors_.push_back(zero);
  }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const override {
    const TensorInfo &weight = *tensors_[0], &scale = *tensors_[1];
    DG_TRY(index_.file(weight.file).read_into(weight.offset + static_cast<uint64_t>(first * in_), {data, static_cast<size_t>(rows * in_)}));
    auto* to = reinterpret_cast<float*>(scales);
    DG_TRY(weight_source::read_scales(index_, scale, single_ ? 0 : first, single_ ? 1 : rows, scratch.raw, to));
    if (single_) std::fill_n(to, rows, to[0]);
    int64_t bad = weight_source::find_not_finite(to, rows);
    if (bad >= 0)
      return input_error(fmt::format("{}: expected finite scales, found {} at [{}]", where(scale), to[bad], single_ ? 0 : first + bad));
    if (zero_) {
      // Symmetric weights may come with zero points that say so.
      scratch.raw.resize(static_cast<size_t>(zero_->bytes));
      DG_TRY(index_.file(zero_->file).read_into(zero_->offset, scratch.raw));
      for (size_t i = 0; i < scratch.raw.size(); i++)
        if (scratch.raw[i] != std::byte{0})
          return input_error(fmt::format("{}: expected zero points of 0, found {} at [{}]; use a checkpoint with symmetric weights",
                                         where(*zero_), static_cast<int>(static_cast<int8_t>(scratch.raw[i])), i));
    }
    return {};
  }

 private:
  const TensorInfo* zero_;
  bool single_;
};

}  // namespace

namespace weight_source {

bool claims_int8(const Lookup& l) {
  const TensorInfo* weight = l.index.find(l.name);
  return weight && !weight->format && weight->dtype == Dtype::kI8 && l.has(".weight_scale");
}

Made make_int8(const Lookup& l) {
  const TensorInfo &weight = *l.index.find(l.name), &scale = *l.find(".weight_scale");
  DG_TRY(l.check_shape(weight, {l.out, l.in}, " from config.json"));
  DG_TRY(l.check_dtype(scale, {Dtype::kF32, Dtype::kBf16, Dtype::kF16}));
  const std::vector<int64_t>& shape = scale.shape;
  const bool rows = shape == std::vector<int64_t>{l.out, 1} || shape == std::vector<int64_t>{l.out};
  const bool single = shape.empty() || shape == std::vector<int64_t>{1} || shape == std::vector<int64_t>{1, 1};
  if (!rows && !single)
    return input_error(fmt::format("{}: expected shape {} (a scale per row) or [1], found {}", l.where(scale),
                                   shape_text(std::vector<int64_t>{l.out, 1}), shape_text(shape)));
  const TensorInfo* zero = l.find(".weight_zero_point");
  if (zero) {
    DG_TRY(l.check_dtype(*zero, {Dtype::kI8}));
    if (static_cast<int64_t>(zero->bytes) > l.out) return l.check_shape(*zero, shape).error();
  }
  return Made(std::make_unique<Int8Source>(l.index, weight, scale, zero, l.out, l.in, single && !rows));
}

}  // namespace weight_source
}  // namespace dg
