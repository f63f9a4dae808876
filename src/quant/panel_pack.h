// Packing of panels (quant/panel.h). `static inline`, as the decoders are: the CPU kernels compile it once per instruction set,
// quant/panel.cpp once for everybody else. Loops are written to vectorise; packing is a good part of the time to load a model.
#pragma once
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "quant/bf16.h"
#include "quant/fp8_block.h"
#include "quant/fp8_channel.h"
#include "quant/int4_asym.h"
#include "quant/int4_group.h"
#include "quant/int8_channel.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4_gguf.h"
#include "quant/panel.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q8_0.h"

namespace dg {

struct PanelPacker {
  const Weight& w;
  void (*decode)(const Weight& w, int64_t row, int64_t col, int64_t n, float* out);
};

static inline constexpr int kInt4PanelGroup = 32;

// Format::codes4 as compiled here.
static inline decltype(Format::codes4) panel_codes4(const Format& format) {
  if (&format == &kQ40) return q4_0_codes4;
  if (&format == &kQ41) return q4_1_codes4;
  if (&format == &kQ4K) return q4_k_codes4;
  if (&format == &kInt4GroupFormat) return int4_group_codes4;
  if (&format == &kInt4Asym) return int4_asym_codes4;
  if (&format == &kIq4Nl) return iq4_nl_codes4;
  if (&format == &kIq4Xs) return iq4_xs_codes4;
  if (&format == &kMxfp4Gguf) return mxfp4_gguf_codes4;
  return format.codes4;
}

// Nearest integer, ties to even, of |x| < 2^22.
static inline int32_t panel_round(float x) {
  return static_cast<int32_t>(float_to_bits(x + 12582912.0f)) - 0x4b400000;  // 1.5 * 2^23
}
static inline float panel_largest(const float* x, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; i++) {
    const uint32_t bits = float_to_bits(x[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return bits_to_float(most);
}

// One row of one block of 512 of k.
struct Int4PanelRow {
  uint8_t codes[kPanelBlock];
  int8_t multiplier[kPanelBlock / kInt4PanelGroup];
  int8_t offset[kPanelBlock / kInt4PanelGroup];
  float scale;
};

// The grid step is the smallest that keeps every multiplier within 127 and, with free offsets, every value too.
static inline void panel_int4_row(const Weight& w, int64_t row, int64_t col, int64_t n, bool centred, Int4PanelRow& to) {
  constexpr int kGroups = kPanelBlock / kInt4PanelGroup;
  float scale[kGroups] = {}, offset[kGroups] = {}, size[kGroups];
  if (n < kPanelBlock) std::memset(to.codes, 8, sizeof to.codes);
  panel_codes4 (*w.format)(w, row, col, n, to.codes, scale, offset);
  for (int g = 0; g < kGroups; g++) size[g] = scale[g] * (8.0f / 127);
  float step = panel_largest(size, kGroups);
  if (!centred) {
    for (int g = 0; g < kGroups; g++) size[g] = offset[g] * (1 / 126.5f);
    const float first = panel_largest(size, kGroups);
    for (int g = 0; g < kGroups; g++) size[g] = (offset[g] + 15 * scale[g]) * (1 / 126.5f);
    const float last = panel_largest(size, kGroups);
    step = first > step ? first : step;
    step = last > step ? last : step;
  }
  if (!(step > 0 && step < 3e38f)) step = 0;
  to.scale = step;
  const float inverse = step > 0 ? 1 / step : 0;
  for (int g = 0; g < kGroups; g++) {
    const int m = panel_round(scale[g] * 8 * inverse);
    to.multiplier[g] = static_cast<int8_t>(m > 127 ? 127 : m < -127 ? -127 : m);
  }
  if (centred) return;
  for (int g = 0; g < kGroups; g++) {
    // Rounding of both may leave the range by one.
    int z = panel_round(offset[g] * inverse);
    z += z > 127 ? 127 - z : z < -127 ? -127 - z : 0;
    const int value = ((15 * to.multiplier[g] + 4) >> 3) + z;
    z += value > 127 ? 127 - value : value < -127 ? -127 - value : 0;
    to.offset[g] = static_cast<int8_t>(z);
  }
}

// Multipliers are 128ths of the row's scale in the block, the largest group scale; a positive one cannot be 128.
static inline void panel_table_row(const Weight& w, int64_t row, int64_t col, int64_t n, Int4PanelRow& to) {
  constexpr int kGroups = kPanelBlock / kInt4PanelGroup;
  float scale[kGroups] = {}, size[kGroups];
  if (n < kPanelBlock) std::memset(to.codes, 0, sizeof to.codes);
  panel_codes4 (*w.format)(w, row, col, n, to.codes, scale, nullptr);
  for (int g = 0; g < kGroups; g++) size[g] = scale[g] < 0 ? scale[g] : scale[g] * (128.0f / 127);
  float step = panel_largest(size, kGroups);
  if (!(step > 0 && step < 3e38f)) step = 0;
  to.scale = step;
  for (int g = 0; g < kGroups; g++) {
    const int m = step > 0 ? panel_round(scale[g] / step * 128) : 0;  // no reciprocal: that of the smallest steps overflows
    to.multiplier[g] = static_cast<int8_t>(m > 127 ? 127 : m < -128 ? -128 : m);
  }
}

// Lines of 64 bytes from 16 rows: line i holds word i of every row. kFp8: the words are pairs 2i and 2i + 1 of a row, stored as
// fp8_panel_place wants them. Whole groups of four words in vectors of 16 bytes, which every instruction set has.
typedef uint32_t PanelWords __attribute__((vector_size(16)));
typedef uint16_t PanelHalves __attribute__((vector_size(16)));

template <bool kFp8>
static inline PanelWords panel_line_part(PanelWords v) {
  if constexpr (!kFp8) return v;
  const auto h = reinterpret_cast<PanelHalves>(v);
  return reinterpret_cast<PanelWords>(__builtin_shufflevector(h, h, 0, 2, 4, 6, 1, 3, 5, 7));
}

#if defined(__AVX512F__)
// 16 x 16 words: pairs of rows, quads of rows, then the quarters of registers.
static inline void panel_transpose(const std::byte* rows, int64_t row_bytes, std::byte* to, int64_t line_bytes) {
  __m512i r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(rows + i * row_bytes);
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(r[i], r[i + 1]), b = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    const __m512i c = _mm512_unpacklo_epi32(r[i + 2], r[i + 3]), d = _mm512_unpackhi_epi32(r[i + 2], r[i + 3]);
    t[i] = _mm512_unpacklo_epi64(a, c), t[i + 1] = _mm512_unpackhi_epi64(a, c);
    t[i + 2] = _mm512_unpacklo_epi64(b, d), t[i + 3] = _mm512_unpackhi_epi64(b, d);
  }
  // t[4 g + j]: quarter q holds words 4 q + j of rows 4 g .. 4 g + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const __m512i a = _mm512_shuffle_i32x4(t[j], t[j + 4], 0x88), b = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(t[j], t[j + 4], 0xdd), d = _mm512_shuffle_i32x4(t[j + 8], t[j + 12], 0xdd);
    _mm512_storeu_si512(to + j * line_bytes, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(to + (j + 4) * line_bytes, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(to + (j + 8) * line_bytes, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(to + (j + 12) * line_bytes, _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}
#endif

template <bool kFp8 = false>
static inline void panel_lines(const std::byte* rows, int64_t row_bytes, int64_t words, std::byte* to, int64_t line_bytes = 64) {
  int64_t whole = 0;
#if defined(__AVX512F__)
  if constexpr (!kFp8)
    for (; whole + 16 <= words; whole += 16) panel_transpose(rows + whole * 4, row_bytes, to + whole * line_bytes, line_bytes);
#endif
  const int64_t begin = whole;
  whole = words / 4 * 4;
  for (int64_t i = begin; i < whole; i += 4)
    for (int64_t o = 0; o < kPanelRows; o += 4) {
      const std::byte* from = rows + o * row_bytes + i * 4;
      PanelWords a, b, c, d;
      std::memcpy(&a, from, 16);
      std::memcpy(&b, from + row_bytes, 16);
      std::memcpy(&c, from + row_bytes * 2, 16);
      std::memcpy(&d, from + row_bytes * 3, 16);
      const PanelWords ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
      const PanelWords cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
      const PanelWords lines[4] = {__builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
                                   __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
      for (int64_t l = 0; l < 4; l++) {
        const PanelWords line = panel_line_part<kFp8>(lines[l]);
        std::memcpy(to + (i + l) * line_bytes + o * 4, &line, 16);
      }
    }
  for (int64_t i = whole; i < words; i++)
    for (int64_t o = 0; o < kPanelRows; o++) {
      uint32_t word;
      std::memcpy(&word, rows + o * row_bytes + i * 4, 4);
      if constexpr (kFp8) {
        std::memcpy(to + i * line_bytes + o / 4 * 16 + o % 4 * 2, &word, 2);
        word >>= 16;
        std::memcpy(to + i * line_bytes + o / 4 * 16 + 8 + o % 4 * 2, &word, 2);
      } else {
        std::memcpy(to + i * line_bytes + o * 4, &word, 4);
      }
    }
}

// 8 codes, one per byte -> the 32 bits of nibble_place.
static inline void panel_nibble_words(const uint8_t* codes, int64_t n, bool centred, uint32_t* words) {
  const uint32_t centre = centred ? 0x80008000u : 0;
  for (int64_t i = 0; i < n / 8; i++) {
    uint64_t c;
    std::memcpy(&c, codes + i * 8, 8);
    const uint64_t swapped = (c >> 8 & 0x00ff00ff00ff00ffu) | (c << 8 & 0xff00ff00ff00ff00u);
    const uint64_t other = swapped >> 32;
    words[i] = static_cast<uint32_t>(((other << 4 | swapped) & 0x00ff00ffu) | ((swapped << 4 | other) & 0xff00ff00u)) ^ centre;
  }
}

static inline void panel_pack_int4(const PanelPacker& p, int64_t row, int64_t rows, int64_t col, int64_t n, int64_t padded, PanelKind kind,
                                   std::byte* to) {
  const bool table = kind == PanelKind::kInt4Table, offsets = kind == PanelKind::kInt4Offset;
  const int64_t chunk_bytes = panel_code_bytes(kind, kInt4Chunk), chunks = padded / kInt4Chunk;
  Int4PanelRow r;
  uint32_t words[kPanelRows][kPanelBlock / 8];
  for (int64_t o = 0; o < kPanelRows; o++) {
    if (o < rows) {
      if (table) panel_table_row(p.w, row + o, col, n, r);
      else panel_int4_row(p.w, row + o, col, n, !offsets, r);
    } else {
      std::memset(&r, 0, sizeof r);
      std::memset(r.codes, table ? 0 : 8, sizeof r.codes);
    }
    panel_nibble_words(r.codes, padded, !table, words[o]);
    for (int64_t g = 0; g < padded / kInt4PanelGroup; g++) {
      std::byte* side = to + g / 4 * chunk_bytes + 1024 + g % 4 * 16 + o;
      side[0] = static_cast<std::byte>(r.multiplier[g]);
      if (offsets) side[64] = static_cast<std::byte>(r.offset[g]);
    }
    std::memcpy(to + chunks * chunk_bytes + o * 4, &r.scale, 4);
  }
  for (int64_t chunk = 0; chunk < chunks; chunk++)
    panel_lines(reinterpret_cast<const std::byte*>(&words[0][chunk * 16]), sizeof words[0], 16, to + chunk * chunk_bytes);
}

#if defined(__AVX512F__)
inline constexpr int kPanelPackLanes = 16;
#elif defined(__AVX2__)
inline constexpr int kPanelPackLanes = 8;
#else
inline constexpr int kPanelPackLanes = 4;
#endif
// Nearest integers of x[k] * factor.
static inline void panel_int8_codes(const float* x, int64_t n, float factor, int8_t* codes) {
  typedef float Floats __attribute__((vector_size(kPanelPackLanes * 4)));
  typedef int32_t Words __attribute__((vector_size(kPanelPackLanes * 4)));
  typedef int8_t Bytes __attribute__((vector_size(kPanelPackLanes)));
  int64_t k = 0;
  for (; k + kPanelPackLanes <= n; k += kPanelPackLanes) {
    Floats v;
    std::memcpy(&v, x + k, sizeof v);
    const Bytes narrow = __builtin_convertvector(reinterpret_cast<Words>(v * factor + 12582912.0f) - 0x4b400000, Bytes);  // see panel_round
    std::memcpy(codes + k, &narrow, sizeof narrow);
  }
  for (; k < n; k++) codes[k] = static_cast<int8_t>(panel_round(x[k] * factor));
}
static inline float panel_reciprocal(float step) { return step > 1e-37f && step < 3e38f ? 1 / step : 0; }

// to[i] = round(q[i] * factor / 2^15), within 127: -128 times -1 is not.
static inline void panel_scale_codes(const int8_t* q, int16_t factor, int8_t* to) {
#if defined(__AVX512BW__)
  const __m512i scaled =
      _mm512_mulhrs_epi16(_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q))), _mm512_set1_epi16(factor));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_max_epi8(_mm512_cvtsepi16_epi8(scaled), _mm256_set1_epi8(-127)));
#elif defined(__AVX2__)
  const __m256i low =
      _mm256_mulhrs_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q))), _mm256_set1_epi16(factor));
  const __m256i high =
      _mm256_mulhrs_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + 16))), _mm256_set1_epi16(factor));
  const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_max_epi8(both, _mm256_set1_epi8(-127)));
