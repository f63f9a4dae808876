// Products in e4m3 on Hopper: 128 rows of x times two squares of 128 rows of weights per step of 128 columns, accumulated in f32. Serves
// dense products (items of 128 rows in order) and the experts of a mixture (items of one expert each, from a list on the device).
//
// A CTA = two warpgroups that multiply, 64 rows of x each, and one warp that fetches. Its tiles are 128 rows of x times 128 gate and 128
// up rows, or 256 rows of one matrix; CTAs stay and take every gridDim'th tile. Per step a stage of 48 KiB and 512 bytes of scales comes by
// bulk copies of contiguous bytes: x tiles and blocks of weights lie in memory as the matrix unit wants them (fp8_kernels.h,
// weight_layout.h).
//
// Two levels of sums: the matrix unit adds 128 columns (it keeps about 14 bits there), then acc += sum * scale of x * scale of weight in
// f32, in the other warpgroup's time on the matrix unit.
//
// Per step and CTA: 2 x 128 x 128 x 128 multiply-adds = 1024 clocks of the matrix unit; 48.5 KiB through L2 (47 bytes a clock at the peak,
// 26 at 55 % of it); 128 FMA a thread = 256 issue slots of each scheduler.
#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "backends/cuda/kernels/fp8_kernels.h"
#include "backends/cuda/kernels/hopper.cuh"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kStages = 4, kThreads = 384;
constexpr int kWeightBytes = 2 * 16384, kStageBytes = kWeightBytes + 2 * kFp8TileBytes;
constexpr int kScaleBytes = kFp8TileRows * 4;                   // of one x tile
[[maybe_unused]] constexpr int kHalfBytes = kFp8TileBytes / 2;  // 64 rows of 64 columns
// Shared memory: stages [weights: matrix, half of the columns, 128 rows; x: warpgroup, half, 64 rows], quantised results of the two
// warpgroups, scales of x by stage and warpgroup, barriers.
constexpr int kResultsAt = kStages * kStageBytes, kScalesAt = kResultsAt + 2 * kFp8TileBytes,
              kBarriersAt = kScalesAt + kStages * 2 * kScaleBytes,
              kSharedBytes = kBarriersAt + kStages * 16 + 1024;  // 1024: the start is rounded up
[[maybe_unused]] constexpr int kGroupItems = 8;                  // items that go through a weight's tiles together, for L2

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DG_HAS_WGMMA 1
#endif

#ifdef DG_HAS_WGMMA
struct Tile {
  int expert, begin, count, column;  // `column`: of tiles of the result
};

__device__ __forceinline__ int item_count(const Fp8ProductArgs& a) {
  return a.items ? *a.item_count : (a.rows + kFp8ItemRows - 1) / kFp8ItemRows;
}
// Tile `index`: groups of items, in these columns of the result, in these items.
__device__ __forceinline__ Tile find_tile(const Fp8ProductArgs& a, int index, int items, int columns) {
  const int group = index / (kGroupItems * columns), first = group * kGroupItems, in_group = min(kGroupItems, items - first);
  const int rest = index - first * columns, item = first + rest % in_group;
  if (a.items) return {a.items[item].expert, a.items[item].begin, a.items[item].count, rest / in_group};
  return {0, item * kFp8ItemRows, min(kFp8ItemRows, a.rows - item * kFp8ItemRows), rest / in_group};
}
__device__ __forceinline__ const uint8_t* weight_of(const Fp8ProductArgs& a, const Tile& tile, bool glu, int m) {
  if (a.experts) return a.experts[tile.expert].data[glu ? m : a.matrix];
  return glu && m == 1 ? a.data[1] : a.data[0];
}

__device__ __forceinline__ float silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}

