// Small kernels around the products: x to bf16, sums of split columns, gate and up, bias. All are bound by memory.
#include <algorithm>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/product_kernels.h"
#include "backends/cuda/kernels/weight_unpack.cuh"

namespace dg::cuda {
namespace {

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(std::clamp<int64_t>((threads + 255) / 256, 1, 132 * 16)); }

template <int kStep>
struct alignas(kStep * 4) Vector {
  float v[kStep];
};
bool whole_fours(const void* p, int64_t ld) { return ld % 4 == 0 && reinterpret_cast<uintptr_t>(p) % 16 == 0; }
dim3 grid_over(int64_t rows, int64_t columns, int step) {
  return {static_cast<unsigned>((columns + 256ll * step - 1) / (256ll * step)), static_cast<unsigned>(std::min<int64_t>(rows, 65535)), 1};
}

// A thread makes 8 columns. `vector`: rows of x at 16-byte addresses, no `columns`.
template <bool kVector>
__global__ void __launch_bounds__(256)
    to_bf16_kernel(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, __nv_bfloat16* to, int64_t ld) {
  wait_for_previous();
  start_next();
  const int64_t pieces = ld / 8, total = rows * pieces;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t row = p / pieces, k = p % pieces * 8;
    const float* from = x + row * ldx;
    float v[8];
    if (kVector && k + 8 <= in) {
      const float4 a = *reinterpret_cast<const float4*>(from + k), b = *reinterpret_cast<const float4*>(from + k + 4);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] = k + i < in ? from[columns ? columns[k + i] : k + i] : 0.0f;
    }
    *reinterpret_cast<uint4*>(to + row * ld + k) =
        make_uint4(pack_bf162(v[0], v[1]), pack_bf162(v[2], v[3]), pack_bf162(v[4], v[5]), pack_bf162(v[6], v[7]));
  }
}

template <bool kGlu>
__global__ void __launch_bounds__(256) finish_kernel(const ProductArgs a, int splits) {
  wait_for_previous();
  start_next();
  constexpr int weights = kGlu ? 2 : 1;
  const int64_t ld = static_cast<int64_t>(a.tiles) * kTileRows, matrix = a.tokens * ld;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < matrix; p += gridDim.x * 256ll) {
    const int64_t token = p / ld, place = p % ld, tile = place / kTileRows;
    int chosen = 0;
    if constexpr (!kGlu)
      for (int i = 1; i < a.segment_count; i++) chosen += tile >= a.segments[i].first;
    const ProductSegment& segment = a.segments[chosen];
    const int64_t row = place - static_cast<int64_t>(segment.first) * kTileRows;
    if (row >= segment.out) continue;
    float sum[weights] = {};
    for (int s = 0; s < splits; s++)
#pragma unroll
      for (int m = 0; m < weights; m++) sum[m] += a.partial[(static_cast<int64_t>(s) * weights + m) * matrix + token * ld + place];
    float v = sum[0];
    if constexpr (kGlu) v = v / (1.0f + expf(-v)) * sum[1];
    else if (segment.bias) v += segment.bias[row];
    segment.to[token * segment.ld_to + row] = v;
  }
}

// Columns along x, kStep of a row to a thread; rows along y. kStep > 1: all rows begin at multiples of kStep elements.
template <int kStep>
__global__ void __launch_bounds__(256) silu_mul_kernel(float* out, int64_t ld_out, const float* gate, int64_t ld_gate, const float* up,
                                                       int64_t ld_up, int64_t rows, int64_t columns) {
  wait_for_previous();
  start_next();
  const int64_t k = (blockIdx.x * 256ll + threadIdx.x) * kStep;
  if (k >= columns) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float g[kStep], u[kStep];
    *reinterpret_cast<Vector<kStep>*>(g) = *reinterpret_cast<const Vector<kStep>*>(gate + row * ld_gate + k);
    *reinterpret_cast<Vector<kStep>*>(u) = *reinterpret_cast<const Vector<kStep>*>(up + row * ld_up + k);
#pragma unroll
    for (int i = 0; i < kStep; i++) u[i] *= g[i] / (1.0f + expf(-g[i]));
    *reinterpret_cast<Vector<kStep>*>(out + row * ld_out + k) = *reinterpret_cast<const Vector<kStep>*>(u);
  }
}

