#include "quant/formats.h"

#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"
#include "quant/fp8_channel.h"
#include "quant/int4_asym.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4_gguf.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"

namespace dg {

//                           name  pack elements, bytes    scale        rows, cols of a scale block
const Format kF32{"f32", 1, 4, ScaleType::kNone, 1, 0, f32_decode, f32_encode};
const Format kBf16{"bf16", 1, 2, ScaleType::kNone, 1, 0, bf16_decode, bf16_encode};
const Format kF16{"f16", 1, 2, ScaleType::kNone, 1, 0, f16_decode, f16_encode};
const Format kFp8BlockFormat{"fp8_block", 1, 1, ScaleType::kF32, kFp8Block, kFp8Block, fp8_block_decode, fp8_block_encode};
const Format kQ80{"q8_0", 32, 34, ScaleType::kNone, 1, 0, q8_0_decode, q8_0_encode};
const Format kInt8Channel{"int8", 1, 1, ScaleType::kF32, 1, 0, int8_channel_decode, int8_channel_encode};
const Format kInt4GroupFormat{
    "int4", kInt4Group, 16, ScaleType::kF16, 1, kInt4Group, int4_group_decode, int4_group_encode, int4_group_codes4, true};
const Format kFp8Block32{"fp8_block32", 1, 1, ScaleType::kF32, kFp8SmallBlock, kFp8SmallBlock, fp8_block32_decode, fp8_block32_encode};
const Format kFp8Channel{"fp8_channel", 1, 1, ScaleType::kF32, 1, 0, fp8_channel_decode, fp8_channel_encode};
const Format kInt4Asym{"int4_asym", 32, 20, ScaleType::kNone, 1, 0, int4_asym_decode, int4_asym_encode, int4_asym_codes4};
const Format kInt8Asym{"int8_asym", 32, 36, ScaleType::kNone, 1, 0, int8_asym_decode, int8_asym_encode};

// GGUF's blocks, with their scales inside.
const Format kQ40{"q4_0", 32, 18, ScaleType::kNone, 1, 0, q4_0_decode, q4_0_encode, q4_0_codes4, true};
const Format kQ41{"q4_1", 32, 20, ScaleType::kNone, 1, 0, q4_1_decode, q4_1_encode, q4_1_codes4};
const Format kQ50{"q5_0", 32, 22, ScaleType::kNone, 1, 0, q5_0_decode, q5_0_encode};
const Format kQ51{"q5_1", 32, 24, ScaleType::kNone, 1, 0, q5_1_decode, q5_1_encode};
const Format kQ2K{"q2_k", kKQuantBlock, 84, ScaleType::kNone, 1, 0, q2_k_decode, q2_k_encode};
const Format kQ3K{"q3_k", kKQuantBlock, 110, ScaleType::kNone, 1, 0, q3_k_decode, q3_k_encode};
const Format kQ4K{"q4_k", kKQuantBlock, 144, ScaleType::kNone, 1, 0, q4_k_decode, q4_k_encode, q4_k_codes4};
const Format kQ5K{"q5_k", kKQuantBlock, 176, ScaleType::kNone, 1, 0, q5_k_decode, q5_k_encode};
const Format kQ6K{"q6_k", kKQuantBlock, 210, ScaleType::kNone, 1, 0, q6_k_decode, q6_k_encode};
const Format kIq4Nl{"iq4_nl", 32, 18, ScaleType::kNone, 1, 0, iq4_nl_decode, iq4_nl_encode, iq4_nl_codes4, false, kIq4Values};
const Format kIq4Xs{"iq4_xs", kKQuantBlock, 136, ScaleType::kNone, 1, 0, iq4_xs_decode, iq4_xs_encode, iq4_xs_codes4, false, kIq4Values};
const Format kMxfp4Gguf{"mxfp4_gguf",      32,    17,       ScaleType::kNone, 1, 0, mxfp4_gguf_decode, mxfp4_gguf_encode,
                        mxfp4_gguf_codes4, false, kFp4Table};

namespace {
constexpr const Format* kFormats[] = {
    &kF32,
    &kBf16,
    &kF16,
    &kFp8BlockFormat,
    &kQ80,
    &kInt8Channel,
    &kInt4GroupFormat,
    &kFp8Block32,
    &kFp8Channel,
    &kInt4Asym,
    &kInt8Asym,
    &kQ40,
    &kQ41,
    &kQ50,
    &kQ51,
    &kQ2K,
    &kQ3K,
    &kQ4K,
    &kQ5K,
    &kQ6K,
    &kIq4Nl,
    &kIq4Xs,
    &kMxfp4Gguf,
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
