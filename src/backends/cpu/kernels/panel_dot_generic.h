// Tile products of every family but AMX and AVX-512: the best that the instruction set this file is compiled for has.
#pragma once
#if defined(__AVX512BW__)
#include "backends/cpu/kernels/panel_dot_avx512.h"
#elif defined(__AVXVNNI__)
#include "backends/cpu/kernels/panel_dot_avx_vnni.h"
#elif defined(__AVX2__)
#include "backends/cpu/kernels/panel_dot_avx2.h"
#elif defined(__ARM_FEATURE_SVE2) && defined(__ARM_FEATURE_SVE_MATMUL_INT8)
#include "backends/cpu/kernels/panel_dot_sve2.h"
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#include "backends/cpu/kernels/panel_dot_i8mm.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "backends/cpu/kernels/panel_dot_dotprod.h"
#elif defined(__aarch64__)
#include "backends/cpu/kernels/panel_dot_neon.h"
#elif defined(__riscv_vector)
#include "backends/cpu/kernels/panel_dot_rvv.h"
#else
#include "backends/cpu/kernels/panel_dot_portable.h"
#endif
