// The decoders the kernels use: those of quant/<format>.h, except for the formats with small packs. There GCC 12 works 16
// elements at a time in the narrowest vectors, so here a run of packs is taken apart into arrays of scales and codes
// first, and long loops over these use the full width. Same values bit for bit: the embed rows of the op table compare.
#pragma once
#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/vec.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/f32.h"
#include "quant/fp8_block.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/q8_0.h"

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr int kPack = 32;          // elements of a q8_0 pack and of an int4 group
constexpr int kPacksAtATime = 16;  // 512 elements: what a matmul asks for

// out = scale of the pack * code, for `packs` whole packs.
inline void scale_codes(const uint16_t* scale_bits, const int8_t* codes, int packs, float* __restrict out) {
  float scales[kPacksAtATime];
  for (int i = 0; i < kPacksAtATime; i++) scales[i] = f16_to_float(scale_bits[i]);
  for (int i = 0; i < packs * kPack; i++) out[i] = static_cast<float>(codes[i]);
  for (int p = 0; p < packs; p++)
    for (int i = 0; i < kPack; i += kLanes) store(out + p * kPack + i, load(out + p * kPack + i) * scales[p]);
}

void q8_0_decode_packs(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const int64_t end = col + n;
  const std::byte* pack = w.data + (row * ((w.in + kPack - 1) / kPack) + col / kPack) * 34;
  while (n >= kPack) {
    const int packs = static_cast<int>(n / kPack < kPacksAtATime ? n / kPack : kPacksAtATime);
    uint16_t scale_bits[kPacksAtATime] = {};
    int8_t codes[kPacksAtATime * kPack];
    for (int p = 0; p < packs; p++, pack += 34) {
      std::memcpy(scale_bits + p, pack, 2);
      std::memcpy(codes + p * kPack, pack + 2, kPack);
    }
    scale_codes(scale_bits, codes, packs, out);
    out += packs * kPack;
    n -= packs * kPack;
  }
  if (n > 0) q8_0_decode(w, row, end - n, n, out);
}

void int4_decode_groups(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  typedef uint8_t u8x16 __attribute__((vector_size(16)));
  const int64_t end = col + n, group = row * ((w.in + kPack - 1) / kPack) + col / kPack;
  const std::byte* p = w.data + group * 16;
  const std::byte* scales = w.scales + group * 2;
  while (n >= kPack) {
    const int packs = static_cast<int>(n / kPack < kPacksAtATime ? n / kPack : kPacksAtATime);
    uint16_t scale_bits[kPacksAtATime] = {};
    int8_t codes[kPacksAtATime * kPack];
    std::memcpy(scale_bits, scales, static_cast<size_t>(packs) * 2);
    for (int g = 0; g < packs; g++, p += 16) {
      u8x16 bytes;
      std::memcpy(&bytes, p, 16);
      const u8x16 low = (bytes & 15) - 8, high = (bytes >> 4) - 8;
      std::memcpy(codes + g * kPack, &low, 16);
      std::memcpy(codes + g * kPack + 16, &high, 16);
    }
    scale_codes(scale_bits, codes, packs, out);
    scales += packs * 2;
    out += packs * kPack;
    n -= packs * kPack;
  }
  if (n > 0) int4_group_decode(w, row, end - n, n, out);
}

constexpr Decoder kDecoders[] = {
    {"f32", f32_decode},         {"bf16", bf16_decode},         {"f16", f16_decode},          {"fp8_block", fp8_block_decode},
    {"q8_0", q8_0_decode_packs}, {"int8", int8_channel_decode}, {"int4", int4_decode_groups},
};

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
