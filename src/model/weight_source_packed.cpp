// pack-quantized compressed-tensors (W4A16, W8A16): X.weight_packed I32 (out, in * bits / 32 rounded up), packed along in,
// lowest bits first; X.weight_scale (out, groups); X.weight_zero_point I32 (out * bits / 32 rounded up, groups), packed along
// out, when asymmetric; X.weight_g_idx I32 (in) in act order; X.weight_shape. Symmetric codes are stored with 2^(bits - 1)
// added. w = (q - zero) * scale. Source: spec/quant_formats.md section 7.
#include <fmt/core.h>

#include <cmath>

#include "io/shape_text.h"
#include "model/weight_source_parts.h"
#include "quant/convert.h"

namespace dg {
namespace {

class PackedSource : public WeightSource {
 public:
  struct Parts {
    const TensorInfo *weight, *scale, *zero, *g_idx, *shape;  // the last three may be null
  };
  PackedSource(const weight_source::Lookup& l, const Parts& parts, int bits, int64_t group)
      : WeightSource(l.index, weight_source::RowPacker::format(bits, parts.zero == nullptr), l.out, l.in),
        parts_(parts),
        bits_(bits),
        group_(group),
        groups_(parts.scale->shape[1]),
        row_words_(parts.weight->shape[1]) {
    for (const TensorInfo* info : {parts.weight, parts.scale, parts.zero, parts.g_idx, parts.shape})
      if (info) tensors_.push_back(info);
  }

  bool permuted() const override { return parts_.g_idx != nullptr; }
  Result<std::vector<int32_t>> columns() const override {
    std::vector<int32_t> groups, order;
    DG_TRY(weight_source::sort_by_group(index_, *parts_.g_idx, groups_, groups, order));
    return order;
  }

  Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const override {
    const int64_t per_word = 32 / bits_, zero_first = first / per_word, zero_rows = (first + rows + per_word - 1) / per_word - zero_first;
    // Codes, zero points and scales of these rows, one after the other.
    const auto code_bytes = static_cast<size_t>(rows * row_words_ * 4);
    const auto zero_bytes = static_cast<size_t>(parts_.zero ? zero_rows * groups_ * 4 : 0);
    scratch.strip_of = nullptr;
    scratch.strip.resize(code_bytes + zero_bytes + static_cast<size_t>(rows * groups_ * 4));
    std::span<std::byte> all(scratch.strip), codes = all.first(code_bytes), zeros = all.subspan(code_bytes, zero_bytes);
    auto* scale = reinterpret_cast<float*>(all.subspan(code_bytes + zero_bytes).data());
    const TensorInfo& weight = *parts_.weight;
    DG_TRY(index_.file(weight.file).read_into(weight.offset + static_cast<uint64_t>(first * row_words_ * 4), codes));
    DG_TRY(weight_source::read_scales(index_, *parts_.scale, first * groups_, rows * groups_, scratch.raw, scale));
    if (parts_.zero)
      DG_TRY(index_.file(parts_.zero->file).read_into(parts_.zero->offset + static_cast<uint64_t>(zero_first * groups_ * 4), zeros));
    scratch.groups.clear();
    scratch.order.clear();
    if (parts_.g_idx) DG_TRY(weight_source::sort_by_group(index_, *parts_.g_idx, groups_, scratch.groups, scratch.order));

    const auto* words = reinterpret_cast<const uint32_t*>(codes.data());
    const auto* zero_words = reinterpret_cast<const uint32_t*>(zeros.data());
    const weight_source::RowPacker packer(*format_, in_, data, scales);
    const uint32_t mask = (1u << bits_) - 1;
    std::vector<uint8_t> row(static_cast<size_t>((in_ + 31) / 32 * 32)), sorted(parts_.g_idx ? row.size() : 0);
    for (int64_t r = 0; r < rows; r++) {
      const uint32_t* from = words + r * row_words_;
      for (int64_t w = 0; w < row_words_; w++)
        for (int64_t i = 0; i < per_word && w * per_word + i < in_; i++)
          row[static_cast<size_t>(w * per_word + i)] = static_cast<uint8_t>(from[w] >> (i * bits_) & mask);
      for (size_t k = 0; k < scratch.order.size(); k++) sorted[k] = row[static_cast<size_t>(scratch.order[k])];
      const uint8_t* code = parts_.g_idx ? sorted.data() : row.data();
      int64_t group = -1;
      uint16_t half = 0;
      int zero = 1 << (bits_ - 1);
      for (int64_t k = 0; k < in_; k += 32) {
        const int64_t g = parts_.g_idx ? scratch.groups[static_cast<size_t>(k)] : k / group_;
        if (g != group) {
          group = g;
          const float value = scale[r * groups_ + g];
          half = float_to_f16(value);
          if (!std::isfinite(f16_to_float(half)))
            return input_error(
                fmt::format("{}: expected finite scales below 65520, found {} at [{}, {}]", where(*parts_.scale), value, first + r, g));
          const int64_t n = first + r;
          if (parts_.zero) zero = static_cast<int>(zero_words[(n / per_word - zero_first) * groups_ + g] >> (n % per_word * bits_) & mask);
        }
        packer.pack(r, k / 32, code + k, std::min<int64_t>(32, in_ - k), half, zero);
      }
    }
    return {};
  }