#elif defined(__ARM_NEON)
  for (int i = 0; i < 32; i += 16) {
    const int8x16_t v = vld1q_s8(q + i);
    const int16x8_t low = vqrdmulhq_n_s16(vmovl_s8(vget_low_s8(v)), factor), high = vqrdmulhq_n_s16(vmovl_high_s8(v), factor);
    vst1q_s8(to + i, vmaxq_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)), vdupq_n_s8(-127)));
  }
#else
  for (int i = 0; i < 32; i++) {
    const int code = (q[i] * factor + 16384) >> 15;
    to[i] = static_cast<int8_t>(code > 127 ? 127 : code < -127 ? -127 : code);
  }
#endif
}

// Block of 512 straight from the packs of q8_0. The step of a row is its largest published scale: where all are the same, the codes are the
// published ones. (A scale that is not a number makes a step that is none.)
struct Q80PanelScales {
  float step[kPanelRows];
  int16_t factor[kPanelRows][kPanelBlock / 32];
};

static inline const Q80Pack* panel_q8_0_packs(const Weight& w, int64_t row, int64_t col) {
  return reinterpret_cast<const Q80Pack*>(w.data + row * ((w.in + 31) / 32) * 34) + col / 32;
}

static inline void panel_q8_0_scales(const Weight& w, int64_t row, int64_t rows, int64_t col, int64_t n, Q80PanelScales& to) {
  constexpr int kGroups = kPanelBlock / 32;
  const int groups = static_cast<int>((n + 31) / 32);
  alignas(64) float scale[kPanelRows][kGroups];
  uint16_t halves[kPanelRows][kGroups];
  if (groups < kGroups) std::memset(halves, 0, sizeof halves);
  for (int64_t o = 0; o < rows; o++) {
    const Q80Pack* pack = panel_q8_0_packs(w, row + o, col);
    for (int g = 0; g < groups; g++) halves[o][g] = pack[g].scale;
  }
  for (int64_t o = 0; o < rows; o++) {
#if defined(__AVX512F__)
    _mm512_store_ps(scale[o], _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves[o]))));
