// Small kernels around the products: x to bf16, sums of split columns, gate and up, bias. All are bound by memory.
#include <algorithm>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/product_kernels.h"
#include "backends/cuda/kernels/weight_unpack.cuh"

namespace dg::cuda {
namespace {

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(std::clamp<int64_t>((threads + 255) / 256, 1, 132 * 16)); }

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
  const int64_t total = static_cast<int64_t>(a.tokens) * a.out, ld = static_cast<int64_t>(a.tiles) * kTileRows;
  constexpr int weights = kGlu ? 2 : 1;
  const int64_t matrix = a.tokens * ld;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t token = p / a.out, row = p % a.out;
    float sum[weights] = {};
    for (int s = 0; s < splits; s++)
#pragma unroll
      for (int m = 0; m < weights; m++) sum[m] += a.partial[(static_cast<int64_t>(s) * weights + m) * matrix + token * ld + row];
    float v = sum[0];
    if constexpr (kGlu) v = v / (1.0f + expf(-v)) * sum[1];
    else if (a.bias) v += a.bias[row];
    a.to[token * a.ld_to + row] = v;
  }
}

__global__ void __launch_bounds__(256) silu_mul_kernel(float* out, int64_t ld_out, const float* gate, int64_t ld_gate, const float* up,
                                                       int64_t ld_up, int64_t rows, int64_t columns) {
  wait_for_previous();
  start_next();
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < rows * columns; p += gridDim.x * 256ll) {
    const int64_t row = p / columns, k = p % columns;
    const float g = gate[row * ld_gate + k];
    out[row * ld_out + k] = g / (1.0f + expf(-g)) * up[row * ld_up + k];
  }
}

__global__ void __launch_bounds__(256) add_bias_kernel(float* out, int64_t ld, const float* bias, int64_t rows, int64_t columns) {
  wait_for_previous();
  start_next();
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < rows * columns; p += gridDim.x * 256ll)
    out[p / columns * ld + p % columns] += bias[p % columns];
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
  const unsigned blocks = blocks_for(static_cast<int64_t>(a.tokens) * a.out);
  if (glu) launch_dependent(finish_kernel<true>, dim3(blocks), dim3(256), 0, stream, a, splits);
  else launch_dependent(finish_kernel<false>, dim3(blocks), dim3(256), 0, stream, a, splits);
}

void launch_silu_mul(float* out, int64_t ld_out, const float* gate, int64_t ld_gate, const float* up, int64_t ld_up, int64_t rows,
                     int64_t columns, cudaStream_t stream) {
  launch_dependent(silu_mul_kernel, dim3(blocks_for(rows * columns)), dim3(256), 0, stream, out, ld_out, gate, ld_gate, up, ld_up, rows,
                   columns);
}

void launch_add_bias(float* out, int64_t ld, const float* bias, int64_t rows, int64_t columns, cudaStream_t stream) {
  launch_dependent(add_bias_kernel, dim3(blocks_for(rows * columns)), dim3(256), 0, stream, out, ld, bias, rows, columns);
}

void launch_gather_columns(const float* x, int64_t ldx, int64_t rows, int64_t in, const int32_t* columns, float* to, cudaStream_t stream) {
  launch_dependent(gather_columns_kernel, dim3(blocks_for(rows * in)), dim3(256), 0, stream, x, ldx, rows, in, columns, to);
}

}  // namespace dg::cuda
