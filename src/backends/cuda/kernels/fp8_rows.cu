// The rows around products in e4m3: quantising, sorting the pairs of a mixture of experts, adding up. All are bound by memory.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "backends/cuda/kernels/fp8_kernels.h"
#include "backends/cuda/kernels/moe_kernels.h"

namespace dg::cuda {
namespace {

constexpr int kSortThreads = 1024;
static_assert(kMostLocalExperts == 2 * kSortThreads);
constexpr float kMostE4m3 = 448.0f;

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(std::clamp<int64_t>((threads + 255) / 256, 1, 132 * 16)); }

// Codes of v[0], v[1] in bytes 0 and 1.
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

// 16 threads share 128 columns of a row, thread p of them columns 8 p .. 8 p + 7. Their scale, and the 8 codes in the order of
// weight_layout.h: in each word columns 0, 2, 1, 3.
struct Piece {
  float scale;
  uint2 codes;
};
__device__ __forceinline__ Piece quantise_piece(const float* x, unsigned mask) {
  float v[8];
  const bool whole = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  if (whole) {
    const float4 a = reinterpret_cast<const float4*>(x)[0], b = reinterpret_cast<const float4*>(x)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = x[i];
  }
  float most = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) most = fmaxf(most, fabsf(v[i]));
#pragma unroll
  for (int step = 8; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(mask, most, step));
  // A row of zeros, or of numbers too small for the inverse: codes 0.
  const float inverse = most > 1e-30f ? kMostE4m3 / most : 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] *= inverse;
  return {most * (1.0f / kMostE4m3),
          make_uint2(pack_e4m3(v[0], v[2]) | pack_e4m3(v[1], v[3]) << 16, pack_e4m3(v[4], v[6]) | pack_e4m3(v[5], v[7]) << 16)};
}

// Byte, in 64, of the 8 codes of columns 8 p .. 8 p + 7 (p below 8): part t = p % 4 of group j = p / 4; `swizzle` as row / 2 % 4.
__device__ __forceinline__ int piece_byte(int p, int swizzle) { return ((p % 4) ^ swizzle) * 16 + p / 4 * 8; }

__global__ void __launch_bounds__(256) quantise_kernel(const Fp8QuantiseArgs a) {
  const int64_t blocks = a.columns / kFp8TileColumns, total = a.rows * blocks;
  const int p = threadIdx.x % 16;
  const unsigned mask = 0xffffu << (threadIdx.x & 16u);
  for (int64_t i = (blockIdx.x * 256ll + threadIdx.x) / 16; i < total; i += gridDim.x * 16ll) {
    const int64_t row = i / blocks, block = i % blocks;
    const Piece piece = quantise_piece(a.x + row * a.ldx + block * kFp8TileColumns + p * 8, mask);
    for (int k = 0; k < a.copies; k++) {
      const int64_t to = a.place_of ? a.place_of[row * a.copies + k] : row;
      if (to < 0) continue;
      const int64_t tile = to / kFp8TileRows * blocks + block;
      const int r = static_cast<int>(to % kFp8TileRows);
      *reinterpret_cast<uint2*>(a.to.codes + tile * kFp8TileBytes + p / 8 * (kFp8TileBytes / 2) + r * 64 + piece_byte(p % 8, r / 2 % 4)) =
          piece.codes;
      if (p == 0) a.to.scales[tile * kFp8TileRows + r] = piece.scale;
    }
  }
}

__global__ void __launch_bounds__(256)
    quantise_rows_kernel(uint8_t* codes, float* scales, int64_t ld_scales, const float* x, int64_t ldx, int64_t rows, int64_t columns) {
  const int64_t blocks = columns / kFp8TileColumns, total = rows * blocks;
  const int p = threadIdx.x % 16;
  const unsigned mask = 0xffffu << (threadIdx.x & 16u);
  for (int64_t i = (blockIdx.x * 256ll + threadIdx.x) / 16; i < total; i += gridDim.x * 16ll) {
    const int64_t row = i / blocks, block = i % blocks;
    const Piece piece = quantise_piece(x + row * ldx + block * kFp8TileColumns + p * 8, mask);
    *reinterpret_cast<uint2*>(codes + row * columns + block * kFp8TileColumns + p / 8 * 64 + piece_byte(p % 8, 0)) = piece.codes;
    if (p == 0) scales[block * ld_scales + row] = piece.scale;
  }
}

