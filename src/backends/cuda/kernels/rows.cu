// Norms, rotary embedding and element-wise ops over f32 rows. All of them move each byte once and compute next to nothing: the bound is
// memory (H200: 4.8 TB/s), and for the few rows of a decode step the latency of one load and one reduction.
//   rms_norm: 8 bytes an element; add_rms_norm: 16. A row of up to 4 x 4 x 1024 elements stays in registers between the two passes.
//   rope: 8 bytes an element; the angles of a token are computed once per block and used for all of its heads.
//   act_mul, add: 12 bytes an element.
#include <algorithm>
#include <type_traits>

#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/row_convert.h"
#include "backends/cuda/kernels/row_kernels.h"
#include "backends/cuda/kernels/row_norm.cuh"

namespace dg::cuda {
namespace {

constexpr int64_t kMostGridY = 65535;

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

constexpr int kShortRows = 4;  // of a block, a warp each

// blockDim = (threads of a row, rows of a block). For the few rows of a decode step the time is that of one load from memory and one
// barrier: all of the row is asked for at once, and the weight came before the kernel before this one had ended.
template <int kKept, bool kVector, bool kDelta>
__global__ void __launch_bounds__(kMostNormThreads) rms_norm_kernel(const NormArgs a) {
  __shared__ float sums[32];
  start_next();
  const int64_t step = int64_t{4} * blockDim.x, first = int64_t{4} * threadIdx.x;
  float4 weight[kKept];
#pragma unroll
  for (int k = 0; k < kKept; k++) weight[k] = load4<kVector>(a.weight + first + k * step, a.dim - first - k * step);
  wait_for_previous();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (index >= a.rows * a.heads) return;  // whole warps: several rows to a block only where a row is a warp's
  const int64_t row = index / a.heads, head = index % a.heads;
  float* const x = a.x.data + row * a.x.row_stride + head * a.x.head_stride;
  float* const out = a.out.data + row * a.out.row_stride + head * a.out.head_stride;
  const float* const delta = kDelta ? a.delta + row * a.delta_stride : nullptr;
  float4 kept[kKept], added[kDelta ? kKept : 1];
#pragma unroll
  for (int k = 0; k < kKept; k++) {
    kept[k] = load4<kVector>(x + first + k * step, a.dim - first - k * step);
    if constexpr (kDelta) added[k] = load4<kVector>(delta + first + k * step, a.dim - first - k * step);
  }
  const auto add = [](float4 v, float4 d) { return float4{v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w}; };
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kKept; k++) {
    if constexpr (kDelta) {
      kept[k] = add(kept[k], added[k]);
      store4<kVector>(x + first + k * step, a.dim - first - k * step, kept[k]);
    }
    sum = add_squares(sum, kept[k]);
  }
  for (int64_t i = first + kKept * step; i < a.dim; i += step) {
    float4 v = load4<kVector>(x + i, a.dim - i);
    if constexpr (kDelta) {
      v = add(v, load4<kVector>(delta + i, a.dim - i));
      store4<kVector>(x + i, a.dim - i, v);
    }
    sum = add_squares(sum, v);
  }
  const float inverse = inverse_root(block_sum(sum, sums, static_cast<int>(blockDim.x / 32)), a.dim, a.eps);
#pragma unroll
  for (int k = 0; k < kKept; k++) store4<kVector>(out + first + k * step, a.dim - first - k * step, scaled(kept[k], inverse, weight[k]));
  for (int64_t i = first + kKept * step; i < a.dim; i += step) {
    const int64_t n = a.dim - i;
    store4<kVector>(out + i, n, scaled(load4<kVector>(x + i, n), inverse, load4<kVector>(a.weight + i, n)));
  }
}

// A block: a token and some of its heads, a warp for each head in turn. Shared memory: cosine and sine of every pair.
__global__ void rope_kernel(const RopeArgs a) {
  extern __shared__ float2 turns[];
  start_next();
  wait_for_previous();
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
      inverse = inverse_root(warp_sum(sum), a.dim, a.eps);
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
  start_next();
  wait_for_previous();
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
  start_next();
  wait_for_previous();
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4, n = g.cols - i;
  if (n <= 0) return;
  for (int64_t row = blockIdx.y; row < g.count; row += gridDim.y)
    store4<kVector>(g.out + row * g.out_stride + i, n, load4<kVector>(g.x + g.rows[row] * g.x_stride + i, n));
}

__global__ void fill_kernel(float* out, int64_t stride, int64_t rows, int64_t cols, float value) {
  start_next();
  wait_for_previous();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= cols) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) out[row * stride + i] = value;
}

