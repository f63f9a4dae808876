// Integer tile products with AVX-VNNI: codes + 128 as the unsigned factor; the caller subtracts 128 times the sum of x.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace dg::DG_ISA_NAMESPACE {
namespace {

constexpr bool kUnsignedCodes = true;
constexpr int kIntegerRows = 6;  // 12 sums, two registers of codes and one of activations

alignas(32) constexpr uint8_t kPlus128[32] = {128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128,
                                              128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128};

// 32 codes: the quads of 8 outputs.
struct DotCodes {
  __m256i w;
  explicit DotCodes(__m256i codes) {
    // Not the intrinsic: it would keep the constant in the sixteenth register and a sum in memory.
    asm("vpxor %2, %1, %0" : "=x"(w) : "x"(codes), "m"(kPlus128));
  }
  // sum + the products with one quad of activations in all lanes
  __m256i add(__m256i sum, __m256i x) const { return _mm256_dpbusd_avx_epi32(sum, w, x); }
};

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE

#include "backends/cpu/kernels/panel_dot_avx.h"