// A thread moves 16 bytes.
__global__ void __launch_bounds__(256) weight_rows_kernel(uint8_t* codes, float* scales, int64_t ld_scales, const uint8_t* weight,
                                                          int64_t aux_offset, int64_t tile_bytes, int64_t out, int64_t in) {
  const int64_t pieces = in / 16, total = out * pieces, thread = blockIdx.x * 256ll + threadIdx.x, threads = gridDim.x * 256ll;
  for (int64_t i = thread; i < total; i += threads) {
    const int64_t row = i / pieces, piece = i % pieces;
    const int r = static_cast<int>(row % kTileRows), lane = r % 8 * 4 + static_cast<int>(piece % 4);
    const uint8_t* from =
        weight + row / kTileRows * tile_bytes + piece / 4 * kBlockCodeBytes + r / 8 * 512 + lane_place(WeightKind::kFp8Block128, lane) * 16;
    *reinterpret_cast<uint4*>(codes + row * in + piece * 16) = *reinterpret_cast<const uint4*>(from);
  }
  const int64_t blocks = in / 128, squares = (out + 127) / 128 * blocks;
  for (int64_t i = thread; i < squares; i += threads)
    scales[i / blocks * ld_scales + i % blocks] = reinterpret_cast<const float*>(weight + aux_offset)[i];
}

__device__ __forceinline__ int local_expert(const Fp8SortArgs& a, int pair) {
  const int e = a.ids[static_cast<int64_t>(pair / a.top_k) * a.ld_ids + pair % a.top_k] - a.first;
  return e >= 0 && e < a.experts ? e : -1;
}

// A counting sort in one CTA: one pass counts, one places. The order of an expert's pairs is left to chance; a pair's result does not
// depend on it.
__global__ void __launch_bounds__(kSortThreads) fp8_sort_kernel(const Fp8SortArgs a) {
  __shared__ int counts[kMostLocalExperts];
  __shared__ int2 warp_sums[32];
  const int i = threadIdx.x, pairs = a.tokens * a.top_k;
  counts[2 * i] = counts[2 * i + 1] = 0;
  __syncthreads();
  for (int p = i; p < pairs; p += kSortThreads)
    if (const int e = local_expert(a, p); e >= 0) atomicAdd(&counts[e], 1);
  __syncthreads();

  // Prefix sums of row tiles and items; a thread has two experts.
  const int count[2] = {counts[2 * i], counts[2 * i + 1]};
  int2 mine = make_int2(0, 0);
#pragma unroll
  for (int h = 0; h < 2; h++)
    mine.x += (count[h] + kFp8TileRows - 1) / kFp8TileRows, mine.y += (count[h] + kFp8ItemRows - 1) / kFp8ItemRows;
  int2 sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int x = __shfl_up_sync(0xffffffffu, sum.x, step), y = __shfl_up_sync(0xffffffffu, sum.y, step);
    if (i % 32 >= step) sum.x += x, sum.y += y;
  }
  if (i % 32 == 31) warp_sums[i / 32] = sum;
  __syncthreads();
  if (i < 32) {
    int2 total = warp_sums[i];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int x = __shfl_up_sync(0xffffffffu, total.x, step), y = __shfl_up_sync(0xffffffffu, total.y, step);
      if (i >= step) total.x += x, total.y += y;
    }
    warp_sums[i] = total;
    if (i == 31) *a.item_count = total.y;
  }
  __syncthreads();
  int begin = sum.x - mine.x, item = sum.y - mine.y;
  if (i >= 32) begin += warp_sums[i / 32 - 1].x, item += warp_sums[i / 32 - 1].y;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    for (int done = 0; done < count[h]; done += kFp8ItemRows)
      a.items[item++] = {2 * i + h, begin * kFp8TileRows + done, min(kFp8ItemRows, count[h] - done)};
    counts[2 * i + h] = begin * kFp8TileRows;  // from here on the place of the expert's next pair
    begin += (count[h] + kFp8TileRows - 1) / kFp8TileRows;
  }
  __syncthreads();
  for (int p = i; p < pairs; p += kSortThreads) {
    const int e = local_expert(a, p), place = e >= 0 ? atomicAdd(&counts[e], 1) : -1;
    a.place_of[p] = place;
    if (place >= 0) a.pair_at[place] = p;
  }
}

