// Encoders of the integer formats. They run once per weight at load (--quantization), in parallel over row blocks, and the
// search for int4's scales is most of the time of such a load: so it is written with the compiler's vectors, which it turns
// into whatever the target has, and on x86 compiled a second time for AVX2, chosen when it runs. Without FMA, so that both give
// the same weights.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/int4_asym.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/q8_0.h"

#define DG_ENCODE_INLINE static inline __attribute__((always_inline))

namespace dg {
namespace {

typedef float Lanes __attribute__((vector_size(32)));
typedef int32_t IntLanes __attribute__((vector_size(32)));
typedef uint32_t WordLanes __attribute__((vector_size(32)));
typedef uint8_t ByteLanes __attribute__((vector_size(8)));
constexpr int kLanes = 8;
constexpr int kPack = 32;

// Vectors pass by reference: by value their calling convention depends on the instruction set.
DG_ENCODE_INLINE void load_lanes(const float* x, Lanes& to) { std::memcpy(&to, x, sizeof to); }
// Nearest integer within [low, high] (whole numbers above -2^22). Adding 1.5 * 2^23 leaves the integer in the low bits, where
// integer minimum and maximum limit it: they are single instructions, and NaN becomes an end of the range.
DG_ENCODE_INLINE void round_lanes(Lanes& v, float low, float high) {
  constexpr float kShift = 12582912.0f;
  v = v + kShift;
  IntLanes bits, lowest, highest;
  const Lanes low_lanes = Lanes{} + (low + kShift), high_lanes = Lanes{} + (high + kShift);
  std::memcpy(&bits, &v, sizeof bits);
  std::memcpy(&lowest, &low_lanes, sizeof bits);
  std::memcpy(&highest, &high_lanes, sizeof bits);
  bits = bits > lowest ? bits : lowest;
  bits = bits < highest ? bits : highest;
  std::memcpy(&v, &bits, sizeof bits);
  v = v - kShift;
}
DG_ENCODE_INLINE float round_one(float v, float low, float high) {
  v = (v + 12582912.0f) - 12582912.0f;
  v = v > low ? v : low;
  return v < high ? v : high;
}

// Largest and smallest of 0 and x[0, n); NaN counts as 0.
DG_ENCODE_INLINE void range_of(const float* x, int64_t n, float& low, float& high) {
  Lanes lows{}, highs{}, v;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    load_lanes(x + i, v);
    lows = v < lows ? v : lows;
    highs = v > highs ? v : highs;
  }
  low = high = 0;
  for (int lane = 0; lane < kLanes; lane++) low = std::min(low, lows[lane]), high = std::max(high, highs[lane]);
  for (; i < n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
}

// to[i] = bias + round(x[i] * inverse + add) within [low, high].
DG_ENCODE_INLINE void codes_of(const float* x, int64_t n, float inverse, float add, float low, float high, int bias, uint8_t* to) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Lanes v;
    load_lanes(x + i, v);
    v = v * inverse + add;
    round_lanes(v, low, high);
    const IntLanes codes = __builtin_convertvector(v, IntLanes) + bias;
    const ByteLanes bytes = __builtin_convertvector(codes, ByteLanes);
    std::memcpy(to + i, &bytes, sizeof bytes);
  }
  for (; i < n; i++) to[i] = static_cast<uint8_t>(static_cast<int>(round_one(x[i] * inverse + add, low, high)) + bias);
}

// Elements j and j + 16 share a byte.
DG_ENCODE_INLINE void join_nibbles(const uint8_t* codes, uint8_t* to) {
  for (int j = 0; j < kPack / 2; j++) to[j] = static_cast<uint8_t>(codes[j] | codes[j + kPack / 2] << 4);
}

// One group of 32, padded with zeros.
DG_ENCODE_INLINE void load_group(const float* source, int64_t cols, int64_t row, int64_t group, float* x) {
  const int64_t n = std::min<int64_t>(kPack, cols - group * kPack);
  for (int i = static_cast<int>(n); i < kPack; i++) x[i] = 0;
  std::memcpy(x, source + row * cols + group * kPack, static_cast<size_t>(n) * 4);
}

// Eight scales are tried at once, one per lane. Rounds them to f16 as they will be stored; those it cannot hold become 0.
DG_ENCODE_INLINE void f16_lanes(Lanes& v) {
  WordLanes bits;
  std::memcpy(&bits, &v, sizeof bits);
  bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
  Lanes normal;
  std::memcpy(&normal, &bits, sizeof normal);
  const Lanes magnitude = v < 0 ? -v : v, small = (magnitude + 0.75f) - 0.75f;  // steps of 2^-24 below 2^-14
  const Lanes zero{};
  v = magnitude < 0x1p-14f ? (v < 0 ? -small : small) : magnitude < 65520.0f ? normal : zero;
}