// One warp: lane 16 m + 8 c + t copies the 16 rows of tile t of matrix m in half c of the columns.
__device__ __forceinline__ void fetch(const Fp8ProductArgs& a, bool glu, uint32_t shared, int lane) {
  const int blocks = a.columns / kFp8TileColumns, tiles16 = (a.out + kTileRows - 1) / kTileRows;
  const int result_columns = glu ? 128 : 256, columns = (a.out + result_columns - 1) / result_columns;
  const int items = item_count(a), total = items * columns;
  const int m = lane / 16, c = lane / 8 % 2, t = lane % 8;
  int stage = 0;
  uint32_t parity = 1;  // of a free stage: the first round waits for nothing
  for (int index = blockIdx.x; index < total; index += gridDim.x) {
    const Tile tile = find_tile(a, index, items, columns);
    const int tile16 = glu ? tile.column * 8 + t : tile.column * 16 + m * 8 + t;
    const bool valid = tile16 < tiles16;
    const uint8_t* weight = valid ? weight_of(a, tile, glu, m) + tile16 * a.tile_bytes + c * kBlockCodeBytes : nullptr;
    const int row_tiles = tile.count > kFp8TileRows ? 2 : 1;
    const int64_t x_tile = static_cast<int64_t>(tile.begin / kFp8TileRows + (lane < row_tiles ? lane : 0)) * blocks;
    const uint32_t bytes = __popc(__ballot_sync(0xffffffffu, valid)) * kBlockCodeBytes + row_tiles * (kFp8TileBytes + kScaleBytes);
    for (int block = 0; block < blocks; block++) {
      const uint32_t full = shared + kBarriersAt + stage * 16, at = shared + stage * kStageBytes;
      hopper::barrier_wait(full + 8, parity);
      if (lane == 0) hopper::barrier_arrive_expect(full, bytes);
      __syncwarp();
      if (valid)
        hopper::bulk_load(at + m * 16384 + c * 8192 + t * kBlockCodeBytes, weight + block * 2 * kBlockCodeBytes, kBlockCodeBytes, full);
      if (lane < row_tiles) {
        hopper::bulk_load(at + kWeightBytes + lane * kFp8TileBytes, a.x.codes + (x_tile + block) * kFp8TileBytes, kFp8TileBytes, full);
        hopper::bulk_load(shared + kScalesAt + (stage * 2 + lane) * kScaleBytes, a.x.scales + (x_tile + block) * kFp8TileRows, kScaleBytes,
                          full);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if (stage == 0) parity ^= 1;
    }
  }
}

// Quantises 64 rows of 128 results to a tile: through shared memory, in the tile's layout.
__device__ __forceinline__ void store_quantised(const Fp8ProductArgs& a, const Tile& tile, const float (&v)[64], int group,
                                                uint8_t* results, int thread) {
  const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
  const int64_t to = static_cast<int64_t>(tile.begin / kFp8TileRows + group) * (a.out / kFp8TileColumns) + tile.column;
  if (thread == 0) hopper::bulk_store_read();
  hopper::named_barrier(1 + group, 128);  // the tile before has left
  float inverse[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    float most = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) most = fmaxf(most, fmaxf(fabsf(v[4 * j + 2 * h]), fabsf(v[4 * j + 2 * h + 1])));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    inverse[h] = most > 1e-30f ? __fdividef(448.0f, most) : 0.0f;
    if (t == 0) a.to_scales[to * kFp8TileRows + warp * 16 + g + 8 * h] = most * (1.0f / 448.0f);
  }
  // A word is columns 0, 2, 1, 3 of 4: two lanes have two each. The even lane makes row g's, the odd one row g + 8's.
  const int odd = t % 2, row = warp * 16 + g + 8 * odd;
#pragma unroll
  for (int j = 0; j < 16; j++) {
    const uint32_t low = pack_e4m3(v[4 * j] * inverse[0], v[4 * j + 1] * inverse[0]),
                   high = pack_e4m3(v[4 * j + 2] * inverse[1], v[4 * j + 3] * inverse[1]);
    const uint32_t mine = odd ? high : low, other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
    const uint32_t word = odd ? __byte_perm(other, mine, 0x5140) : __byte_perm(mine, other, 0x5140);
    const int half = j / 8, group32 = j % 8 / 4, part = j % 4;
    *reinterpret_cast<uint32_t*>(results + half * kHalfBytes + row * 64 + (part ^ (row / 2 % 4)) * 16 + group32 * 8 + t / 2 * 4) = word;
  }
  hopper::fence_async();
  hopper::named_barrier(1 + group, 128);
  if (thread == 0) hopper::bulk_store(static_cast<uint8_t*>(a.to) + to * kFp8TileBytes, hopper::shared_address(results), kFp8TileBytes);
}

