// AWQ, version "gemm": X.qweight I32 (in, out / 8), X.qzeros I32 (groups, out / 8), X.scales F16 (groups, out); 4 bits, packed
// along out in the order 0, 2, 4, 6, 1, 3, 5, 7. w = (q - zero) * scale. Source: spec/quant_formats.md section 5.
#include <fmt/core.h>

#include "model/weight_source_columns.h"

namespace dg {
namespace {

// Column 8 i + c lies in nibble kNibble[c] of word i.
constexpr int kNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

class AwqSource : public weight_source::ColumnPackedSource {
 public:
  using ColumnPackedSource::ColumnPackedSource;

 protected:
  void unpack_codes(const uint32_t* words, int64_t stride, int64_t k, int64_t column, int64_t n, uint8_t* to) const override {
    unpack_zeros(words + k * stride, column, n, to);
  }
  void unpack_zeros(const uint32_t* words, int64_t column, int64_t n, uint8_t* to) const override {
    for (int64_t i = 0; i < n; i += 8) {
      const uint32_t word = words[(column + i) / 8];
      for (int c = 0; c < 8; c++) to[i + c] = static_cast<uint8_t>(word >> (4 * kNibble[c]) & 15);
    }
  }
};

}  // namespace

namespace weight_source {

bool claims_awq(const Lookup& l) { return l.config.method == QuantConfig::Method::kAwq && l.has(".qweight"); }

Made make_awq(const Lookup& l) {
  const TensorInfo& weight = *l.find(".qweight");
  const int64_t group = l.config.group < 0 ? (l.in + 31) / 32 * 32 : l.config.group, groups = (l.in + group - 1) / group;
  if (l.out % 8 != 0)
    return input_error(
        fmt::format("{}: AWQ packs 8 columns to a word: expected a multiple of 8 outputs, found {}", l.where(weight), l.out));
  DG_TRY(l.check_dtype(weight, {Dtype::kI32}));
  DG_TRY(l.check_shape(weight, {l.in, l.out / 8}, " (in, out / 8)"));
  const TensorInfo *zeros = l.find(".qzeros"), *scales = l.find(".scales");
  if (!zeros) return l.missing(".qzeros", {groups, l.out / 8}, weight);
  if (!scales) return l.missing(".scales", {groups, l.out}, weight);
  DG_TRY(l.check_dtype(*zeros, {Dtype::kI32}));
  DG_TRY(l.check_dtype(*scales, {Dtype::kF16, Dtype::kBf16, Dtype::kF32}));
  const std::string why = fmt::format(" (groups of {})", group);
  DG_TRY(l.check_shape(*zeros, {groups, l.out / 8}, why));
  DG_TRY(l.check_shape(*scales, {groups, l.out}, why));
  return Made(std::make_unique<AwqSource>(
      l, ColumnPackedSource::Parts{&weight, zeros, scales},
      ColumnPackedSource::Layout{.bits = 4, .group = group, .centred = false, .zero_offset = 0, .sorted = false, .weight_rows = l.in}));
}

}  // namespace weight_source
}  // namespace dg