// The codes of a group for a scale are round(x / scale) in [-8, 7]. Their squared error (infinite for scale 0), and what the
// best scale for just these codes needs: sums of x * code and code^2.
struct Int4Fit {
  Lanes error, x_code, code_code;
};
DG_ENCODE_INLINE void int4_fit(const float* x, const Lanes& scale, Int4Fit& fit) {
  const Lanes zero{}, one = zero + 1, inverse = scale != 0 ? one / scale : zero;
  Lanes error{}, x_code{}, code_code{};
  for (int i = 0; i < kPack; i++) {
    const Lanes v = zero + x[i];
    Lanes code = v * inverse;
    round_lanes(code, -8, 7);
    const Lanes d = v - code * scale;
    error += d * d;
    x_code += v * code;
    code_code += code * code;
  }
  const Lanes never = zero + INFINITY;
  fit = {scale != 0 ? error : never, x_code, code_code};
}

DG_ENCODE_INLINE void take_best(const Lanes& scale, const Lanes& error, float& best_scale, float& best_error) {
  for (int lane = 0; lane < kLanes; lane++)
    if (error[lane] < best_error) best_error = error[lane], best_scale = scale[lane];
}

// The scale (as it will be stored, f16) of a group with the least squared error among those tried: the element of largest
// magnitude gets -8 (what GGUF's Q4_0 does, so no group is worse than there), about that, or is clipped; and each of these
// moved to where the error of its own codes is least.
DG_ENCODE_INLINE float int4_scale(const float* x) {
  float low, high;
  range_of(x, kPack, low, high);
  const float top = high >= -low ? high : low;
  const Lanes top_codes = {-8.0f, -8.4f, -7.6f, -7.1f, -8.8f, -6.6f, 7.4f, 7.0f};
  Lanes scale = (Lanes{} + top) / top_codes;
  if (high == -low) scale[6] = low / -8.0f;  // both signs are the largest
  f16_lanes(scale);
  float best_scale = 0, best_error = INFINITY;
  Int4Fit fit;
  int4_fit(x, scale, fit);
  take_best(scale, fit.error, best_scale, best_error);
  const Lanes zero{};
  scale = fit.code_code > 0 ? fit.x_code / fit.code_code : zero;
  f16_lanes(scale);
  int4_fit(x, scale, fit);
  take_best(scale, fit.error, best_scale, best_error);
  return best_scale;
}

DG_ENCODE_INLINE void int4_rows(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  const int64_t groups = (cols + kPack - 1) / kPack;
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < groups; g++) {
      float x[kPack];
      uint8_t codes[kPack];
      load_group(source, cols, r, g, x);
      const float scale = int4_scale(x), inverse = scale != 0 ? 1.0f / scale : 0.0f;
      reinterpret_cast<uint16_t*>(scales)[r * groups + g] = float_to_f16(scale);
      codes_of(x, kPack, inverse, 0, -8, 7, 8, codes);
      join_nibbles(codes, reinterpret_cast<uint8_t*>(data) + (r * groups + g) * 16);
    }
}

// Scale and zero point of a group with codes [0, top_code]: the range holds 0 and is shrunk where that lowers the squared
// error, as a rare large value may cost all others their precision.
struct AsymGrid {
  float scale = 0, zero = 0;
};
DG_ENCODE_INLINE AsymGrid asym_grid(const float* x, float top_code) {
  float low, high;
  range_of(x, kPack, low, high);
  const Lanes shrink = {1.0f, 0.97f, 0.94f, 0.91f, 0.88f, 0.85f, 0.82f, 0.78f}, none{}, one = none + 1;
  Lanes scale = shrink * ((high - low) / top_code);
  f16_lanes(scale);
  const Lanes inverse = scale != 0 ? one / scale : none;
  Lanes zero = shrink * inverse * -low, error{};
  round_lanes(zero, 0, top_code);
  for (int i = 0; i < kPack; i++) {
    const Lanes v = none + x[i];
    Lanes code = v * inverse + zero;
    round_lanes(code, 0, top_code);
    const Lanes d = v - (code - zero) * scale;
    error += d * d;
  }
  AsymGrid best;
  float best_error = INFINITY;
  for (int lane = 0; lane < kLanes; lane++)
    if (scale[lane] != 0 && error[lane] < best_error) best_error = error[lane], best = {scale[lane], zero[lane]};
  return best;
}

