// FP8 (E4M3) matrices with scales beside them. What a scale covers is read off its shape:
//   X.weight_scale_inv F32             128 x 128 blocks: DeepSeek V3, R1 (multiply, despite the name)
//   X.scale            F8_E8M0 or F32  128 x 128 or 32 x 32 blocks: DeepSeek V4
//   X.weight_scale     F32, BF16, F16  one, one per row, or blocks: compressed-tensors float-quantized, quant_method fp8
// Sources: DeepSeek-V3 README_WEIGHTS.md; spec/quant_formats.md sections 2, 3 and 7.
#include <fmt/core.h>

#include <algorithm>

#include "io/shape_text.h"
#include "model/weight_source_parts.h"
#include "quant/fp8_block.h"
#include "quant/fp8_channel.h"

namespace dg {
namespace {

// Index of the first NaN code (0x7f, 0xff) among E4M3 bytes, or -1. The loop vectorises; the search runs on failure only.
int64_t find_e4m3_nan(const uint8_t* p, int64_t n) {
  unsigned found = 0;
  for (int64_t i = 0; i < n; i++) found |= (p[i] & 0x7f) == 0x7f;
  if (!found) return -1;
  for (int64_t i = 0; i < n; i++)
    if ((p[i] & 0x7f) == 0x7f) return i;
  return -1;
}

class Fp8Source : public WeightSource {
 public:
  // `single`: one scale for the whole matrix.
  Fp8Source(const TensorIndex& index, const Format& format, const TensorInfo& weight, const TensorInfo& scale, int64_t out, int64_t in,
            bool single)
      : WeightSource(index, format, out, in), single_(single) {
    tensors_ = {&weight, &scale};
  }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const override {
    const TensorInfo &weight = *tensors_[0], &scale = *tensors_[1];
    DG_TRY(index_.file(weight.file).read_into(weight.offset + static_cast<uint64_t>(first * in_), {data, static_cast<size_t>(rows * in_)}));
    int64_t bad = find_e4m3_nan(reinterpret_cast<const uint8_t*>(data), rows * in_);
    if (bad >= 0)
      return input_error(fmt::format("{}: expected numbers, found NaN at [{}, {}]", where(weight), first + bad / in_, bad % in_));
    auto* to = reinterpret_cast<float*>(scales);
    const int64_t columns = format_->scale_col_count(in_), begin = first / format_->scale_rows, count = format_->scale_row_count(rows);
    if (single_) {
      DG_TRY(weight_source::read_scales(index_, scale, 0, 1, scratch.raw, to));
      std::fill_n(to, count, to[0]);
    } else {
      DG_TRY(weight_source::read_scales(index_, scale, begin * columns, count * columns, scratch.raw, to));
    }
    bad = weight_source::find_not_finite(to, count * columns);
    if (bad >= 0)
      return input_error(fmt::format("{}: expected finite scales, found {} at block [{}, {}]", where(scale), to[bad],
                                     single_ ? 0 : begin + bad / columns, bad % columns));
    return {};
  }

 private:
  bool single_;
};

}  // namespace

namespace weight_source {

bool claims_fp8(const Lookup& l) {
  const TensorInfo* weight = l.index.find(l.name);
  return weight && !weight->format && weight->dtype == Dtype::kF8E4m3;
}

Made make_fp8(const Lookup& l) {
  const TensorInfo& weight = *l.index.find(l.name);
  DG_TRY(l.check_shape(weight, {l.out, l.in}, " from config.json"));
  auto blocks = [&](const Format& f) { return std::vector<int64_t>{f.scale_row_count(l.out), f.scale_col_count(l.in)}; };
  const std::vector<int64_t> large = blocks(kFp8BlockFormat), small = blocks(kFp8Block32);
  const TensorInfo* scale = nullptr;
  for (const char* suffix : {".weight_scale_inv", ".scale", ".weight_scale"})
    if (!scale) scale = l.find(suffix);
  if (!scale) return l.missing(".weight_scale_inv", large, weight);
  DG_TRY(l.check_dtype(*scale, {Dtype::kF32, Dtype::kBf16, Dtype::kF16, Dtype::kF8E8m0}));
  const std::vector<int64_t>& shape = scale->shape;
  const Format* format = nullptr;
  bool single = false;
  if (shape == large) format = &kFp8BlockFormat;
  else if (shape == small) format = &kFp8Block32;
  else if (scale->name.ends_with(".weight_scale")) {
    single = shape.empty() || shape == std::vector<int64_t>{1} || shape == std::vector<int64_t>{1, 1};
    if (single || shape == std::vector<int64_t>{l.out} || shape == std::vector<int64_t>{l.out, 1}) format = &kFp8Channel;
    else
      return input_error(fmt::format("{}: expected shape [1], {} (a scale per row) or {} (128 x 128 blocks of {}), found {}",
                                     l.where(*scale), shape_text(std::vector<int64_t>{l.out, 1}), shape_text(large),
                                     shape_text(weight.shape), shape_text(shape)));
  } else {
    return l.check_shape(*scale, large, fmt::format(" (128 x 128 blocks of {})", shape_text(weight.shape))).error();
  }
  return Made(std::make_unique<Fp8Source>(l.index, *format, weight, *scale, l.out, l.in, single));
}

}  // namespace weight_source
}  // namespace dg
