#include "app/synth_weights.h"

#include <fmt/core.h>

#include <cmath>
#include <functional>

#include "io/shape_text.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"

namespace dg {

Result<void> RandomWeightRows::rows(const std::string& name, int64_t out_rows, int64_t in, int64_t first, int64_t rows, float* out) const {
  if (out_rows == 1) {
    std::fill(out, out + in, name.ends_with("bias") ? 0.0f : 1.0f);
    return {};
  }
  // FNV-1a over the name: the same numbers on every machine.
  uint64_t hash = 0xcbf29ce484222325ULL ^ seed_;
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  const float scale = 1 / std::sqrt(static_cast<float>(in));
  Normal normal = normal_;
  for (int64_t r = 0; r < rows; r++, out += in) {
    normal.reseed(hash ^ (static_cast<uint64_t>(first + r) * 0xff51afd7ed558ccdULL));
    for (int64_t i = 0; i < in; i++) out[i] = normal.next() * scale;
  }
  return {};
}

Result<void> CheckpointWeightRows::rows(const std::string& name, int64_t out_rows, int64_t in, int64_t first, int64_t rows,
                                        float* out) const {
  const TensorInfo* info = index_.find(name);
  if (!info) return input_error(fmt::format("{}: tensor {} is missing", index_.file(0).path(), name));
  const std::string where = fmt::format("{}: tensor {}", index_.file(info->file).path(), name);
  const bool vector = out_rows == 1;
  if (info->shape != (vector ? std::vector<int64_t>{in} : std::vector<int64_t>{out_rows, in}))
    return input_error(fmt::format("{}: expected shape [{}, {}], found {}", where, out_rows, in, shape_text(info->shape)));
  const Format* format = info->format;
  if (!format) {
    switch (info->dtype) {
      case Dtype::kF32: format = &kF32; break;
      case Dtype::kF16: format = &kF16; break;
      case Dtype::kBf16: format = &kBf16; break;
      case Dtype::kF8E4m3: format = &kFp8BlockFormat; break;
      default: return input_error(fmt::format("{}: expected F32, F16, BF16 or F8_E4M3, found {}", where, dtype_name(info->dtype)));
    }
  }
  // FP8 scales belong to blocks of 128 rows: read from the begin of the block.
  const int64_t begin = format == &kFp8BlockFormat ? first / kFp8Block * kFp8Block : first;
  const int64_t count = first + rows - begin;
  std::vector<std::byte> raw(static_cast<size_t>(format->row_bytes(in) * count));
  DG_TRY(index_.read_rows(*info, begin, count, raw));
  Weight weight{.format = format, .data = raw.data(), .out = count, .in = in};
  std::vector<float> scales;
  if (format == &kFp8BlockFormat) {
    const TensorInfo* scale = index_.find(name + "_scale_inv");
    const std::vector<int64_t> shape{format->scale_row_count(out_rows), format->scale_col_count(in)};
    if (!scale || scale->dtype != Dtype::kF32 || scale->shape != shape)
      return input_error(fmt::format("{}: expected tensor {}_scale_inv of shape {} in F32", where, name, shape_text(shape)));
    const int64_t blocks = format->scale_row_count(count);
    scales.resize(static_cast<size_t>(blocks * shape[1]));
    DG_TRY(index_.read_rows(*scale, begin / kFp8Block, blocks, std::as_writable_bytes(std::span(scales))));
    weight.scales = reinterpret_cast<const std::byte*>(scales.data());
  }
  for (int64_t r = 0; r < rows; r++) weight.decode(first - begin + r, 0, in, out + r * in);
  return {};
}

}  // namespace dg