template <class Pack, int kTopCode>
DG_ENCODE_INLINE void asym_rows(const float* source, int64_t rows, int64_t cols, std::byte* data) {
  auto* pack = reinterpret_cast<Pack*>(data);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < (cols + kPack - 1) / kPack; g++, pack++) {
      float x[kPack];
      uint8_t codes[kPack];
      load_group(source, cols, r, g, x);
      const AsymGrid grid = asym_grid(x, kTopCode);
      const float inverse = grid.scale != 0 ? 1.0f / grid.scale : 0.0f;
      pack->scale = float_to_f16(grid.scale);
      pack->zero = static_cast<uint16_t>(grid.zero);
      codes_of(x, kPack, inverse, grid.zero, 0, kTopCode, 0, codes);
      if constexpr (kTopCode == 15) join_nibbles(codes, pack->q);
      else std::memcpy(pack->q, codes, kPack);
    }
}

DG_ENCODE_INLINE void q8_0_rows(const float* source, int64_t rows, int64_t cols, std::byte* data) {
  auto* pack = reinterpret_cast<Q80Pack*>(data);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t g = 0; g < (cols + kPack - 1) / kPack; g++, pack++) {
      float x[kPack], low, high;
      load_group(source, cols, r, g, x);
      range_of(x, kPack, low, high);
      pack->scale = float_to_f16(std::max(high, -low) / 127.0f);
      const float stored = f16_to_float(pack->scale), inverse = stored > 0 ? 1.0f / stored : 0.0f;
      codes_of(x, kPack, inverse, 0, -127, 127, 0, reinterpret_cast<uint8_t*>(pack->q));
    }
}

DG_ENCODE_INLINE void int8_rows(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  for (int64_t r = 0; r < rows; r++) {
    float low, high;
    range_of(source + r * cols, cols, low, high);
    const float scale = std::max(high, -low) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
    reinterpret_cast<float*>(scales)[r] = scale;
    codes_of(source + r * cols, cols, inverse, 0, -127, 127, 0, reinterpret_cast<uint8_t*>(data) + r * cols);
  }
}

// name_rows(...) by the best way this processor has.
#if defined(__x86_64__) && !defined(__AVX2__)
#define DG_ENCODE_AVX2 __attribute__((target("avx2")))
DG_ENCODE_AVX2 void int4_avx2(const float* x, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  int4_rows(x, rows, cols, data, scales);
}
DG_ENCODE_AVX2 void int4_asym_avx2(const float* x, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  asym_rows<Int4AsymPack, 15>(x, rows, cols, data);
}
DG_ENCODE_AVX2 void int8_asym_avx2(const float* x, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  asym_rows<Int8AsymPack, 255>(x, rows, cols, data);
}
DG_ENCODE_AVX2 void q8_0_avx2(const float* x, int64_t rows, int64_t cols, std::byte* data, std::byte*) { q8_0_rows(x, rows, cols, data); }
DG_ENCODE_AVX2 void int8_avx2(const float* x, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  int8_rows(x, rows, cols, data, scales);
}
bool use_avx2() { return __builtin_cpu_supports("avx2") > 0; }
#define DG_ENCODE_IF_AVX2(function) \
  if (use_avx2()) return function(source, rows, cols, data, scales);
#else
#define DG_ENCODE_IF_AVX2(function)
#endif

}  // namespace

void int4_group_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  DG_ENCODE_IF_AVX2(int4_avx2)
  int4_rows(source, rows, cols, data, scales);
}
void int4_asym_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, [[maybe_unused]] std::byte* scales) {
  DG_ENCODE_IF_AVX2(int4_asym_avx2)
  asym_rows<Int4AsymPack, 15>(source, rows, cols, data);
}
void int8_asym_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, [[maybe_unused]] std::byte* scales) {
  DG_ENCODE_IF_AVX2(int8_asym_avx2)
  asym_rows<Int8AsymPack, 255>(source, rows, cols, data);
}
void q8_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, [[maybe_unused]] std::byte* scales) {
  DG_ENCODE_IF_AVX2(q8_0_avx2)
  q8_0_rows(source, rows, cols, data);
}
void int8_channel_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte* scales) {
  DG_ENCODE_IF_AVX2(int8_avx2)
  int8_rows(source, rows, cols, data, scales);
}

}  // namespace dg

#undef DG_ENCODE_INLINE
#undef DG_ENCODE_AVX2
#undef DG_ENCODE_IF_AVX2
