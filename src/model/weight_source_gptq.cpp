// GPTQ: X.qweight I32 (in * bits / 32, out), packed along in; X.qzeros I32 (groups, out * bits / 32), packed along out;
// X.scales F16 (groups, out); X.g_idx I32 (in), the group of each input. 4 or 8 bits. w = (q - zero) * scale[g_idx];
// checkpoint format v1 stores zero - 1. With desc_act the columns of a group lie anywhere (act order): they are put
// together here, and Weight::columns says where each came from. Source: spec/quant_formats.md section 6.
#include <fmt/core.h>

#include "model/weight_source_columns.h"

namespace dg {
namespace {

class GptqSource : public weight_source::ColumnPackedSource {
 public:
  using ColumnPackedSource::ColumnPackedSource;

 protected:
  void unpack_codes(const uint32_t* words, int64_t stride, int64_t k, int64_t column, int64_t n, uint8_t* to) const override {
    const int per_word = 32 / layout_.bits, shift = static_cast<int>(k % per_word) * layout_.bits;
    const uint32_t mask = (1u << layout_.bits) - 1, *row = words + k / per_word * stride + column;
    for (int64_t i = 0; i < n; i++) to[i] = static_cast<uint8_t>(row[i] >> shift & mask);
  }
  void unpack_zeros(const uint32_t* words, int64_t column, int64_t n, uint8_t* to) const override {
    const int per_word = 32 / layout_.bits;
    const uint32_t mask = (1u << layout_.bits) - 1;
    for (int64_t i = 0; i < n; i++) {
      const int64_t c = column + i;
      to[i] = static_cast<uint8_t>(words[c / per_word] >> (c % per_word * layout_.bits) & mask);
    }
  }
};

}  // namespace

namespace weight_source {

bool claims_gptq(const Lookup& l) { return l.config.method != QuantConfig::Method::kAwq && l.has(".qweight"); }

Made make_gptq(const Lookup& l) {
  const TensorInfo& weight = *l.find(".qweight");
  const QuantConfig& config = l.config;
  if (config.method != QuantConfig::Method::kGptq)
    return input_error(
        fmt::format("{}: packed weights need quantization_config in config.json (quant_method awq or gptq), found none", l.where(weight)));
  const int64_t per_word = 32 / config.bits;
  const int64_t group = config.group < 0 ? (l.in + 31) / 32 * 32 : config.group, groups = (l.in + group - 1) / group;
  if (l.in % per_word != 0 || l.out % per_word != 0)
    return input_error(fmt::format("{}: GPTQ packs {} values to a word: expected in and out to be multiples, found in {}, out {}",
                                   l.where(weight), per_word, l.in, l.out));
  DG_TRY(l.check_dtype(weight, {Dtype::kI32}));
  DG_TRY(l.check_shape(weight, {l.in / per_word, l.out}, fmt::format(" ({} bits: in / {}, out)", config.bits, per_word)));
  const TensorInfo *zeros = l.find(".qzeros"), *scales = l.find(".scales"), *g_idx = l.find(".g_idx");
  if (!zeros) return l.missing(".qzeros", {groups, l.out / per_word}, weight);
  if (!scales) return l.missing(".scales", {groups, l.out}, weight);
  if (config.act_order && !g_idx)
    return input_error(fmt::format("{}: desc_act needs tensor {}.g_idx of shape [{}], which is missing", l.where(weight), l.base, l.in));
  DG_TRY(l.check_dtype(*zeros, {Dtype::kI32}));
  DG_TRY(l.check_dtype(*scales, {Dtype::kF16, Dtype::kBf16, Dtype::kF32}));
  const std::string why = fmt::format(" (groups of {})", group);
  DG_TRY(l.check_shape(*zeros, {groups, l.out / per_word}, why));
  DG_TRY(l.check_shape(*scales, {groups, l.out}, why));
  if (g_idx) {
    DG_TRY(l.check_dtype(*g_idx, {Dtype::kI32}));
    DG_TRY(l.check_shape(*g_idx, {l.in}));
  }
  return Made(std::make_unique<GptqSource>(l, ColumnPackedSource::Parts{&weight, zeros, scales, g_idx},
                                           ColumnPackedSource::Layout{.bits = config.bits,
                                                                      .group = group,
                                                                      .centred = config.symmetric,
                                                                      .zero_offset = config.zero_minus_one ? 1 : 0,
                                                                      .sorted = config.act_order,
                                                                      .weight_rows = l.in / per_word}));
}

}  // namespace weight_source
}  // namespace dg
