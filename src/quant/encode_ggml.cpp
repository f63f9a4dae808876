// Encoders of GGUF's block formats: scales from the extremes of each block, codes rounded to nearest with the scales as
// stored. llama-quantize searches further for the K formats; files that matter are quantised there, these are for tests,
// synthetic models and conversion while loading.
#include <algorithm>
#include <cmath>
#include <cstring>

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

namespace dg {
namespace {

// Nearest integer within [low, high]; the first addition rounds (1.5 * 2^23). Clamped first, so any value is safe.
int ggml_round(float v, float low, float high) {
  if (!(v == v)) return 0;
  float clamped = std::min(std::max(v, low), high);
  return static_cast<int>((clamped + 12582912.0f) - 12582912.0f);
}

float ggml_inverse(float v) { return v != 0 ? 1.0f / v : 0.0f; }

// Stores an f16 and returns the value it stands for.
float put_f16(uint8_t* p, float v) {
  const uint16_t half = float_to_f16(v);
  p[0] = static_cast<uint8_t>(half);
  p[1] = static_cast<uint8_t>(half >> 8);
  return f16_to_float(half);
}

// The element of largest magnitude, with its sign.
float signed_extreme(const float* x, int n) {
  float top = 0;
  for (int i = 0; i < n; i++)
    if (std::fabs(x[i]) > std::fabs(top)) top = x[i];
  return top;
}

void put_nibbles(uint8_t* qs, const int* codes) {
  for (int j = 0; j < 16; j++) qs[j] = static_cast<uint8_t>(codes[j] | codes[j + 16] << 4);
}

// Calls pack(block of kElements floats padded with zeros, its kBytes zeroed bytes) for every block.
template <int kElements, int kBytes, typename Pack>
void encode_blocks(const float* source, int64_t rows, int64_t cols, std::byte* data, Pack pack) {
  auto* out = reinterpret_cast<uint8_t*>(data);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < cols; c += kElements, out += kBytes) {
      float x[kElements] = {};
      std::memcpy(x, source + r * cols + c, static_cast<size_t>(std::min<int64_t>(kElements, cols - c)) * sizeof(float));
      std::memset(out, 0, kBytes);
      pack(x, out);
    }
}

// Codes 0 .. 2^bits - 1 with scale and minimum per block of 32; fifth bits behind the two f16.
template <int kBits>
void pack_with_minimum(const float* x, uint8_t* p) {
  constexpr float kTop = (1 << kBits) - 1;
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float d = put_f16(p, (*high - *low) / kTop), m = put_f16(p + 2, *low), inverse = ggml_inverse(d);
  int codes[32];
  uint32_t fifth = 0;
  for (int i = 0; i < 32; i++) {
    codes[i] = ggml_round((x[i] - m) * inverse, 0, kTop);
    fifth |= static_cast<uint32_t>(codes[i] >> 4) << i;
    codes[i] &= 15;
  }
  if (kBits == 5)
    for (int i = 0; i < 4; i++) p[4 + i] = static_cast<uint8_t>(fifth >> (8 * i));
  put_nibbles(p + (kBits == 5 ? 8 : 4), codes);
}

// Scale and (negated) minimum of each sub-block, quantised against the largest of the block.
template <int kSubs>
struct MinimumScales {
  float scale[kSubs], minimum[kSubs];  // as stored
  int scale_code[kSubs], minimum_code[kSubs];

