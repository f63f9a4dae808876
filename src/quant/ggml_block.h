// What the block formats of GGUF files share. A row is a sequence of self-contained blocks (32 or 256 elements, scales
// inside), so a weight needs no separate scale matrix. Layouts: ggml-common.h and ggml-quants.c of ggml, as written down in
// ../spec quant_formats section 9.1. Block members are read byte by byte: blocks of odd size are not aligned.
#pragma once
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "quant/convert.h"
#include "quant/format.h"

namespace dg {

inline constexpr int kKQuantBlock = 256;  // elements of a "K" block; 8 sub-blocks of 32 or 16 of 16

static inline uint16_t ggml_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
static inline uint32_t ggml_u32(const uint8_t* p) {
  return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
         static_cast<uint32_t>(p[3]) << 24;
}
// One instruction where there is one: decoders and packers convert scales one by one.
static inline float ggml_f16(const uint8_t* p) {
#if defined(__F16C__)
  return _cvtsh_ss(ggml_u16(p));
#elif defined(__aarch64__)
  __fp16 half;
  std::memcpy(&half, p, 2);
  return half;
#else
  return f16_to_float(ggml_u16(p));
#endif
}

// The block of `w` that holds element (row, col), for blocks of kElements in kBytes.
template <int kElements, int kBytes>
static inline const uint8_t* ggml_block(const Weight& w, int64_t row, int64_t col) {
  const int64_t blocks = (w.in + kElements - 1) / kElements;
  return reinterpret_cast<const uint8_t*>(w.data) + (row * blocks + col / kElements) * kBytes;
}

// Format::decode from `unpack`, which writes the kElements values of one block.
template <int kElements, int kBytes, void (*unpack)(const uint8_t*, float*)>
static inline void ggml_decode(const Weight& w, int64_t row, int64_t col, int64_t n, float* out) {
  const uint8_t* block = ggml_block<kElements, kBytes>(w, row, col);
  for (; n >= kElements; n -= kElements, out += kElements, block += kBytes) unpack(block, out);
  if (n > 0) {
    float whole[kElements];
    unpack(block, whole);
    std::memcpy(out, whole, static_cast<size_t>(n) * sizeof(float));
  }
}

// Low nibbles are elements 0..15, high nibbles 16..31 of a block of 32.
static inline void ggml_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int j = 0; j < 16; j++) codes[j] = qs[j] & 15;
  for (int j = 0; j < 16; j++) codes[j + 16] = qs[j] >> 4;
}
// The first n of them, at most 32.
static inline void ggml_nibbles(const uint8_t* qs, int64_t n, uint8_t* codes) {
  if (n >= 32) return ggml_nibbles(qs, codes);
  uint8_t whole[32];
  ggml_nibbles(qs, whole);
  std::memcpy(codes, whole, static_cast<size_t>(n));
}

// Scale and minimum (6 bits each) of sub-block i of the 12 bytes that q4_k and q5_k pack them into.
static inline void ggml_k_scale(const uint8_t* b, int i, int* scale, int* minimum) {
  if (i < 4) {
    *scale = b[i] & 63;
    *minimum = b[i + 4] & 63;
  } else {
    *scale = (b[i + 4] & 15) | (b[i - 4] >> 6) << 4;
    *minimum = (b[i + 4] >> 4) | (b[i] >> 6) << 4;
  }
}

// The 16 values of the IQ4 formats: denser near zero, as trained weights are.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

}  // namespace dg