// A thread makes 8 columns of a token; dim is a multiple of 8.
__global__ void __launch_bounds__(256) fp8_combine_kernel(const Fp8CombineArgs a) {
  const int64_t pieces = a.dim / 8, total = a.tokens * pieces;
  for (int64_t p = blockIdx.x * 256ll + threadIdx.x; p < total; p += gridDim.x * 256ll) {
    const int64_t t = p / pieces, column = p % pieces * 8;
    float* out = a.out + t * a.ld_out + column;
    float sum[8];
    const bool whole = reinterpret_cast<uintptr_t>(out) % 16 == 0;
    if (whole) {
      const float4 low = reinterpret_cast<const float4*>(out)[0], high = reinterpret_cast<const float4*>(out)[1];
      sum[0] = low.x, sum[1] = low.y, sum[2] = low.z, sum[3] = low.w, sum[4] = high.x, sum[5] = high.y, sum[6] = high.z, sum[7] = high.w;
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) sum[i] = out[i];
    }
    for (int k = 0; k < a.top_k; k++) {
      const int64_t pair = t * a.top_k + k;
      if (a.place_of[pair] < 0) continue;
      const float weight = a.weights[t * a.ld_weights + k];
      const uint4 y = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(a.y) + pair * a.dim + column);
      const uint32_t words[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sum[2 * i] = fmaf(weight, __uint_as_float(words[i] << 16), sum[2 * i]);
        sum[2 * i + 1] = fmaf(weight, __uint_as_float(words[i] & 0xffff0000u), sum[2 * i + 1]);
      }
    }
    if (whole) {
      reinterpret_cast<float4*>(out)[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
      reinterpret_cast<float4*>(out)[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
    } else {
#pragma unroll
      for (int i = 0; i < 8; i++) out[i] = sum[i];
    }
  }
}

}  // namespace

void launch_fp8_quantise(const Fp8QuantiseArgs& a, cudaStream_t stream) {
  quantise_kernel<<<blocks_for(a.rows * (a.columns / 8)), 256, 0, stream>>>(a);
}

void launch_fp8_quantise_rows(uint8_t* codes, float* scales, int64_t ld_scales, const float* x, int64_t ldx, int64_t rows, int64_t columns,
                              cudaStream_t stream) {
  quantise_rows_kernel<<<blocks_for(rows * (columns / 8)), 256, 0, stream>>>(codes, scales, ld_scales, x, ldx, rows, columns);
}

void launch_fp8_weight_rows(uint8_t* codes, float* scales, int64_t ld_scales, const uint8_t* weight, int64_t aux_offset, int64_t tile_bytes,
                            int64_t out, int64_t in, cudaStream_t stream) {
  weight_rows_kernel<<<blocks_for(out * (in / 16)), 256, 0, stream>>>(codes, scales, ld_scales, weight, aux_offset, tile_bytes, out, in);
}

void launch_fp8_sort(const Fp8SortArgs& a, cudaStream_t stream) { fp8_sort_kernel<<<1, kSortThreads, 0, stream>>>(a); }

void launch_fp8_combine(const Fp8CombineArgs& a, cudaStream_t stream) {
  fp8_combine_kernel<<<blocks_for(a.tokens * (a.dim / 8)), 256, 0, stream>>>(a);
}

}  // namespace dg::cuda