  MinimumScales(const float* x, float top_code, float top_scale, uint8_t* d_to, uint8_t* dmin_to) {
    constexpr int kSize = kKQuantBlock / kSubs;
    float s[kSubs], m[kSubs], top_s = 0, top_m = 0;
    for (int i = 0; i < kSubs; i++) {
      const auto [low, high] = std::minmax_element(x + i * kSize, x + (i + 1) * kSize);
      m[i] = std::max(0.0f, -*low);
      s[i] = (std::max(0.0f, *high) + m[i]) / top_code;
      top_s = std::max(top_s, s[i]);
      top_m = std::max(top_m, m[i]);
    }
    const float d = put_f16(d_to, top_s / top_scale), dmin = put_f16(dmin_to, top_m / top_scale);
    for (int i = 0; i < kSubs; i++) {
      scale_code[i] = ggml_round(s[i] * ggml_inverse(d), 0, top_scale);
      minimum_code[i] = ggml_round(m[i] * ggml_inverse(dmin), 0, top_scale);
      scale[i] = d * static_cast<float>(scale_code[i]);
      minimum[i] = dmin * static_cast<float>(minimum_code[i]);
    }
  }
};

void put_k_scales(uint8_t* b, const int* scale, const int* minimum) {
  for (int i = 0; i < 4; i++) {
    b[i] = static_cast<uint8_t>(scale[i] | (scale[i + 4] >> 4) << 6);
    b[i + 4] = static_cast<uint8_t>(minimum[i] | (minimum[i + 4] >> 4) << 6);
    b[i + 8] = static_cast<uint8_t>((scale[i + 4] & 15) | (minimum[i + 4] & 15) << 4);
  }
}

// Code of the IQ4 table nearest to v.
int iq4_code(float v) {
  int best = 0;
  for (int i = 1; i < 16; i++)
    if (std::fabs(v - static_cast<float>(kIq4Values[i])) < std::fabs(v - static_cast<float>(kIq4Values[best]))) best = i;
  return best;
}

// Scales of sub-blocks as multiples (-2^(bits-1) .. 2^(bits-1) - 1) of one d: the largest becomes exactly the lowest code.
template <int kSubs>
void signed_scales(const float* wanted, float low, uint8_t* d_to, int* codes, float* stored) {
  const float d = put_f16(d_to, signed_extreme(wanted, kSubs) / low), inverse = ggml_inverse(d);
  for (int i = 0; i < kSubs; i++) {
    codes[i] = ggml_round(wanted[i] * inverse, low, -low - 1);
    stored[i] = d * static_cast<float>(codes[i]);
  }
}

}  // namespace

void q4_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<32, 18>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    const float inverse = ggml_inverse(put_f16(p, signed_extreme(x, 32) / -8.0f));
    int codes[32];
    for (int i = 0; i < 32; i++) codes[i] = ggml_round(x[i] * inverse, -8, 7) + 8;
    put_nibbles(p + 2, codes);
  });
}

void q4_1_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<32, 20>(source, rows, cols, data, pack_with_minimum<4>);
}

void q5_0_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<32, 22>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    const float inverse = ggml_inverse(put_f16(p, signed_extreme(x, 32) / -16.0f));
    int codes[32];
    uint32_t fifth = 0;
    for (int i = 0; i < 32; i++) {
      codes[i] = ggml_round(x[i] * inverse, -16, 15) + 16;
      fifth |= static_cast<uint32_t>(codes[i] >> 4) << i;
      codes[i] &= 15;
    }
    for (int i = 0; i < 4; i++) p[2 + i] = static_cast<uint8_t>(fifth >> (8 * i));
    put_nibbles(p + 6, codes);
  });
}

void q5_1_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<32, 24>(source, rows, cols, data, pack_with_minimum<5>);
}

void q2_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<kKQuantBlock, 84>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    const MinimumScales<16> s(x, 3, 15, p + 80, p + 82);
    for (int i = 0; i < kKQuantBlock; i++) {
      const int sub = i / 16;
      const int code = ggml_round((x[i] + s.minimum[sub]) * ggml_inverse(s.scale[sub]), 0, 3);
      p[16 + 32 * (sub / 8) + 16 * (sub % 2) + i % 16] |= static_cast<uint8_t>(code << (2 * (sub % 8 / 2)));
    }
    for (int i = 0; i < 16; i++) p[i] = static_cast<uint8_t>(s.scale_code[i] | s.minimum_code[i] << 4);
  });
}

void q3_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<kKQuantBlock, 110>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    float wanted[16], scale[16];
    int codes[16];
    for (int i = 0; i < 16; i++) wanted[i] = signed_extreme(x + 16 * i, 16) / -4.0f;
    signed_scales<16>(wanted, -32, p + 108, codes, scale);
    for (int i = 0; i < 16; i++) {
      const int code = codes[i] + 32;
      p[96 + i % 8] |= static_cast<uint8_t>((code & 15) << (i < 8 ? 0 : 4));
      p[104 + i % 4] |= static_cast<uint8_t>((code >> 4) << (2 * (i / 4)));
    }
    for (int i = 0; i < kKQuantBlock; i++) {
      const int sub = i / 16, code = ggml_round(x[i] * ggml_inverse(scale[sub]), -4, 3) + 4;
      p[32 + 32 * (sub / 8) + 16 * (sub % 2) + i % 16] |= static_cast<uint8_t>((code & 3) << (2 * (sub % 8 / 2)));
      p[16 * (sub % 2) + i % 16] |= static_cast<uint8_t>((code >> 2) << (4 * (sub / 8) + sub % 8 / 2));
    }
  });
}

