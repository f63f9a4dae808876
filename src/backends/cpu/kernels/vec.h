// Vectors of the instruction set a kernel file is compiled for, through the compiler's vector extensions.
//
// Reductions use 16 float lanes on every instruction set: lane l of a sum takes elements l, l + 16, l + 32, ... in that
// order and hsum16 adds the lanes in one fixed tree. Narrower machines keep the 16 lanes in several vectors. So results
// differ between instruction sets only by fused multiply-add, and never with batch or thread count.
#pragma once
#include <cstdint>
#include <cstring>

namespace dg::DG_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr bool kManyRegisters = true;
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr bool kManyRegisters = false;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr bool kManyRegisters = true;
#else
constexpr int kLanes = 4;
constexpr bool kManyRegisters = false;
#endif
constexpr int kParts = 16 / kLanes;  // vectors that make up 16 lanes

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef float vf_unaligned __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }
inline vf splat(float v) { return vf{} + v; }
// The first n lanes, zeros behind; n < kLanes or more.
inline vf load_first(const float* p, int64_t n) {
  float lanes[kLanes] = {};
  for (int i = 0; i < kLanes; i++)
    if (i < n) lanes[i] = p[i];
  return load(lanes);
}
inline void store_first(float* p, vf v, int64_t n) {
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < kLanes; i++)
    if (i < n) p[i] = lanes[i];
}

// out[i] = f(i) for vectors; f(i, first) loads what it needs by calling first(pointer).
template <class F>
inline void for_each_vector(int64_t n, float* out, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, f([i](const float* p) { return load(p + i); }));
  if (i < n) store_first(out + i, f([i, n](const float* p) { return load_first(p + i, n - i); }), n - i);
}

inline float hsum16(const float* lanes) {
  float s[8];
  for (int i = 0; i < 8; i++) s[i] = lanes[i] + lanes[i + 8];
  for (int i = 0; i < 4; i++) s[i] += s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

// e^x within 2 ulp; 0 below -87.33 and 2^127.4 above 88.3; NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2, and
// e^r = 1 + r + r^2 p(r) with p interpolated at the Chebyshev points.
inline vf exp_vector(vf x) {
  const vf low = splat(-87.33f), high = splat(88.3f);
  vf y = x < low ? low : x;
  y = y > high ? high : y;
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits
  vf shifted = y * 1.44269504f + round;
  vf n = shifted - round;
  vf r = y - n * 0.693359375f;  // ln 2 in two parts; the first has few bits, so the product is exact
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.989108045e-04f);
  p = p * r + 1.393373072e-03f;
  p = p * r + 8.333310845e-03f;
  p = p * r + 4.166646420e-02f;
  p = p * r + 1.666666668e-01f;
  p = p * r + 5.000000014e-01f;
  vf e = (p * r) * r + r + 1.0f;
  vi bits = (reinterpret_cast<vi>(shifted) - (0x4b400000 - 127)) << 23;
  e = e * reinterpret_cast<vf>(bits);
  return x < low ? vf{} : e;
}

// x / (1 + e^-x); below -88.3, where the exponential saturates, the value is smaller than 1e-36: 0.
inline vf silu_vector(vf x) {
  vf value = x / (1.0f + exp_vector(-x));
  return x < -88.3f ? vf{} : value;
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
