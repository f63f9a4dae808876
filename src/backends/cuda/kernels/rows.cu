// Norms, rotary embedding and element-wise ops over f32 rows. All of them move each byte once and compute next to nothing: the bound is
// memory (H200: 4.8 TB/s), and for the few rows of a decode step the latency of one load and one reduction.
//   rms_norm: 8 bytes an element; add_rms_norm: 16. A row of up to 4 x 4 x 512 elements stays in registers between the two passes.
//   rope: 8 bytes an element; the angles of a token are computed once per block and used for all of its heads.
//   act_mul, add: 12 bytes an element.
// A thread owns the same elements whether it loads them four at a time or singly, so alignment never shows in a result.
#include <algorithm>

#include "backends/cuda/kernels/row_convert.h"
#include "backends/cuda/kernels/row_kernels.h"

namespace dg::cuda {
namespace {

constexpr int64_t kMostGridY = 65535;

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

template <bool kVector>
__device__ __forceinline__ float4 load4(const float* p, int64_t n) {
  if constexpr (kVector) {
    if (n >= 4) return *reinterpret_cast<const float4*>(p);
  }
  return {n > 0 ? p[0] : 0.0f, n > 1 ? p[1] : 0.0f, n > 2 ? p[2] : 0.0f, n > 3 ? p[3] : 0.0f};
}
template <bool kVector>
__device__ __forceinline__ void store4(float* p, int64_t n, float4 v) {
  if constexpr (kVector) {
    if (n >= 4) {
      *reinterpret_cast<float4*>(p) = v;
      return;
    }
  }
  if (n > 0) p[0] = v.x;
  if (n > 1) p[1] = v.y;
  if (n > 2) p[2] = v.z;
  if (n > 3) p[3] = v.w;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

constexpr int kMostThreads = 512;  // of a row
constexpr int kKept = 4;           // groups of four that a thread keeps in registers

// blockDim = (threads of a row, rows of a block): a warp for each of several short rows, or the block for one row.
template <bool kVector, bool kDelta>
__global__ void __launch_bounds__(kMostThreads) rms_norm_kernel(const NormArgs a) {
  __shared__ float sums[32];
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (index >= a.rows * a.heads) return;  // whole warps: several rows to a block only where a row is a warp's
  const int64_t row = index / a.heads, head = index % a.heads;
  float* const x = a.x.data + row * a.x.row_stride + head * a.x.head_stride;
  float* const out = a.out.data + row * a.out.row_stride + head * a.out.head_stride;
  const float* const delta = kDelta ? a.delta + row * a.delta_stride : nullptr;
  const int64_t step = int64_t{4} * blockDim.x, first = int64_t{4} * threadIdx.x;
  float4 kept[kKept];
  float sum = 0;
  auto take = [&](int64_t i) {
    float4 v = load4<kVector>(x + i, a.dim - i);
    if constexpr (kDelta) {
      const float4 d = load4<kVector>(delta + i, a.dim - i);
      v = {v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w};
      store4<kVector>(x + i, a.dim - i, v);
    }
    sum = __fmaf_rn(v.w, v.w, __fmaf_rn(v.z, v.z, __fmaf_rn(v.y, v.y, __fmaf_rn(v.x, v.x, sum))));
    return v;
  };
#pragma unroll
  for (int k = 0; k < kKept; k++) {
    const int64_t i = first + k * step;
    if (i < a.dim) kept[k] = take(i);
  }
  for (int64_t i = first + kKept * step; i < a.dim; i += step) take(i);
  sum = warp_sum(sum);
  if (blockDim.x > 32) {
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f);
  }
  const float inverse = 1.0f / sqrtf(sum / static_cast<float>(a.dim) + a.eps);
  auto give = [&](int64_t i, float4 v) {
    const int64_t n = a.dim - i;
    const float4 w = load4<kVector>(a.weight + i, n);
    store4<kVector>(out + i, n, {v.x * inverse * w.x, v.y * inverse * w.y, v.z * inverse * w.z, v.w * inverse * w.w});
  };
#pragma unroll
  for (int k = 0; k < kKept; k++) {
    const int64_t i = first + k * step;
    if (i < a.dim) give(i, kept[k]);
  }
  for (int64_t i = first + kKept * step; i < a.dim; i += step) give(i, load4<kVector>(x + i, a.dim - i));
}

// A block: a token and some of its heads, a warp for each head in turn. Shared memory: cosine and sine of every pair.
__global__ void rope_kernel(const RopeArgs a) {
  extern __shared__ float2 turns[];
  const int64_t row = blockIdx.x, half = a.dim / 2;
  const auto position = static_cast<float>(a.positions[row]);
  for (int64_t i = threadIdx.x; i < half; i += blockDim.x) {
    float sine, cosine;
    sincosf(__fmul_rn(position, a.inv_freq[i]), &sine, &cosine);
    turns[i] = {cosine * a.magnitude, sine * a.magnitude};
  }
  __syncthreads();
  const int64_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const int64_t stride = a.interleaved ? 2 : 1, distance = a.interleaved ? 1 : half;
  for (int64_t head = blockIdx.y * warps + threadIdx.x / 32; head < a.heads; head += gridDim.y * warps) {
    float* const x = a.x.data + row * a.x.row_stride + head * a.x.head_stride;
    float inverse = 1;
    if (a.weight) {
      float sum = 0;
      for (int64_t i = lane; i < a.dim; i += 32) sum += x[i] * x[i];
      inverse = 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(a.dim) + a.eps);
      __syncwarp();
      if (a.dim % 2 != 0 && lane == 0) x[a.dim - 1] = x[a.dim - 1] * inverse * a.weight[a.dim - 1];  // has no partner
    }
    for (int64_t i = lane; i < half; i += 32) {
      const int64_t one = i * stride, two = one + distance;
      float u = x[one], v = x[two];
      if (a.weight) u = u * inverse * a.weight[one], v = v * inverse * a.weight[two];
      const float2 turn = turns[i];
      x[one] = u * turn.x - v * turn.y;
      x[two] = v * turn.x + u * turn.y;
    }
  }
}

template <Pointwise kOp>
__device__ __forceinline__ float combine(float a, float b) {
  if constexpr (kOp == Pointwise::kAdd) return a + b;
  else return a / (1.0f + expf(-a)) * b;
}

template <Pointwise kOp, bool kVector>
__global__ void pointwise_kernel(const PointwiseArgs p) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4, n = p.cols - i;
  if (n <= 0) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const float4 a = load4<kVector>(p.a + row * p.a_stride + i, n), b = load4<kVector>(p.b + row * p.b_stride + i, n);
    store4<kVector>(p.out + row * p.out_stride + i, n,
                    {combine<kOp>(a.x, b.x), combine<kOp>(a.y, b.y), combine<kOp>(a.z, b.z), combine<kOp>(a.w, b.w)});
  }
}