void q4_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<kKQuantBlock, 144>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    const MinimumScales<8> s(x, 15, 63, p, p + 2);
    put_k_scales(p + 4, s.scale_code, s.minimum_code);
    for (int sub = 0; sub < 8; sub++) {
      const float inverse = ggml_inverse(s.scale[sub]);
      for (int l = 0; l < 32; l++)
        p[16 + 32 * (sub / 2) + l] |=
            static_cast<uint8_t>(ggml_round((x[32 * sub + l] + s.minimum[sub]) * inverse, 0, 15) << (4 * (sub % 2)));
    }
  });
}

void q5_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<kKQuantBlock, 176>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    const MinimumScales<8> s(x, 31, 63, p, p + 2);
    put_k_scales(p + 4, s.scale_code, s.minimum_code);
    for (int sub = 0; sub < 8; sub++) {
      const float inverse = ggml_inverse(s.scale[sub]);
      for (int l = 0; l < 32; l++) {
        const int code = ggml_round((x[32 * sub + l] + s.minimum[sub]) * inverse, 0, 31);
        p[16 + l] |= static_cast<uint8_t>((code >> 4) << sub);
        p[48 + 32 * (sub / 2) + l] |= static_cast<uint8_t>((code & 15) << (4 * (sub % 2)));
      }
    }
  });
}

void q6_k_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<kKQuantBlock, 210>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    float wanted[16], scale[16];
    int codes[16];
    for (int i = 0; i < 16; i++) wanted[i] = signed_extreme(x + 16 * i, 16) / -32.0f;
    signed_scales<16>(wanted, -128, p + 208, codes, scale);
    for (int i = 0; i < 16; i++) p[192 + i] = static_cast<uint8_t>(codes[i]);
    for (int i = 0; i < kKQuantBlock; i++) {
      const int half = i / 128, q = i / 32 % 4, l = i % 32;
      const int code = ggml_round(x[i] * ggml_inverse(scale[i / 16]), -32, 31) + 32;
      p[64 * half + 32 * (q % 2) + l] |= static_cast<uint8_t>((code & 15) << (4 * (q / 2)));
      p[128 + 32 * half + l] |= static_cast<uint8_t>((code >> 4) << (2 * q));
    }
  });
}

void iq4_nl_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<32, 18>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    const float inverse = ggml_inverse(put_f16(p, signed_extreme(x, 32) / kIq4Values[0]));
    int codes[32];
    for (int i = 0; i < 32; i++) codes[i] = iq4_code(x[i] * inverse);
    put_nibbles(p + 2, codes);
  });
}

void iq4_xs_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<kKQuantBlock, 136>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    float wanted[8], scale[8];
    int scale_codes[8];
    for (int i = 0; i < 8; i++) wanted[i] = signed_extreme(x + 32 * i, 32) / kIq4Values[0];
    signed_scales<8>(wanted, -32, p, scale_codes, scale);
    unsigned high = 0;
    for (int sub = 0; sub < 8; sub++) {
      const int code = scale_codes[sub] + 32;
      high |= static_cast<unsigned>(code >> 4) << (2 * sub);
      p[4 + sub / 2] |= static_cast<uint8_t>((code & 15) << (4 * (sub % 2)));
      const float inverse = ggml_inverse(scale[sub]);
      int codes[32];
      for (int l = 0; l < 32; l++) codes[l] = iq4_code(x[32 * sub + l] * inverse);
      put_nibbles(p + 8 + 16 * sub, codes);
    }
    p[2] = static_cast<uint8_t>(high);
    p[3] = static_cast<uint8_t>(high >> 8);
  });
}

void mxfp4_gguf_encode(const float* source, int64_t rows, int64_t cols, std::byte* data, std::byte*) {
  encode_blocks<32, 17>(source, rows, cols, data, [](const float* x, uint8_t* p) {
    // The largest element falls into [4, 8) of the scale: E2M1 reaches 6 (OCP Microscaling Formats 1.0, section 6.3).
    const float top = std::fabs(signed_extreme(x, 32));
    const int exponent = top > 0 && std::isfinite(top) ? std::ilogb(top) - 2 : -127;
    p[0] = static_cast<uint8_t>(std::clamp(exponent + 127, 0, 254));
    const float inverse = 1.0f / e8m0_half(p[0]);
    int codes[32];
    for (int i = 0; i < 32; i++) {
      const float v = std::fabs(x[i]) * inverse;
      int best = 0;
      for (int c = 1; c < 8; c++)
        if (std::fabs(v - static_cast<float>(kFp4Doubled[c])) < std::fabs(v - static_cast<float>(kFp4Doubled[best]))) best = c;
      codes[i] = best | (x[i] < 0 && best > 0 ? 8 : 0);
    }
    put_nibbles(p + 1, codes);
  });
}

}  // namespace dg
