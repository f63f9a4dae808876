#include "engine/sampler_kernels.h"

#include <array>
#include <cstring>
#include <limits>
#include <vector>

// Optimised in debug builds too, and never contracted to fused multiply-adds, which only some processors have.
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC push_options
#pragma GCC optimize("O3", "fp-contract=off")
#endif

#define DG_INLINE static inline __attribute__((always_inline))

namespace dg {
namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef uint32_t UintLanes __attribute__((vector_size(64)));
constexpr size_t kLanes = 16;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

DG_INLINE void exp2_lanes(const Lanes& y, Lanes& result) {
  Lanes whole = y + kExp2Round;
  Lanes r = y - (whole - kExp2Round);
  Lanes p = r * kExp2[5] + kExp2[4];
  for (int i = 3; i >= 0; i--) p = p * r + kExp2[i];
  UintLanes exponent, bits;
  std::memcpy(&exponent, &whole, sizeof exponent);
  std::memcpy(&bits, &p, sizeof bits);
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof p);
  result = y > kSmallestExponent ? p : Lanes{};  // below that, and for NaN, p is meaningless
}

DG_INLINE float max_chunk(const float* logits) {
  Lanes best[4];
  for (Lanes& lanes : best) lanes = Lanes{} + kLowest;
  for (size_t i = 0; i < kChunk; i += 4 * kLanes) {
    for (size_t k = 0; k < 4; k++) {
      Lanes x;
      std::memcpy(&x, logits + i + k * kLanes, sizeof x);
      best[k] = x > best[k] ? x : best[k];
    }
  }
  for (size_t k = 1; k < 4; k++) best[0] = best[k] > best[0] ? best[k] : best[0];
  float lanes[kLanes];
  std::memcpy(lanes, &best[0], sizeof lanes);
  for (size_t width = kLanes / 2; width > 0; width /= 2)
    for (size_t i = 0; i < width; i++) lanes[i] = lanes[i + width] > lanes[i] ? lanes[i + width] : lanes[i];
  return lanes[0];
}

DG_INLINE float sum_chunk(const float* logits, float max, float scale) {
  Lanes sum[2] = {};
  for (size_t i = 0; i < kChunk; i += 2 * kLanes) {
    for (size_t k = 0; k < 2; k++) {
      Lanes x, weight;
      std::memcpy(&x, logits + i + k * kLanes, sizeof x);
      exp2_lanes((x - max) * scale, weight);
      sum[k] += weight;
    }
  }
  sum[0] += sum[1];
  float lanes[kLanes];
  std::memcpy(lanes, &sum[0], sizeof lanes);
  for (size_t width = kLanes / 2; width > 0; width /= 2)
    for (size_t i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

DG_INLINE void max_body(const float* const* chunks, size_t count, float* max) {
  for (size_t c = 0; c < count; c++) max[c] = chunks[c] ? max_chunk(chunks[c]) : kLowest;
}

DG_INLINE void max_sum_body(const float* const* chunks, size_t count, float scale, float* max, float* sum) {
  float so_far = kLowest;
  for (size_t c = 0; c < count; c++) {
    max[c] = chunks[c] ? max_chunk(chunks[c]) : kLowest;
    bool counts = max[c] > kLowest && !((max[c] - so_far) * scale < -kNegligibleBits);
    sum[c] = counts ? sum_chunk(chunks[c], max[c], scale) : 0;
    if (max[c] > so_far) so_far = max[c];
  }
}

DG_INLINE void mask_body(const float* logits, const uint32_t* bits, float* out) {
  const IntLanes zero = {}, bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  const Lanes lowest = Lanes{} + kLowest;
  for (size_t i = 0; i < kChunk; i += kLanes) {
    auto word = static_cast<int32_t>((bits[i / 32] >> (i % 32)) & 0xffff);
    Lanes x;
    std::memcpy(&x, logits + i, sizeof x);
    x = (bit & word) != zero ? x : lowest;
    std::memcpy(out + i, &x, sizeof x);
  }
}

#define DG_VARIANT(name, attribute)                                                                                 \
  attribute void max_##name(const float* const* chunks, size_t count, float* max) { max_body(chunks, count, max); } \
  attribute void max_sum_##name(const float* const* chunks, size_t count, float scale, float* max, float* sum) {    \
    max_sum_body(chunks, count, scale, max, sum);                                                                   \
  }                                                                                                                 \
  attribute void mask_##name(const float* logits, const uint32_t* bits, float* out) { mask_body(logits, bits, out); }
#define DG_VARIANT_ROW(name) \
  { #name, max_##name, max_sum_##name, mask_##name }

DG_VARIANT(generic, )
#ifdef __x86_64__
DG_VARIANT(avx2, __attribute__((target("avx2"))))
DG_VARIANT(avx512, __attribute__((target("avx512f"))))
#endif

}  // namespace

#ifndef __clang__
#pragma GCC pop_options
#endif

std::span<const SamplerKernels> sampler_kernels() {
  static const std::vector<SamplerKernels> usable = [] {
    std::vector<SamplerKernels> list = {DG_VARIANT_ROW(generic)};
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) list.push_back(DG_VARIANT_ROW(avx2));
    if (__builtin_cpu_supports("avx512f")) list.push_back(DG_VARIANT_ROW(avx512));
#endif
    return list;
  }();
  return usable;
}

#undef DG_VARIANT
#undef DG_VARIANT_ROW
#undef DG_INLINE

}  // namespace dg