#else
    for (int g = 0; g < kGroups; g++) scale[o][g] = f16_to_float(halves[o][g]);
#endif
  }
  for (int64_t o = 0; o < rows; o++) {
    to.step[o] = panel_largest(scale[o], kGroups);
    const float inverse = panel_reciprocal(to.step[o]) * 32768;
    for (int g = 0; g < kGroups; g++) {
      const int32_t f = panel_round(scale[o][g] * inverse);
      to.factor[o][g] = static_cast<int16_t>(f > 32767 ? 32767 : f < -32768 ? -32768 : f);
    }
  }
}

static inline void panel_q8_0_codes(const Weight& w, int64_t row, int64_t col, int64_t n, const int16_t* factor, int8_t* codes) {
  const Q80Pack* pack = panel_q8_0_packs(w, row, col);
  const int64_t whole = n / 32;
  for (int64_t g = 0; g < whole; g++) panel_scale_codes(pack[g].q, factor[g], codes + g * 32);
  if (n % 32 == 0) return;
  int8_t last[32];
  panel_scale_codes(pack[whole].q, factor[whole], last);
  std::memcpy(codes + whole * 32, last, static_cast<size_t>(n % 32));
}

static inline void panel_pack_int8(const PanelPacker& p, int64_t row, int64_t rows, int64_t col, int64_t n, int64_t padded, std::byte* to) {
  float values[kPanelBlock];
  int8_t codes[kPanelRows][kPanelBlock];
  if (n < padded || rows < kPanelRows) std::memset(codes, 0, sizeof codes);
  const bool packs = p.w.format == &kQ80;
  Q80PanelScales scales;
  if (packs) panel_q8_0_scales(p.w, row, rows, col, n, scales);
  for (int64_t o = 0; o < kPanelRows; o++) {
    float step = 0;
    if (o < rows && packs) {
      panel_q8_0_codes(p.w, row + o, col, n, scales.factor[o], codes[o]);
      step = scales.step[o];
    } else if (o < rows && p.w.format == &kInt8Channel) {  // the codes themselves
      const auto* from = reinterpret_cast<const int8_t*>(p.w.data) + (row + o) * p.w.in + col;
      for (int64_t k = 0; k < n; k++) codes[o][k] = from[k] < -127 ? int8_t{-127} : from[k];
      step = reinterpret_cast<const float*>(p.w.scales)[row + o];
    } else if (o < rows) {
      p.decode(p.w, row + o, col, n, values);
      step = panel_largest(values, n) / 127;
      panel_int8_codes(values, n, panel_reciprocal(step), codes[o]);
    }
    std::memcpy(to + padded * kPanelRows + o * 4, &step, 4);
  }
  panel_lines(reinterpret_cast<const std::byte*>(codes), kPanelBlock, padded / 4, to);
}