// Equal types pass through a float too, as in the reference.
__global__ void copy_kernel(const CopyArgs c) {
  start_next();
  wait_for_previous();
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
  launch_dependent(p.vector ? pointwise_kernel<kOp, true> : pointwise_kernel<kOp, false>, grid, 256, 0, stream, p);
}

template <int kKept>
void launch_norm(const NormArgs& a, dim3 grid, dim3 block, cudaStream_t stream) {
  const auto with = [&](auto vector, auto delta) {
    launch_dependent(rms_norm_kernel<kKept, decltype(vector)::value, decltype(delta)::value>, grid, block, 0, stream, a);
  };
  if (a.delta) a.vector ? with(std::true_type{}, std::true_type{}) : with(std::false_type{}, std::true_type{});
  else a.vector ? with(std::true_type{}, std::false_type{}) : with(std::false_type{}, std::false_type{});
}

}  // namespace

void launch_rms_norm(const NormArgs& a, cudaStream_t stream) {
  const int across = norm_threads(a.dim), kept = norm_kept(a.dim), many = across == 32 ? kShortRows : 1;
  const dim3 block(static_cast<unsigned>(across), static_cast<unsigned>(many));
  const auto grid = static_cast<unsigned>(ceil_div(a.rows * a.heads, many));
  if (kept == 1) launch_norm<1>(a, grid, block, stream);
  else if (kept == 2) launch_norm<2>(a, grid, block, stream);
  else launch_norm<4>(a, grid, block, stream);
}

void launch_rope(const RopeArgs& a, cudaStream_t stream) {
  // With few tokens the heads are spread over blocks, four heads to a warp at least when there are many.
  const int64_t warps = 4, most = (a.heads + warps - 1) / warps;
  const int64_t across = std::clamp<int64_t>(1024 / std::max<int64_t>(1, a.rows), 1, most);
  launch_dependent(rope_kernel, dim3(static_cast<unsigned>(a.rows), static_cast<unsigned>(across)), static_cast<unsigned>(32 * warps),
                   static_cast<size_t>(a.dim / 2) * sizeof(float2), stream, a);
}

void launch_pointwise(Pointwise op, const PointwiseArgs& args, cudaStream_t stream) {
  if (op == Pointwise::kAdd) launch_pointwise_of<Pointwise::kAdd>(args, stream);
  else launch_pointwise_of<Pointwise::kSiluMul>(args, stream);
}

void launch_gather(const GatherArgs& g, cudaStream_t stream) {
  const dim3 grid = grid_over(g.count, g.cols, 4 * 256);
  launch_dependent(g.vector ? gather_kernel<true> : gather_kernel<false>, grid, 256, 0, stream, g);
}

void launch_fill(float* out, int64_t stride, int64_t rows, int64_t cols, float value, cudaStream_t stream) {
  launch_dependent(fill_kernel, grid_over(rows, cols, 256), 256, 0, stream, out, stride, rows, cols, value);
}

void launch_copy(const CopyArgs& c, cudaStream_t stream) {
  launch_dependent(copy_kernel, grid_over(c.rows, c.cols, 256), 256, 0, stream, c);
}

}  // namespace dg::cuda
