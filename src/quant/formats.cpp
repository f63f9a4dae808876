#include "quant/formats.h"

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/q8_0.h"

namespace dg {

//                           name  pack elements, bytes    scale        rows, cols of a scale block
const Format kF32{"f32", 1, 4, ScaleType::kNone, 1, 0, f32_decode, f32_encode};
const Format kBf16{"bf16", 1, 2, ScaleType::kNone, 1, 0, bf16_decode, bf16_encode};
const Format kF16{"f16", 1, 2, ScaleType::kNone, 1, 0, f16_decode, f16_encode};
const Format kFp8BlockFormat{"fp8_block", 1, 1, ScaleType::kF32, kFp8Block, kFp8Block, fp8_block_decode, fp8_block_encode};
const Format kQ80{"q8_0", 32, 34, ScaleType::kNone, 1, 0, q8_0_decode, q8_0_encode};
const Format kInt8Channel{"int8", 1, 1, ScaleType::kF32, 1, 0, int8_channel_decode, int8_channel_encode};
const Format kInt4GroupFormat{"int4", kInt4Group, 16, ScaleType::kF16, 1, kInt4Group, int4_group_decode, int4_group_encode};

namespace {
constexpr const Format* kFormats[] = {
    &kF32, &kBf16, &kF16, &kFp8BlockFormat, &kQ80, &kInt8Channel, &kInt4GroupFormat,
};
}  // namespace

std::span<const Format* const> all_formats() { return kFormats; }

const Format* find_format(std::string_view name) {
  for (const Format* f : kFormats)
    if (name == f->name) return f;
  return nullptr;
}

std::string format_names() {
  std::string names;
  for (const Format* f : kFormats) {
    if (!names.empty()) names += ", ";
    names += f->name;
  }
  return names;
}

}  // namespace dg