template <bool kVector>
__global__ void gather_kernel(const GatherArgs g) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4, n = g.cols - i;
  if (n <= 0) return;
  for (int64_t row = blockIdx.y; row < g.count; row += gridDim.y)
    store4<kVector>(g.out + row * g.out_stride + i, n, load4<kVector>(g.x + g.rows[row] * g.x_stride + i, n));
}

__global__ void fill_kernel(float* out, int64_t stride, int64_t rows, int64_t cols, float value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= cols) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) out[row * stride + i] = value;
}

// Equal types pass through a float too, as in the reference.
__global__ void copy_kernel(const CopyArgs c) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= c.cols) return;
  for (int64_t row = blockIdx.y; row < c.rows; row += gridDim.y) {
    const int64_t from = row * c.x_row + i * c.x_col, to = row * c.out_row + i * c.out_col;
    float v;
    if (c.from == Element::kF32) v = static_cast<const float*>(c.x)[from];
    else if (c.from == Element::kBf16) v = bf16_bits_to_float(static_cast<const uint16_t*>(c.x)[from]);
    else v = f16_bits_to_float(static_cast<const uint16_t*>(c.x)[from]);
    if (c.to == Element::kF32) static_cast<float*>(c.out)[to] = v;
    else if (c.to == Element::kBf16) static_cast<uint16_t*>(c.out)[to] = float_to_bf16_bits(v);
    else static_cast<uint16_t*>(c.out)[to] = float_to_f16_bits(v);
  }
}

