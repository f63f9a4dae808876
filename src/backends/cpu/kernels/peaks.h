// Loops that do nothing but one kind of multiply-add, or read memory: what an instruction set can do at most on this machine.
// `dougong bench machine` runs them through the kernel table, so that each is compiled with the flags of its family.
//
// An accumulator depends on itself alone and there are enough of them to hide the latency of the instruction (8 to 10 for two
// units of latency 4 or 5; 4 tiles for AMX, whose products take 16 cycles each and 52 to finish). Operands are neither zero nor
// denormal: zeros take less power, and the clock would be higher than in real work.
#pragma once
#include <time.h>

#include "backends/cpu/kernels/kernels.h"
#include "backends/cpu/kernels/vec.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__AMX_INT8__)
#include "backends/cpu/kernels/amx.h"
#endif

namespace dg::DG_ISA_NAMESPACE {
namespace {

double peak_clock_s(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

// Calls f until `seconds` are over and returns work per second of the time that this thread really ran: what others take of a
// shared machine is not its limit. f takes some 100 us, much longer than reading the clocks. The first call wakes wide units up.
template <class F>
double peak_rate(double seconds, double work_of_call, F f) {
  f();
  const double end = peak_clock_s(CLOCK_MONOTONIC) + seconds, begin = peak_clock_s(CLOCK_THREAD_CPUTIME_ID);
  int64_t calls = 0;
  do {
    f();
    calls++;
  } while (peak_clock_s(CLOCK_MONOTONIC) < end);
  const double ran = peak_clock_s(CLOCK_THREAD_CPUTIME_ID) - begin;
  return ran > 0 ? work_of_call * static_cast<double>(calls) / ran : 0;
}

// Ten accumulators by name: an array would not reliably stay in registers.
#define DG_PEAK_TEN(X) X(c0) X(c1) X(c2) X(c3) X(c4) X(c5) X(c6) X(c7) X(c8) X(c9)
#define DG_PEAK_SUM (((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7)) + (c8 + c9))
constexpr int kPeakSteps = 30000;

double peak_f32(double seconds) {
  volatile float sink = 0;
  return peak_rate(seconds, 2.0 * 10 * kPeakSteps * kLanes, [&] {
    const vf a = splat(0.9990f), b = splat(0.0007f);
#define DG_PEAK_START(c) vf c = a + static_cast<float>(__COUNTER__);
    DG_PEAK_TEN(DG_PEAK_START)
#undef DG_PEAK_START
    for (int i = 0; i < kPeakSteps; i++) {
#define DG_PEAK_STEP(c) c = c * a + b;
      DG_PEAK_TEN(DG_PEAK_STEP)
#undef DG_PEAK_STEP
      // Equal accumulators would be merged into one; this makes the compiler forget what it knows about them.
#if defined(__x86_64__) && defined(__AVX512F__)
      asm volatile("" : "+v"(c0), "+v"(c1), "+v"(c2), "+v"(c3), "+v"(c4), "+v"(c5), "+v"(c6), "+v"(c7), "+v"(c8), "+v"(c9));
#elif defined(__x86_64__)
      asm volatile("" : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7), "+x"(c8), "+x"(c9));
#elif defined(__aarch64__)
      asm volatile("" : "+w"(c0), "+w"(c1), "+w"(c2), "+w"(c3), "+w"(c4), "+w"(c5), "+w"(c6), "+w"(c7), "+w"(c8), "+w"(c9));
#endif
    }
    const vf sum = DG_PEAK_SUM;
    sink = sum[0];
  });
}

// dot(c, a, b) on ten accumulators of type V. The asm keeps the compiler from merging them.
#if defined(__x86_64__) && defined(__AVX512F__)
#define DG_PEAK_HOLD(c) asm volatile("" : "+v"(c));
#elif defined(__x86_64__)
#define DG_PEAK_HOLD(c) asm volatile("" : "+x"(c));
#elif defined(__aarch64__)
#define DG_PEAK_HOLD(c) asm volatile("" : "+w"(c));
#else  // not used
#define DG_PEAK_HOLD(c)
#endif
#define DG_PEAK_START(c) V c{};
#define DG_PEAK_STEP(c) c = dot(c, a, b);
template <class V, class A, class B, class Dot>
[[maybe_unused]] double peak_dot(double seconds, double operations, A a, B b, Dot dot) {
  alignas(64) volatile uint8_t sink = 0;
  return peak_rate(seconds, operations * 10 * kPeakSteps, [&] {
    DG_PEAK_TEN(DG_PEAK_START)
    DG_PEAK_TEN(DG_PEAK_HOLD)
    for (int i = 0; i < kPeakSteps; i++) {
      DG_PEAK_TEN(DG_PEAK_STEP)
    }
    DG_PEAK_TEN(DG_PEAK_HOLD)
    sink = static_cast<uint8_t>(sink + 1);
  });
}
#undef DG_PEAK_START
#undef DG_PEAK_STEP

#if defined(__AMX_INT8__)
template <bool kBf16>
void tile_products() {
  if (kBf16) {
    DG_TILE_DOT_BF16(0, 4, 6);
    DG_TILE_DOT_BF16(1, 4, 7);
    DG_TILE_DOT_BF16(2, 5, 6);
    DG_TILE_DOT_BF16(3, 5, 7);
  } else {
    DG_TILE_DOT_INT8(0, 4, 6);
    DG_TILE_DOT_INT8(1, 4, 7);
    DG_TILE_DOT_INT8(2, 5, 6);
    DG_TILE_DOT_INT8(3, 5, 7);
  }
}

constexpr double kTileOperations = 2.0 * 16 * 16 * 64;  // of one int8 product; half of it for bf16

// 2 x 2 blocks of tiles. From registers: the operands stay. From memory: each step loads two tiles of A and two of B (4 KiB)
// for four products, the best ratio that eight tiles allow; with `memory` the size of a part of L2, L2 delivers them.
template <bool kBf16>
double peak_tiles(double seconds, std::byte* memory, int64_t bytes, bool from_memory) {
  const int64_t steps = bytes / 4096;
  constexpr int kPasses = 16;
  if (steps < 1) return 0;
  // Bytes 0x3d are 61 as int8 and 0.0461 as bf16.
  for (int64_t i = 0; i < steps * 4096; i++) memory[i] = std::byte{0x3d};
  TileScope scope;
  DG_TILE_ZERO(0);
  DG_TILE_ZERO(1);
  DG_TILE_ZERO(2);
  DG_TILE_ZERO(3);
  DG_TILE_LOAD(4, memory, 64);
  DG_TILE_LOAD(5, memory + 1024, 64);
  DG_TILE_LOAD(6, memory + 2048, 64);
  DG_TILE_LOAD(7, memory + 3072, 64);
  return peak_rate(seconds, static_cast<double>(kPasses * steps) * 4 * kTileOperations / (kBf16 ? 2 : 1), [&] {
    for (int pass = 0; pass < kPasses; pass++)
      for (int64_t i = 0; i < steps; i++) {
        if (from_memory) {
          const std::byte* at = memory + i * 4096;
          DG_TILE_LOAD(4, at, 64);
          DG_TILE_LOAD(6, at + 2048, 64);
          DG_TILE_LOAD(7, at + 3072, 64);
          DG_TILE_LOAD(5, at + 1024, 64);
        }
        tile_products<kBf16>();
      }
  });
}
#endif

double peak_int8(PeakRun& run) {
#if defined(__AMX_INT8__)
  run.instruction = "tdpbsud";
  return peak_tiles<false>(run.seconds, run.memory, run.bytes, false);
#elif defined(__AVX512VNNI__)
  run.instruction = "vpdpbusd zmm";
  return peak_dot<__m512i>(run.seconds, 2 * 64, _mm512_set1_epi8(61), _mm512_set1_epi8(-37),
                           [](__m512i c, __m512i a, __m512i b) { return _mm512_dpbusd_epi32(c, a, b); });
#elif defined(__AVXVNNI__)
  run.instruction = "vpdpbusd ymm";
  return peak_dot<__m256i>(run.seconds, 2 * 32, _mm256_set1_epi8(61), _mm256_set1_epi8(-37),
                           [](__m256i c, __m256i a, __m256i b) { return _mm256_dpbusd_avx_epi32(c, a, b); });
#elif defined(__AVX512BW__)
  run.instruction = "vpmaddubsw, vpmaddwd, vpaddd zmm";
  return peak_dot<__m512i>(run.seconds, 2 * 64, _mm512_set1_epi8(61), _mm512_set1_epi8(-37), [](__m512i c, __m512i a, __m512i b) {
    asm volatile("" : "+v"(a));  // each product anew
    return _mm512_add_epi32(c, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
  });
#elif defined(__AVX2__)
  run.instruction = "vpmaddubsw, vpmaddwd, vpaddd ymm";
  return peak_dot<__m256i>(run.seconds, 2 * 32, _mm256_set1_epi8(61), _mm256_set1_epi8(-37), [](__m256i c, __m256i a, __m256i b) {
    asm volatile("" : "+x"(a));
    return _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
  });
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  run.instruction = "smmla";
  return peak_dot<int32x4_t>(run.seconds, 2 * 32, vdupq_n_s8(61), vdupq_n_s8(-37),
                             [](int32x4_t c, int8x16_t a, int8x16_t b) { return vmmlaq_s32(c, a, b); });
#elif defined(__ARM_FEATURE_DOTPROD)
  run.instruction = "sdot";
  return peak_dot<int32x4_t>(run.seconds, 2 * 16, vdupq_n_s8(61), vdupq_n_s8(-37),
                             [](int32x4_t c, int8x16_t a, int8x16_t b) { return vdotq_s32(c, a, b); });
#elif defined(__aarch64__)
  run.instruction = "smull, sadalp";
  return peak_dot<int32x4_t>(run.seconds, 2 * 8, vdup_n_s8(61), vdup_n_s8(-37), [](int32x4_t c, int8x8_t a, int8x8_t b) {
    asm volatile("" : "+w"(a));
    return vpadalq_s16(c, vmull_s8(a, b));
  });
#else
  (void)run;
  return 0;
#endif
}

double peak_bf16(PeakRun& run) {
#if defined(__AMX_BF16__)
  run.instruction = "tdpbf16ps";
  return peak_tiles<true>(run.seconds, run.memory, run.bytes, false);
#elif defined(__AVX512BF16__)
  run.instruction = "vdpbf16ps zmm";
  return peak_dot<__m512>(run.seconds, 2 * 32, _mm512_set1_epi16(0x3d3d), _mm512_set1_epi16(0x3d3d), [](__m512 c, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  });
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  run.instruction = "bfmmla";
  const bfloat16x8_t operand = vreinterpretq_bf16_u16(vdupq_n_u16(0x3d3d));
  return peak_dot<float32x4_t>(run.seconds, 2 * 16, operand, operand,
                               [](float32x4_t c, bfloat16x8_t a, bfloat16x8_t b) { return vbfmmlaq_f32(c, a, b); });
#else
  (void)run;
  return 0;
#endif
}

double peak_read(const PeakRun& run) {
  typedef uint32_t word __attribute__((vector_size(kLanes * 4), may_alias));  // unsigned: the sum wraps
  constexpr int64_t kStep = 8 * kLanes * 4, kAhead = 4096;
  word s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};
  const std::byte* const end = run.memory + run.bytes / kStep * kStep;
  for (const std::byte* p = run.memory; p < end; p += kStep) {
    for (int64_t line = 0; line < kStep; line += 64) __builtin_prefetch(p + kAhead + line);
    const word* w = reinterpret_cast<const word*>(p);
    s0 += w[0], s1 += w[1], s2 += w[2], s3 += w[3], s4 += w[4], s5 += w[5], s6 += w[6], s7 += w[7];
  }
  const word sum = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7));
  volatile uint32_t sink = sum[0];
  (void)sink;
  return static_cast<double>(end - run.memory);
}

double peak(PeakRun& run) {
  switch (run.kind) {
    case PeakKind::kRead: return peak_read(run);
    case PeakKind::kF32: run.instruction = "f32 multiply-add"; return peak_f32(run.seconds);
    case PeakKind::kBf16: return peak_bf16(run);
    case PeakKind::kInt8: return peak_int8(run);
#if defined(__AMX_INT8__)
    case PeakKind::kBf16FromL2: run.instruction = "tdpbf16ps"; return peak_tiles<true>(run.seconds, run.memory, run.bytes, true);
    case PeakKind::kInt8FromL2: run.instruction = "tdpbsud"; return peak_tiles<false>(run.seconds, run.memory, run.bytes, true);
#endif
    default: return 0;
  }
}

}  // namespace
}  // namespace dg::DG_ISA_NAMESPACE