static inline void panel_pack_bf16(const PanelPacker& p, int64_t row, int64_t rows, std::byte* to) {
  constexpr int64_t kStep = 512;
  const int64_t in = p.w.in, padded = panel_padded(PanelKind::kBf16, in);
  const bool published = p.w.format == &kBf16;
  const std::byte* const from = p.w.data + row * in * 2;
  float values[kStep];
  uint16_t lines[kPanelRows][kStep];
  for (int64_t col = 0; col < padded; col += kStep) {
    const int64_t width = padded - col < kStep ? padded - col : kStep, n = in - col < width ? in - col : width;
    if (published && n == width && rows == kPanelRows) {
      panel_lines(from + col * 2, in * 2, width / 2, to + col * 32);
      continue;
    }
    if (n < width || rows < kPanelRows) std::memset(lines, 0, sizeof lines);
    for (int64_t o = 0; o < rows; o++) {
      if (published) {
        std::memcpy(lines[o], from + (o * in + col) * 2, static_cast<size_t>(n) * 2);
      } else {
        p.decode(p.w, row + o, col, n, values);
        for (int64_t k = 0; k < n; k++) lines[o][k] = float_to_bf16(values[k]);
      }
    }
    panel_lines(reinterpret_cast<const std::byte*>(lines), sizeof lines[0], width / 2, to + col * 32);
  }
}