// Columns along x, `per_thread` each, rows along y.
dim3 grid_over(int64_t rows, int64_t cols, int64_t per_block) {
  return {static_cast<unsigned>(ceil_div(cols, per_block)), static_cast<unsigned>(std::min(rows, kMostGridY)), 1};
}

template <Pointwise kOp>
void launch_pointwise_of(const PointwiseArgs& p, cudaStream_t stream) {
  const dim3 grid = grid_over(p.rows, p.cols, 4 * 256);
  if (p.vector) pointwise_kernel<kOp, true><<<grid, 256, 0, stream>>>(p);
  else pointwise_kernel<kOp, false><<<grid, 256, 0, stream>>>(p);
}

}  // namespace

void launch_rms_norm(const NormArgs& a, cudaStream_t stream) {
  const int64_t groups = (a.dim + 3) / 4, count = a.rows * a.heads;
  // The shape depends on `dim` alone, and with it the order of the sum.
  const int64_t across = groups <= 64 ? 32 : std::min<int64_t>(kMostThreads, (groups + 31) / 32 * 32);
  const dim3 block(static_cast<unsigned>(across), across == 32 ? 4 : 1);
  const auto grid = static_cast<unsigned>(ceil_div(count, block.y));
  if (a.delta) {
    if (a.vector) rms_norm_kernel<true, true><<<grid, block, 0, stream>>>(a);
    else rms_norm_kernel<false, true><<<grid, block, 0, stream>>>(a);
  } else {
    if (a.vector) rms_norm_kernel<true, false><<<grid, block, 0, stream>>>(a);
    else rms_norm_kernel<false, false><<<grid, block, 0, stream>>>(a);
  }
}

void launch_rope(const RopeArgs& a, cudaStream_t stream) {
  // With few tokens the heads are spread over blocks, four heads to a warp at least when there are many.
  const int64_t warps = 4, most = (a.heads + warps - 1) / warps;
  const int64_t across = std::clamp<int64_t>(1024 / std::max<int64_t>(1, a.rows), 1, most);
  rope_kernel<<<dim3(static_cast<unsigned>(a.rows), static_cast<unsigned>(across)), static_cast<unsigned>(32 * warps),
                static_cast<size_t>(a.dim / 2) * sizeof(float2), stream>>>(a);
}

void launch_pointwise(Pointwise op, const PointwiseArgs& args, cudaStream_t stream) {
  if (op == Pointwise::kAdd) launch_pointwise_of<Pointwise::kAdd>(args, stream);
  else launch_pointwise_of<Pointwise::kSiluMul>(args, stream);
}

void launch_gather(const GatherArgs& g, cudaStream_t stream) {
  const dim3 grid = grid_over(g.count, g.cols, 4 * 256);
  if (g.vector) gather_kernel<true><<<grid, 256, 0, stream>>>(g);
  else gather_kernel<false><<<grid, 256, 0, stream>>>(g);
}

void launch_fill(float* out, int64_t stride, int64_t rows, int64_t cols, float value, cudaStream_t stream) {
  fill_kernel<<<grid_over(rows, cols, 256), 256, 0, stream>>>(out, stride, rows, cols, value);
}

void launch_copy(const CopyArgs& c, cudaStream_t stream) { copy_kernel<<<grid_over(c.rows, c.cols, 256), 256, 0, stream>>>(c); }

}  // namespace dg::cuda
