// Reading the paged cache on the device: where a row stands, single elements as f32 (exact), and 8 columns at a time as bf16.
#pragma once
#include "backends/cuda/kernels/attention_kernels.h"
#include "backends/cuda/kernels/attention_mma.h"
#include "backends/cuda/kernels/row_convert.h"

namespace dg::cuda {

__device__ __forceinline__ const unsigned char* cache_row(const CacheView& c, const int32_t* blocks, int position) {
  const int block = position / c.block_tokens;
  return c.data + blocks[block] * c.block_bytes + (position - block * c.block_tokens) * c.row_bytes;
}

__device__ __forceinline__ uint32_t int8_scale_of(const unsigned char* row, int width, int column) {
  const unsigned char* at = row + (width + 1) / 2 * 2 + column / 64 * 2;
  return __ldg(at) | (static_cast<uint32_t>(__ldg(at + 1)) << 8);
}

template <Element kElement>
__device__ __forceinline__ float cache_element(const unsigned char* row, int width, int column) {
  if constexpr (kElement == Element::kF32) return __ldg(reinterpret_cast<const float*>(row) + column);
  else if constexpr (kElement == Element::kBf16) return bf16_bits_to_float(__ldg(reinterpret_cast<const uint16_t*>(row) + column));
  else if constexpr (kElement == Element::kF16) return f16_bits_to_float(__ldg(reinterpret_cast<const uint16_t*>(row) + column));
  else if constexpr (kElement == Element::kE4m3) return e4m3_bits_to_float(__ldg(row + column));
  else return static_cast<float>(static_cast<signed char>(__ldg(row + column))) * f16_bits_to_float(int8_scale_of(row, width, column));
}

// 4 kWords bytes from any address: words of the aligned area around them, joined. Reads no word without a wanted byte.
template <int kWords>
__device__ __forceinline__ void load_unaligned(const unsigned char* from, uint32_t (&out)[kWords]) {
  const auto address = reinterpret_cast<uintptr_t>(from);
  const auto* words = reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
  const unsigned shift = static_cast<unsigned>(address & 3) * 8;
  uint32_t w[kWords + 1];
#pragma unroll
  for (int i = 0; i < kWords; i++) w[i] = __ldg(words + i);
  w[kWords] = shift ? __ldg(words + kWords) : 0;
#pragma unroll
  for (int i = 0; i < kWords; i++) out[i] = __funnelshift_r(w[i], w[i + 1], shift);
}

// Two E4M3 codes (bytes kFirst and kFirst + 1 of `w`) as bf16: exponent and mantissa moved to their places, then times 2^120. Exact.
template <int kFirst>
__device__ __forceinline__ uint32_t e4m3_pair_to_bf16(uint32_t w) {
  const uint32_t x = __byte_perm(w, 0, kFirst == 0 ? 0x1404 : 0x3424);  // codes in the high bytes of the halves
  const uint32_t bits = (x & 0x80008000u) | ((x & 0x7f007f00u) >> 4);
  const uint32_t power = 0x7b807b80u;
  const __nv_bfloat162 v = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits), *reinterpret_cast<const __nv_bfloat162*>(&power));
  return *reinterpret_cast<const uint32_t*>(&v);
}

// Columns [column, column + 8) of a row as bf16; column is a multiple of 8. bf16 as stored, E4M3 exactly, f16 and int8 rounded.
template <Element kElement>
__device__ __forceinline__ uint4 load_eight(const CacheView& c, const unsigned char* row, int column) {
  if constexpr (kElement == Element::kBf16 || kElement == Element::kF16) {
    uint32_t w[4];
    const unsigned char* from = row + column * 2;
    if (c.aligned) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
      w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    } else {
      load_unaligned(from, w);
    }
    if constexpr (kElement == Element::kF16) {
#pragma unroll
      for (int i = 0; i < 4; i++) w[i] = pack_bf16(f16_bits_to_float(w[i] & 0xffffu), f16_bits_to_float(w[i] >> 16));
    }
    return {w[0], w[1], w[2], w[3]};
  } else {
    uint32_t w[2];
    if (c.aligned) {
      const uint2 v = __ldg(reinterpret_cast<const uint2*>(row + column));
      w[0] = v.x, w[1] = v.y;
    } else {
      load_unaligned(row + column, w);
    }
    if constexpr (kElement == Element::kE4m3) {
      return {e4m3_pair_to_bf16<0>(w[0]), e4m3_pair_to_bf16<2>(w[0]), e4m3_pair_to_bf16<0>(w[1]), e4m3_pair_to_bf16<2>(w[1])};
    } else {
      const float scale = f16_bits_to_float(int8_scale_of(row, c.width, column));
      uint32_t out[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t pair = w[i / 2] >> (i % 2 * 16);
        out[i] = pack_bf16(static_cast<float>(static_cast<signed char>(pair & 0xffu)) * scale,
                           static_cast<float>(static_cast<signed char>(pair >> 8 & 0xffu)) * scale);
      }
      return {out[0], out[1], out[2], out[3]};
    }
  }
}

// Length of the ranges that the positions of a decode sequence are cut into: a multiple of 64.
__device__ __forceinline__ int split_length(const SplitPlan& plan, int kv_len) {
  return max(plan.least, (kv_len + plan.splits * 64 - 1) / (plan.splits * 64) * 64);
}

}  // namespace dg::cuda