// 64 rows of 128 results from column `first` on as f32.
__device__ __forceinline__ void store_rows(const Fp8ProductArgs& a, const Tile& tile, const float (&v)[64], int group, int first,
                                           int thread) {
  const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = group * 64 + warp * 16 + g + 8 * h;
    if (row >= tile.count) continue;
    float* to = static_cast<float*>(a.to) + (tile.begin + row) * a.ld_to;
    const bool pairs = reinterpret_cast<uintptr_t>(to) % 8 == 0;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      const int column = first + 8 * j + 2 * t;
      const float low = v[4 * j + 2 * h], high = v[4 * j + 2 * h + 1];
      if (pairs && column + 1 < a.out) {
        *reinterpret_cast<float2*>(to + column) = make_float2(low, high);
      } else {
        if (column < a.out) to[column] = low;
        if (column + 1 < a.out) to[column + 1] = high;
      }
    }
  }
}

// The same as bf16 to the pairs' rows; `out` and ld_to are multiples of 8. Four lanes exchange words so that each stores 16 bytes.
__device__ __forceinline__ void store_pairs(const Fp8ProductArgs& a, const Tile& tile, const float (&v)[64], int group, int first,
                                            int thread) {
  const int warp = thread / 32, g = thread % 32 / 4, t = thread % 4;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = group * 64 + warp * 16 + g + 8 * h;
    const bool inside = row < tile.count;
    auto* to = static_cast<__nv_bfloat16*>(a.to) + static_cast<int64_t>(inside ? a.pair_at[tile.begin + row] : 0) * a.ld_to;
#pragma unroll
    for (int j = 0; j < 16; j += 4) {
      // w[i]: columns 2 t, 2 t + 1 of the 8 columns j + i. A transposition of 4 x 4 words: first 2 x 2 squares, then within them.
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; i++) w[i] = pack_bf16(v[4 * (j + i) + 2 * h], v[4 * (j + i) + 2 * h + 1]);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, t & 2 ? w[i] : w[i + 2], 2);
        if (t & 2) w[i] = got;
        else w[i + 2] = got;
      }
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, t & 1 ? w[i] : w[i + 1], 1);
        if (t & 1) w[i] = got;
        else w[i + 1] = got;
      }
      const int column = first + 8 * (j + t);
      if (inside && column < a.out) *reinterpret_cast<uint4*>(to + column) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

