// exp2_of_negative of device/row_picks.h on the device, bit for bit.
#pragma once
#include "device/row_picks.h"

namespace dg::cuda {

__device__ __forceinline__ float exp2_exact(float y) {
  const float whole = __fadd_rn(y, kExp2Round);
  const float r = __fsub_rn(y, __fsub_rn(whole, kExp2Round));
  // Local constants: an array of the host has no place on the device.
  constexpr float c0 = kExp2[0], c1 = kExp2[1], c2 = kExp2[2], c3 = kExp2[3], c4 = kExp2[4], c5 = kExp2[5];
  float p = __fadd_rn(__fmul_rn(r, c5), c4);
  p = __fadd_rn(__fmul_rn(p, r), c3);
  p = __fadd_rn(__fmul_rn(p, r), c2);
  p = __fadd_rn(__fmul_rn(p, r), c1);
  p = __fadd_rn(__fmul_rn(p, r), c0);
  p = __uint_as_float(__float_as_uint(p) + (__float_as_uint(whole) << 23));
  return y > kSmallestExponent ? p : 0.0f;
}

}  // namespace dg::cuda
