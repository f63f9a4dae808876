// Packing of 4- and 8-bit codes into the group formats, and the column order of act-order checkpoints.
#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "model/weight_source_parts.h"
#include "quant/int4_asym.h"
#include "quant/int4_group.h"
#include "quant/q8_0.h"

namespace dg::weight_source {
namespace {

// Elements j and j + 16 share a byte.
void pack_nibbles(const uint8_t* codes, int64_t n, uint8_t* to) {
  uint8_t padded[32];
  if (n < 32) {
    std::memset(padded, 0, sizeof padded);
    std::memcpy(padded, codes, static_cast<size_t>(n));
    codes = padded;
  }
  for (int j = 0; j < 16; j++) to[j] = static_cast<uint8_t>(codes[j] | codes[j + 16] << 4);
}

}  // namespace

const Format& RowPacker::format(int bits, bool centred) {
  if (bits == 4) return centred ? kInt4GroupFormat : kInt4Asym;
  return centred ? kQ80 : kInt8Asym;
}

RowPacker::RowPacker(const Format& format, int64_t in, std::byte* data, std::byte* scales)
    : kind_(&format == &kInt4GroupFormat ? Kind::kInt4
            : &format == &kInt4Asym      ? Kind::kInt4Asym
            : &format == &kQ80           ? Kind::kQ80
                                         : Kind::kInt8Asym),
      groups_((in + 31) / 32),
      data_(data),
      scales_(scales) {}

void RowPacker::pack(int64_t row, int64_t group, const uint8_t* codes, int64_t n, uint16_t scale, int zero) const {
  const int64_t at = row * groups_ + group;
  switch (kind_) {
    case Kind::kInt4:
      reinterpret_cast<uint16_t*>(scales_)[at] = scale;
      pack_nibbles(codes, n, reinterpret_cast<uint8_t*>(data_) + at * 16);
      return;
    case Kind::kInt4Asym: {
      auto* pack = reinterpret_cast<Int4AsymPack*>(data_) + at;
      pack->scale = scale;
      pack->zero = static_cast<uint16_t>(zero);
      pack_nibbles(codes, n, pack->q);
      return;
    }
    case Kind::kQ80: {
      auto* pack = reinterpret_cast<Q80Pack*>(data_) + at;
      pack->scale = scale;
      for (int j = 0; j < 32; j++) pack->q[j] = static_cast<int8_t>(j < n ? codes[j] - 128 : 0);
      return;
    }
    case Kind::kInt8Asym: {
      auto* pack = reinterpret_cast<Int8AsymPack*>(data_) + at;
      pack->scale = scale;
      pack->zero = static_cast<uint16_t>(zero);
      std::memset(pack->q, 0, sizeof pack->q);
      std::memcpy(pack->q, codes, static_cast<size_t>(n));
      return;
    }
  }
}

Result<void> sort_by_group(const TensorIndex& index, const TensorInfo& g_idx, int64_t group_count, std::vector<int32_t>& groups,
                           std::vector<int32_t>& order) {
  auto fault = [&](std::string what) {
    return input_error(fmt::format("{}: tensor {}: {}", index.file(g_idx.file).path(), g_idx.name, what));
  };
  const auto in = static_cast<size_t>(g_idx.shape[0]);
  std::vector<int32_t> published(in);
  DG_TRY(index.file(g_idx.file).read_into(g_idx.offset, std::as_writable_bytes(std::span(published))));
  for (size_t k = 0; k < in; k++)
    if (published[k] < 0 || published[k] >= group_count)
      return fault(fmt::format("expected groups from 0 to {}, found {} at [{}]", group_count - 1, published[k], k));
  order.resize(in);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return published[static_cast<size_t>(a)] < published[static_cast<size_t>(b)]; });
  groups.resize(in);
  for (size_t k = 0; k < in; k++) groups[k] = published[static_cast<size_t>(order[k])];
  for (size_t k = 0; k < in; k++)
    if (k % 32 != 0 && groups[k] != groups[k - 1])
      return fault(fmt::format("expected a multiple of 32 columns in each group, found {} in group {}",
                               std::count(groups.begin(), groups.end(), groups[k - 1]), groups[k - 1]));
  return {};
}

}  // namespace dg::weight_source