 private:
  const Parts parts_;
  const int bits_;
  const int64_t group_, groups_, row_words_;
};

// Elements per group, a multiple of 32, or 0 when `groups` do not divide the row so.
int64_t group_size(int64_t in, int64_t groups) {
  if (groups == 1) return (in + 31) / 32 * 32;
  if (groups < 1 || groups > in) return 0;
  if (in % groups == 0) return in / groups % 32 == 0 ? in / groups : 0;
  for (int64_t size = 32; size <= in; size *= 2)
    if ((in + size - 1) / size == groups) return size;
  return 0;
}

}  // namespace

namespace weight_source {

bool claims_packed(const Lookup& l) { return l.has(".weight_packed"); }

Made make_packed(const Lookup& l) {
  const TensorInfo& weight = *l.find(".weight_packed");
  DG_TRY(l.check_dtype(weight, {Dtype::kI32}));
  int bits = 0;
  for (int b : {4, 8})
    if (weight.shape == std::vector<int64_t>{l.out, (l.in * b + 31) / 32}) bits = b;
  if (bits == 0)
    return input_error(fmt::format("{}: expected shape {} (4 bits) or {} (8 bits) for {} x {} weights, found {}", l.where(weight),
                                   shape_text(std::vector<int64_t>{l.out, (l.in + 7) / 8}),
                                   shape_text(std::vector<int64_t>{l.out, (l.in + 3) / 4}), l.out, l.in, shape_text(weight.shape)));
  const TensorInfo *scale = l.find(".weight_scale"), *zero = l.find(".weight_zero_point"), *g_idx = l.find(".weight_g_idx");
  if (!scale) return l.missing(".weight_scale", {l.out, (l.in + 127) / 128}, weight);
  DG_TRY(l.check_dtype(*scale, {Dtype::kF32, Dtype::kBf16, Dtype::kF16}));
  const int64_t group = scale->shape.size() == 2 && scale->shape[0] == l.out ? group_size(l.in, scale->shape[1]) : 0;
  if (group == 0)
    return input_error(fmt::format("{}: expected shape [{}, groups] with groups of a multiple of 32 of {} columns, found {}",
                                   l.where(*scale), l.out, l.in, shape_text(scale->shape)));
  const int64_t groups = scale->shape[1], per_word = 32 / bits;
  if (zero) {
    DG_TRY(l.check_dtype(*zero, {Dtype::kI32}));
    DG_TRY(l.check_shape(*zero, {(l.out + per_word - 1) / per_word, groups}, fmt::format(" ({} rows to a word)", per_word)));
  }
  if (g_idx) {
    DG_TRY(l.check_dtype(*g_idx, {Dtype::kI32}));
    DG_TRY(l.check_shape(*g_idx, {l.in}));
  }
  return Made(std::make_unique<PackedSource>(l, PackedSource::Parts{&weight, scale, zero, g_idx, l.find(".weight_shape")}, bits, group));
}

}  // namespace weight_source
}  // namespace dg