// The same over bf16, eight columns to a thread: 6 bytes an element.
__global__ void __launch_bounds__(256)
    silu_mul_bf16_kernel(__nv_bfloat16* up, int64_t ld_up, const __nv_bfloat16* gate, int64_t ld_gate, int64_t rows, int64_t columns) {
  wait_for_previous();
  start_next();
  const int64_t k = (blockIdx.x * 256ll + threadIdx.x) * 8;
  if (k >= columns) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    uint4* const to = reinterpret_cast<uint4*>(up + row * ld_up + k);
    const uint4 g4 = *reinterpret_cast<const uint4*>(gate + row * ld_gate + k), u4 = *to;
    const uint32_t g[4] = {g4.x, g4.y, g4.z, g4.w}, u[4] = {u4.x, u4.y, u4.z, u4.w};
    uint32_t product[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const auto half = [&](uint32_t both, bool high) { return __uint_as_float(high ? both & 0xffff0000u : both << 16); };
      float v[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float x = half(g[i], h != 0);
        v[h] = __fdividef(x, 1.0f + __expf(-x)) * half(u[i], h != 0);
      }
      product[i] = pack_bf162(v[0], v[1]);
    }
    *to = make_uint4(product[0], product[1], product[2], product[3]);
  }
}

template <int kStep>
__global__ void __launch_bounds__(256) add_bias_kernel(float* out, int64_t ld, const float* bias, int64_t rows, int64_t columns) {
  wait_for_previous();
  start_next();
  const int64_t k = (blockIdx.x * 256ll + threadIdx.x) * kStep;
  if (k >= columns) return;
  float b[kStep];
#pragma unroll
  for (int i = 0; i < kStep; i++) b[i] = bias[k + i];
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    auto* const at = reinterpret_cast<Vector<kStep>*>(out + row * ld + k);
    float v[kStep];
    *reinterpret_cast<Vector<kStep>*>(v) = *at;
#pragma unroll
    for (int i = 0; i < kStep; i++) v[i] += b[i];
    *at = *reinterpret_cast<const Vector<kStep>*>(v);
  }
}

__global__ void __launch_bounds__(256)
    gather_columns_kernel(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, float* to) {
  wait_for_previous();
  start_next();
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < rows * in; p += gridDim.x * 256ll) to[p] = x[p / in * ldx + columns[p % in]];
}

}  // namespace

void launch_to_bf16(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, void* to, int64_t ld,
                    cudaStream_t stream) {
  const unsigned blocks = blocks_for(rows * (ld / 8));
  auto* out = static_cast<__nv_bfloat16*>(to);
  const bool vector = !columns && ldx % 4 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
  if (vector) launch_dependent(to_bf16_kernel<true>, dim3(blocks), dim3(256), 0, stream, x, ldx, rows, in, nullptr, out, ld);
  else launch_dependent(to_bf16_kernel<false>, dim3(blocks), dim3(256), 0, stream, x, ldx, rows, in, columns, out, ld);
}

void launch_finish_product(const ProductArgs& a, bool glu, int splits, cudaStream_t stream) {
  const unsigned blocks = blocks_for(static_cast<int64_t>(a.tokens) * a.tiles * kTileRows);
  if (glu) launch_dependent(finish_kernel<true>, dim3(blocks), dim3(256), 0, stream, a, splits);
  else launch_dependent(finish_kernel<false>, dim3(blocks), dim3(256), 0, stream, a, splits);
}

void launch_silu_mul(float* out, int64_t ld_out, const float* gate, int64_t ld_gate, const float* up, int64_t ld_up, int64_t rows,
                     int64_t columns, cudaStream_t stream) {
  const bool fours = columns % 4 == 0 && whole_fours(out, ld_out) && whole_fours(gate, ld_gate) && whole_fours(up, ld_up);
  launch_dependent(fours ? silu_mul_kernel<4> : silu_mul_kernel<1>, grid_over(rows, columns, fours ? 4 : 1), dim3(256), 0, stream, out,
                   ld_out, gate, ld_gate, up, ld_up, rows, columns);
}

void launch_silu_mul_bf16(void* up, int64_t ld_up, const void* gate, int64_t ld_gate, int64_t rows, int64_t columns, cudaStream_t stream) {
  launch_dependent(silu_mul_bf16_kernel, grid_over(rows, columns, 8), dim3(256), 0, stream, static_cast<__nv_bfloat16*>(up), ld_up,
                   static_cast<const __nv_bfloat16*>(gate), ld_gate, rows, columns);
}

void launch_add_bias(float* out, int64_t ld, const float* bias, int64_t rows, int64_t columns, cudaStream_t stream) {
  const bool fours = columns % 4 == 0 && whole_fours(out, ld);
  launch_dependent(fours ? add_bias_kernel<4> : add_bias_kernel<1>, grid_over(rows, columns, fours ? 4 : 1), dim3(256), 0, stream, out, ld,
                   bias, rows, columns);
}

void launch_gather_columns(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, float* to, cudaStream_t stream) {
  launch_dependent(gather_columns_kernel, dim3(blocks_for(rows * in)), dim3(256), 0, stream, x, ldx, rows, in, columns, to);
}

}  // namespace dg::cuda