// Warpgroup `group` of the two that multiply.
template <Fp8Output kOutput>
__device__ __forceinline__ void multiply(const Fp8ProductArgs& a, uint8_t* memory, uint32_t shared, int group, int thread) {
  constexpr bool kIsGlu = kOutput == Fp8Output::kGlu || kOutput == Fp8Output::kGluRows;
  const int blocks = a.columns / kFp8TileColumns, result_columns = kIsGlu ? 128 : 256,
            columns = (a.out + result_columns - 1) / result_columns;
  const int items = item_count(a), total = items * columns;
  const int row = thread / 32 * 16 + thread % 32 / 4;
  int stage = 0;
  uint32_t parity = 0;
  for (int index = blockIdx.x; index < total; index += gridDim.x) {
    const Tile tile = find_tile(a, index, items, columns);
    if (group * kFp8TileRows >= tile.count) {  // nothing for this warpgroup, but its stages have to pass
      for (int block = 0; block < blocks; block++) {
        const uint32_t full = shared + kBarriersAt + stage * 16;
        hopper::barrier_wait(full, parity);
        __syncwarp();
        if (thread % 32 == 0) hopper::barrier_arrive(full + 8);
        stage = stage + 1 == kStages ? 0 : stage + 1;
        if (stage == 0) parity ^= 1;
      }
      continue;
    }
    // Scales of the squares of weights, a step ahead.
    const float* scales[2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
      const int square = min(kIsGlu ? tile.column : tile.column * 2 + m, (a.out + 127) / 128 - 1);
      scales[m] = reinterpret_cast<const float*>(weight_of(a, tile, kIsGlu, m) + a.aux_offset) + static_cast<int64_t>(square) * blocks;
    }
    float acc[2][64];
#pragma unroll
    for (int i = 0; i < 64; i++) acc[0][i] = acc[1][i] = 0;
    float next[2] = {__ldg(scales[0]), __ldg(scales[1])};
    for (int block = 0; block < blocks; block++) {
      const float now[2] = {next[0], next[1]};
      const int ahead = min(block + 1, blocks - 1);
      next[0] = __ldg(scales[0] + ahead), next[1] = __ldg(scales[1] + ahead);
      const uint32_t full = shared + kBarriersAt + stage * 16, at = shared + stage * kStageBytes;
      const float* x_scales = reinterpret_cast<const float*>(memory + kScalesAt + (stage * 2 + group) * kScaleBytes);
      hopper::barrier_wait(full, parity);
      const float low = x_scales[row], high = x_scales[row + 8];
      const uint64_t x = hopper::rows_of_64(at + kWeightBytes + group * kFp8TileBytes);
#pragma unroll
      for (int m = 0; m < 2; m++) {
        // A second matrix beyond the weight is multiplied too, whatever stands there: nobody reads its results.
        float sum[64];
        const uint64_t w = hopper::rows_of_64(at + m * 16384);
        hopper::wgmma_begin();
#pragma unroll
        for (int k = 0; k < 4; k++)  // 32 columns: half k / 2, bytes 32 (k % 2)
          hopper::wgmma_e4m3(sum, x + (k / 2 * kHalfBytes + k % 2 * 32) / 16, w + (k / 2 * 8192 + k % 2 * 32) / 16, k > 0);
        hopper::wgmma_commit();
        hopper::wgmma_wait(sum);
        if (m == 1) {  // this warpgroup has read the stage
          __syncwarp();
          if (thread % 32 == 0) hopper::barrier_arrive(full + 8);
        }
        const float low_scale = low * now[m], high_scale = high * now[m];
#pragma unroll
        for (int i = 0; i < 64; i++) acc[m][i] = fmaf(sum[i], i % 4 < 2 ? low_scale : high_scale, acc[m][i]);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if (stage == 0) parity ^= 1;
    }
    if constexpr (kIsGlu) {
#pragma unroll
      for (int i = 0; i < 64; i++) acc[0][i] = silu(acc[0][i]) * acc[1][i];
      if constexpr (kOutput == Fp8Output::kGlu)
        store_quantised(a, tile, acc[0], group, memory + kResultsAt + group * kFp8TileBytes, thread);
      else store_rows(a, tile, acc[0], group, tile.column * 128, thread);
    } else {
#pragma unroll
      for (int m = 0; m < 2; m++) {
        if constexpr (kOutput == Fp8Output::kPairs) store_pairs(a, tile, acc[m], group, tile.column * 256 + m * 128, thread);
        else store_rows(a, tile, acc[m], group, tile.column * 256 + m * 128, thread);
      }
    }
  }
  if (kOutput == Fp8Output::kGlu && thread == 0) hopper::bulk_store_done();
}
#endif

extern __shared__ __align__(1024) uint8_t fp8_shared[];

template <Fp8Output kOutput>
__global__ void __launch_bounds__(kThreads, 1) fp8_product_kernel(const Fp8ProductArgs a) {
#ifdef DG_HAS_WGMMA
  const uint32_t start = hopper::shared_address(fp8_shared), shared = (start + 1023) / 1024 * 1024;
  uint8_t* const memory = fp8_shared + (shared - start);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; s++) {
      hopper::barrier_init(shared + kBarriersAt + s * 16, 1);      // full: the fetching warp, and the bytes
      hopper::barrier_init(shared + kBarriersAt + s * 16 + 8, 8);  // free: the multiplying warps
    }
    hopper::barrier_init_done();
  }
  __syncthreads();
  // From lane 0: the compiler then knows that whole warps go one way. Where it does not, it waits for every single product of the matrix unit
  // (ptxas says so: C7520).
  const int group = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x / 128), 0);
  if (group == 2) {
    hopper::fewer_registers<40>();
    if (threadIdx.x / 32 == 8) fetch(a, kOutput == Fp8Output::kGlu || kOutput == Fp8Output::kGluRows, shared, threadIdx.x % 32);
  } else {
    hopper::more_registers<232>();
    multiply<kOutput>(a, memory, shared, group, threadIdx.x % 128);
  }
#endif
}

template <Fp8Output kOutput>
void launch(const Fp8ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  allow_shared_memory<fp8_product_kernel<kOutput>>(kSharedBytes);
  fp8_product_kernel<kOutput><<<static_cast<unsigned>(multiprocessors), kThreads, kSharedBytes, stream>>>(a);
}

}  // namespace

void launch_fp8_product(Fp8Output output, const Fp8ProductArgs& a, int multiprocessors, cudaStream_t stream) {
  switch (output) {
    case Fp8Output::kRows: return launch<Fp8Output::kRows>(a, multiprocessors, stream);
    case Fp8Output::kGluRows: return launch<Fp8Output::kGluRows>(a, multiprocessors, stream);
    case Fp8Output::kGlu: return launch<Fp8Output::kGlu>(a, multiprocessors, stream);
    case Fp8Output::kPairs: return launch<Fp8Output::kPairs>(a, multiprocessors, stream);
  }
}

}  // namespace dg::cuda
