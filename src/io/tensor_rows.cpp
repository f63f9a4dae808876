// TensorIndex::read_rows: rows in order, whatever their order in the file.
#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "io/tensor_index.h"
#include "quant/convert.h"

namespace dg {
namespace {

// Place of row r of a head of n rows that was permuted for ggml's rope: pairs (i, i + n/2) became neighbours.
int64_t rotary_place(int64_t r, int64_t n) { return r < n / 2 ? 2 * r : 2 * (r - n / 2) + 1; }

// The rows of one head of a part, decoded: (part.rows, part.in).
Result<void> decode_head(const MappedFile& file, const TensorInfo::Part& part, int64_t head, std::vector<std::byte>& raw,
                         std::vector<float>& values) {
  const int64_t row_bytes = part.format->row_bytes(part.in);
  raw.resize(static_cast<size_t>(part.rows * row_bytes));
  values.resize(static_cast<size_t>(part.rows * part.in));
  DG_TRY(file.read_into(part.offset + static_cast<uint64_t>(head) * raw.size(), raw));
  const Weight weight{.format = part.format, .data = raw.data(), .out = part.rows, .in = part.in};
  for (int64_t r = 0; r < part.rows; r++) weight.decode(r, 0, part.in, values.data() + r * part.in);
  return {};
}

void store(Dtype dtype, const float* values, int64_t stride, int64_t n, std::byte* out) {
  if (dtype == Dtype::kF32) {
    for (int64_t i = 0; i < n; i++) std::memcpy(out + i * 4, values + i * stride, 4);
    return;
  }
  for (int64_t i = 0; i < n; i++) {
    const uint16_t half = float_to_bf16(values[i * stride]);
    std::memcpy(out + i * 2, &half, 2);
  }
}

}  // namespace

Result<void> TensorIndex::read_computed(const TensorInfo& info, int64_t first, int64_t rows, std::span<std::byte> out) const {
  const TensorInfo::Part &k = info.parts[0], &v = info.parts[1];
  const int64_t nope = k.in, kv_lora = k.rows, head_rows = nope + v.rows;
  const int64_t row_bytes = kv_lora * static_cast<int64_t>(dtype_bytes(info.dtype));
  std::vector<std::byte> raw;
  std::vector<float> values;
  for (int64_t row = first; row < first + rows;) {
    const int64_t head = row / head_rows, in_head = row % head_rows;
    const bool is_k = in_head < nope;
    const int64_t end = std::min(first + rows, head * head_rows + (is_k ? nope : head_rows));
    const TensorInfo::Part& part = is_k ? k : v;
    DG_TRY(decode_head(file(part.file), part, head, raw, values));
    for (; row < end; row++) {
      const int64_t at = row - head * head_rows;
      std::byte* to = out.data() + (row - first) * row_bytes;
      if (is_k) store(info.dtype, values.data() + at, nope, kv_lora, to);
      else store(info.dtype, values.data() + (at - nope) * kv_lora, 1, kv_lora, to);
    }
  }
  return {};
}

Result<void> TensorIndex::read_rotary(const TensorInfo& info, int64_t first, int64_t rows, uint64_t row_bytes,
                                      std::span<std::byte> out) const {
  const int64_t n = info.rotary_rows;
  std::vector<std::byte> head_bytes(static_cast<size_t>(n) * row_bytes);
  for (int64_t row = first; row < first + rows;) {
    const int64_t head = row / n, end = std::min(first + rows, (head + 1) * n);
    DG_TRY(file(info.file).read_into(info.offset + static_cast<uint64_t>(head * n) * row_bytes, head_bytes));
    for (; row < end; row++)
      std::memcpy(out.data() + static_cast<uint64_t>(row - first) * row_bytes,
                  head_bytes.data() + static_cast<uint64_t>(rotary_place(row - head * n, n)) * row_bytes, row_bytes);
  }
  return {};
}

Result<void> TensorIndex::read_rows(const TensorInfo& info, int64_t first, int64_t rows, std::span<std::byte> out) const {
  const bool vector = info.shape.size() <= 1;
  int64_t all = 1, in = info.shape.empty() ? 1 : info.shape.back();
  for (size_t i = 0; i + 1 < info.shape.size(); i++) all *= info.shape[i];
  const uint64_t row_bytes =
      info.format ? static_cast<uint64_t>(info.format->row_bytes(in)) : static_cast<uint64_t>(in) * dtype_bytes(info.dtype);
  CHECK(first >= 0 && rows >= 0 && first <= all && rows <= all - first) << info.name << ": rows " << first << " + " << rows;
  CHECK(out.size() == static_cast<uint64_t>(rows) * row_bytes) << info.name;
  if (!info.parts.empty()) return read_computed(info, first, rows, out);
  if (info.rotary_rows > 0) {
    if (vector) return rows == 0 ? Result<void>{} : read_rotary(info, 0, in, dtype_bytes(info.dtype), out);
    return read_rotary(info, first, rows, row_bytes, out);
  }
  return file(info.file).read_into(info.offset + static_cast<uint64_t>(first) * row_bytes, out);
}

}  // namespace dg
