#include "model/weight_source_columns.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "quant/convert.h"

namespace dg::weight_source {
namespace {

// Published bytes of a strip. A pread of a strip's piece of a row costs some 0.3 us, so strips shall be wide; but each thread
// holds one.
constexpr int64_t kStripBytes = 8 << 20;
constexpr int64_t kRowsAtATime = 128;

}  // namespace

ColumnPackedSource::ColumnPackedSource(const Lookup& l, const Parts& parts, const Layout& layout)
    : WeightSource(l.index, RowPacker::format(layout.bits, layout.centred), l.out, l.in), layout_(layout), parts_(parts) {
  tensors_ = {parts.weight, parts.zeros, parts.scales};
  if (parts.g_idx) tensors_.push_back(parts.g_idx);
}

int64_t ColumnPackedSource::strip_rows() const {
  const int64_t column_bytes = std::max<int64_t>(1, in_ * layout_.bits / 8);
  return std::max(kRowsAtATime, kStripBytes / column_bytes / kRowsAtATime * kRowsAtATime);
}

ColumnPackedSource::Strip ColumnPackedSource::strip_layout(int64_t columns) const {
  const int64_t per_word = 32 / layout_.bits;
  Strip s{};
  s.weight_stride = layout_.weight_rows == in_ ? columns / per_word : columns;  // packed along out (AWQ) or along in (GPTQ)
  s.zero_stride = columns / per_word;
  s.zeros_at = static_cast<size_t>(layout_.weight_rows * s.weight_stride * 4);
  s.scales_at = s.zeros_at + static_cast<size_t>(group_count() * s.zero_stride * 4);
  s.bytes = s.scales_at + static_cast<size_t>(group_count() * columns) * dtype_bytes(parts_.scales->dtype);
  return s;
}

// Bytes [begin, begin + count) of each of `rows` rows of `row_bytes`.
Result<void> ColumnPackedSource::read_block(const TensorInfo& info, int64_t rows, int64_t row_bytes, int64_t begin, int64_t count,
                                            std::byte* to) const {
  const MappedFile& file = index_.file(info.file);
  if (count == row_bytes) return file.read_into(info.offset, {to, static_cast<size_t>(rows * count)});
  for (int64_t r = 0; r < rows; r++)
    DG_TRY(file.read_into(info.offset + static_cast<uint64_t>(r * row_bytes + begin), {to + r * count, static_cast<size_t>(count)}));
  return {};
}

// Groups and order of k in act order; without it g_idx, if there, must say nothing else than k / group.
Result<void> ColumnPackedSource::load_order(std::vector<int32_t>& groups, std::vector<int32_t>& order) const {
  groups.clear();
  order.clear();
  if (!parts_.g_idx) return {};
  DG_TRY(sort_by_group(index_, *parts_.g_idx, group_count(), groups, order));
  if (layout_.sorted) return {};
  for (size_t k = 0; k < order.size(); k++)
    if (order[k] != static_cast<int32_t>(k) || groups[k] != static_cast<int32_t>(static_cast<int64_t>(k) / layout_.group))
      return input_error(
          fmt::format("{}: expected groups in order, found column {} at [{}]; set \"desc_act\": true in the "
                      "quantization_config of config.json",
                      where(*parts_.g_idx), order[k], k));
  groups.clear();
  order.clear();
  return {};
}

Result<std::vector<int32_t>> ColumnPackedSource::columns() const {
  std::vector<int32_t> groups, order;
  DG_TRY(load_order(groups, order));
  return order;
}

Result<void> ColumnPackedSource::load_strip(LoadScratch& scratch) const {
  if (scratch.strip_of == this && scratch.strip_first == scratch.task_first && scratch.strip_rows == scratch.task_rows) return {};
  scratch.strip_of = nullptr;  // until it is complete
  const int64_t first = scratch.task_first, columns = scratch.task_rows, per_word = 32 / layout_.bits;
  const Strip s = strip_layout(columns);
  const auto scale_bytes = static_cast<int64_t>(dtype_bytes(parts_.scales->dtype));
  if (scratch.strip.size() < s.bytes) {
    scratch.strip.clear();
    scratch.strip.resize(s.bytes);
  }
  const bool along_out = layout_.weight_rows == in_;
  const int64_t unit = along_out ? per_word : 1;
  DG_TRY(read_block(*parts_.weight, layout_.weight_rows, out_ / unit * 4, first / unit * 4, columns / unit * 4, scratch.strip.data()));
  DG_TRY(read_block(*parts_.zeros, group_count(), out_ / per_word * 4, first / per_word * 4, columns / per_word * 4,
                    scratch.strip.data() + s.zeros_at));
  DG_TRY(read_block(*parts_.scales, group_count(), out_ * scale_bytes, first * scale_bytes, columns * scale_bytes,
                    scratch.strip.data() + s.scales_at));
  DG_TRY(load_order(scratch.groups, scratch.order));
  if (layout_.centred) DG_TRY(check_zeros(scratch));
  scratch.strip_of = this;
  scratch.strip_first = first;
  scratch.strip_rows = columns;
  return {};
}

Result<void> ColumnPackedSource::check_zeros(const LoadScratch& scratch) const {
  const Strip s = strip_layout(scratch.task_rows);
  const auto* words = reinterpret_cast<const uint32_t*>(scratch.strip.data() + s.zeros_at);
  const int centre = 1 << (layout_.bits - 1);
  std::vector<uint8_t> zeros(static_cast<size_t>(scratch.task_rows));
  for (int64_t g = 0; g < group_count(); g++) {
    unpack_zeros(words + g * s.zero_stride, 0, scratch.task_rows, zeros.data());
    for (size_t n = 0; n < zeros.size(); n++)
      if (zeros[n] + layout_.zero_offset != centre)
        return input_error(
            fmt::format("{}: expected zero points of {}, found {} at [{}, {}]; set \"sym\": false in the "
                        "quantization_config of config.json",
                        where(*parts_.zeros), centre, zeros[n] + layout_.zero_offset, g, scratch.task_first + static_cast<int64_t>(n)));
  }
  return {};
}

Result<void> ColumnPackedSource::read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const {
  CHECK(first >= scratch.task_first && first + rows <= scratch.task_first + scratch.task_rows);
  DG_TRY(load_strip(scratch));
  const Strip s = strip_layout(scratch.task_rows);
  const auto* words = reinterpret_cast<const uint32_t*>(scratch.strip.data());
  const auto* zero_words = reinterpret_cast<const uint32_t*>(scratch.strip.data() + s.zeros_at);
  const std::byte* scale_data = scratch.strip.data() + s.scales_at;
  const auto scale_bytes = static_cast<int64_t>(dtype_bytes(parts_.scales->dtype));
  const RowPacker packer(*format_, in_, data, scales);
  uint8_t codes[32][kRowsAtATime], zeros[kRowsAtATime];
  uint16_t scale[kRowsAtATime];
  float scale_values[kRowsAtATime];
  for (int64_t row = 0; row < rows; row += kRowsAtATime) {
    const int64_t n = std::min(kRowsAtATime, rows - row), column = first - scratch.task_first + row;
    int64_t group = -1;
    for (int64_t k = 0; k < in_; k += 32) {
      const int64_t count = std::min<int64_t>(32, in_ - k);
      const int64_t g = scratch.groups.empty() ? k / layout_.group : scratch.groups[static_cast<size_t>(k)];
      if (g != group) {
        group = g;
        decode_scales(parts_.scales->dtype, scale_data + (g * scratch.task_rows + column) * scale_bytes, n, scale_values);
        for (int64_t i = 0; i < n; i++) {
          scale[i] = float_to_f16(scale_values[i]);
          if (!std::isfinite(f16_to_float(scale[i])))
            return input_error(fmt::format("{}: expected finite scales below 65520, found {} at [{}, {}]", where(*parts_.scales),
                                           scale_values[i], g, first + row + i));
        }
        unpack_zeros(zero_words + g * s.zero_stride, column, n, zeros);
      }
      for (int64_t j = 0; j < count; j++) {
        const int64_t from = scratch.order.empty() ? k + j : scratch.order[static_cast<size_t>(k + j)];
        unpack_codes(words, s.weight_stride, from, column, n, codes[j]);
      }
      for (int64_t i = 0; i < n; i++) {
        uint8_t one[32];
        for (int64_t j = 0; j < 32; j++) one[j] = codes[j][i];
        packer.pack(row + i, k / 32, one, count, scale[i], zeros[i] + layout_.zero_offset);
      }
    }
  }
  return {};
}

}  // namespace dg::weight_source