static inline void panel_pack_fp8(const PanelPacker& p, int64_t row, int64_t rows, std::byte* to) {
  const int64_t in = p.w.in, padded = panel_padded(PanelKind::kFp8, in), scale_columns = (in + kFp8Block - 1) / kFp8Block;
  const auto* scales = reinterpret_cast<const float*>(p.w.scales);
  std::byte lines[kPanelRows][kFp8PanelBlock];
  for (int64_t col = 0; col < padded; col += kFp8PanelBlock) {
    const int64_t width = padded - col < kFp8PanelBlock ? padded - col : kFp8PanelBlock, n = in - col < width ? in - col : width;
    if (n < width || rows < kPanelRows) std::memset(lines, 0, sizeof lines);
    for (int64_t o = 0; o < kPanelRows; o++) {
      float scale = 0;
      if (o < rows) {
        std::memcpy(lines[o], p.w.data + (row + o) * in + col, static_cast<size_t>(n));
        scale = p.w.format == &kFp8BlockFormat ? scales[(row + o) / kFp8Block * scale_columns + col / kFp8Block] : scales[row + o];
      }
      std::memcpy(to + width * kPanelRows + o * 4, &scale, 4);
    }
    panel_lines<true>(&lines[0][0], kFp8PanelBlock, width / 4, to);
    to += width * kPanelRows + 64;
  }
}

static inline void panel_pack_rows(const PanelPacker& p, int64_t first, int64_t out, std::byte* to) {
  const PanelKind kind = panel_kind(*p.w.format);
  const int64_t in = p.w.in, stride = panel_stride(kind, in), padded = panel_padded(kind, in);
  for (int64_t row = 0; row < p.w.out; row += kPanelRows) {
    std::byte* panel = to + (first + row) / kPanelRows * stride;
    int64_t count = p.w.out - row < out - first - row ? p.w.out - row : out - first - row;
    if (count > kPanelRows) count = kPanelRows;
    if (kind == PanelKind::kBf16) {
      panel_pack_bf16(p, row, count, panel);
    } else if (kind == PanelKind::kFp8) {
      panel_pack_fp8(p, row, count, panel);
    } else {
      for (int64_t col = 0; col < padded; col += kPanelBlock) {
        const int64_t width = padded - col < kPanelBlock ? padded - col : kPanelBlock, n = in - col < width ? in - col : width;
        if (kind == PanelKind::kInt8) panel_pack_int8(p, row, count, col, n, width, panel);
        else panel_pack_int4(p, row, count, col, n, width, kind, panel);
        panel += panel_code_bytes(kind, width) + 64;
      }
    }
  }
}

}  // namespace dg
