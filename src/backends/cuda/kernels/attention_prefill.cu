// Attention of many rows: FlashAttention-2 (Dao 2023) on mma.sync. A block has 128 pairs of one kv head (all its query heads, so K and V
// are read once for them), four warps of 32 pairs; tiles of 64 positions, copied one ahead. Two blocks share a multiprocessor: one
// multiplies while the other exponentiates.
//
// Flops: 4 x head_dim for each visible (pair, position). A warp's step of 16 positions multiplies 2 x 2 x (head_dim / 8) fragments twice
// for 64 head_dim bytes of K and V from shared memory (and as much of Q): 0.7 to 1 mma in a clock. Expected: 55 to 65% of what mma.sync
// reaches on Hopper, which is 62% of the peak that only wgmma reaches: 350 TFLOP/s on an H200.
//
// Tiles start at position 0 whatever the chunk is, and a tile that a row does not see leaves it unchanged: chunks do not show in results.
#include "backends/cuda/kernels/cache_rows.h"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kWarps = 4, kWarpTiles = 2, kPairs = kWarps * kWarpTiles * 16, kTokens = 64, kThreads = kWarps * 32;

template <int kDim>
struct PrefillShape {
  static constexpr int kRowBytes = kDim * 2, kTile = kTokens * kRowBytes, kStage = 2 * kTile, kQueries = kPairs * kRowBytes;
  static constexpr int kShared = kQueries + 2 * kStage;
};

template <Element kElement, int kDim>
__device__ __forceinline__ void convert_tile(const CacheView& cache, const int32_t* blocks, int begin, int end, int kv_head, uint32_t to) {
  constexpr int kChunks = kDim / 8, kRows = kThreads / kChunks;
  const int chunk = threadIdx.x % kChunks;
#pragma unroll 4
  for (int row = threadIdx.x / kChunks; row < kTokens; row += kRows) {
    uint4 v = {0, 0, 0, 0};
    if (begin + row < end) v = load_eight<kElement>(cache, cache_row(cache, blocks, begin + row), kv_head * kDim + chunk * 8);
    store_chunk(tile_address(to, row, chunk, kDim * 2), v);
  }
}

template <int kDim>
__device__ __forceinline__ void convert_tile(const CacheView& cache, const int32_t* blocks, int begin, int end, int kv_head, uint32_t to) {
  switch (cache.element) {
    case Element::kBf16: return convert_tile<Element::kBf16, kDim>(cache, blocks, begin, end, kv_head, to);
    case Element::kF16: return convert_tile<Element::kF16, kDim>(cache, blocks, begin, end, kv_head, to);
    case Element::kE4m3: return convert_tile<Element::kE4m3, kDim>(cache, blocks, begin, end, kv_head, to);
    default: return convert_tile<Element::kInt8, kDim>(cache, blocks, begin, end, kv_head, to);
  }
}

template <int kDim, bool kAsync>
__global__ void __launch_bounds__(kThreads) prefill_kernel(const AttentionArgs a) {
  using Shape = PrefillShape<kDim>;
  constexpr int kSteps = kDim / 16, kRowBytes = Shape::kRowBytes, kChunks = kDim / 8;
  extern __shared__ __align__(128) unsigned char shared[];

  const int sequence = blockIdx.z;
  if (a.sequences.decode[sequence]) return;
  const int q_len = a.sequences.q_len[sequence], kv_len = a.sequences.kv_len[sequence], q_begin = a.sequences.q_begin[sequence];
  const int kv_head = blockIdx.y, pairs = q_len * a.group;
  const int first_pair = (static_cast<int>(gridDim.x) - 1 - static_cast<int>(blockIdx.x)) * kPairs;  // longest first
  if (first_pair >= pairs) return;
  const int before = kv_len - q_len + 1;  // what row 0 sees
  const int end = before + (min(first_pair + kPairs, pairs) - 1) / a.group;
  const int32_t* const blocks = a.sequences.blocks + a.sequences.first_block[sequence];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t q_tile = shared_address(shared), stages = q_tile + Shape::kQueries;

  auto issue = [&](int at, int stage) {
    const uint32_t to = stages + static_cast<uint32_t>(stage * Shape::kStage);
    if constexpr (kAsync) {
      const int chunk = threadIdx.x % kChunks, column = kv_head * kRowBytes + chunk * 16;
#pragma unroll
      for (int i = 0; i < kTokens * kChunks / kThreads; i++) {
        const int row = threadIdx.x / kChunks + i * (kThreads / kChunks), position = min(at + row, end - 1);
        const int block = position / a.k.block_tokens, offset = position - block * a.k.block_tokens;
        const int64_t block_id = blocks[block];
        const uint32_t place = tile_address(to, row, chunk, kRowBytes);
        copy_async(place, a.k.data + block_id * a.k.block_bytes + offset * a.k.row_bytes + column, at + row < end);
        copy_async(place + Shape::kTile, a.v.data + block_id * a.v.block_bytes + offset * a.v.row_bytes + column, at + row < end);
      }
    } else {
      convert_tile<kDim>(a.k, blocks, at, end, kv_head, to);
      convert_tile<kDim>(a.v, blocks, at, end, kv_head, to + Shape::kTile);
    }
    copy_async_commit();
  };
  issue(0, 0);

  // Queries as bf16; pairs behind the last one are zeros and see nothing.
  for (int i = threadIdx.x; i < kPairs * kChunks; i += kThreads) {
    const int m = i / kChunks, chunk = i % kChunks, pair = first_pair + m;
    uint4 v = {0, 0, 0, 0};
    if (pair < pairs) {
      const int row = pair / a.group, head = kv_head * a.group + pair % a.group;
      const float* from = a.q + (q_begin + row) * a.q_row + head * a.q_head + chunk * 8;
      v = {pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7])};
    }
    store_chunk(tile_address(q_tile, m, chunk, kRowBytes), v);
  }

  const int warp_pair = warp * kWarpTiles * 16;
  int limit[kWarpTiles][2];
#pragma unroll
  for (int m = 0; m < kWarpTiles; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int pair = first_pair + warp_pair + m * 16 + half * 8 + g;
      limit[m][half] = pair < pairs ? before + pair / a.group : 0;
    }
  const int warp_first = first_pair + warp_pair;
  const int all_see = warp_first + kWarpTiles * 16 <= pairs ? before + warp_first / a.group : 0;  // positions that need no mask
  const int warp_end = warp_first < pairs ? before + (min(warp_first + kWarpTiles * 16, pairs) - 1) / a.group : 0;

  float acc[kWarpTiles][kDim / 8][4] = {};
  RunningRow rows[kWarpTiles][2];
  const float scale = a.scale * kLog2E;
  int stage = 0;
  for (int at = 0; at < end; at += kTokens, stage ^= 1) {
    copy_async_wait<0>();
    __syncthreads();  // this tile (and at first Q) is there for all warps; the tile before is used up
    if (at + kTokens < end) issue(at + kTokens, stage ^ 1);
    if (at >= warp_end) continue;
    const uint32_t k_tile = stages + static_cast<uint32_t>(stage * Shape::kStage), v_tile = k_tile + Shape::kTile;

    float s[kWarpTiles][kTokens / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      uint32_t q[kWarpTiles][4];
#pragma unroll
      for (int m = 0; m < kWarpTiles; m++) load_matrices(q[m], fragment_a(q_tile, warp_pair + m * 16, 2 * step, kRowBytes, lane));
#pragma unroll
      for (int n = 0; n < kTokens / 16; n++) {
        uint32_t b[4];
        load_matrices(b, fragment_k(k_tile, n * 16, 2 * step, kRowBytes, lane));
#pragma unroll
        for (int m = 0; m < kWarpTiles; m++) {
          mma(s[m][2 * n], q[m], b[0], b[1]);
          mma(s[m][2 * n + 1], q[m], b[2], b[3]);
        }
      }
    }

    uint32_t p[kWarpTiles][kTokens / 16][4];
#pragma unroll
    for (int m = 0; m < kWarpTiles; m++) {
      float shrink[2];
      softmax_step(s[m], rows[m], shrink, limit[m], at, at + kTokens > all_see, scale, t);
      shrink_rows(acc[m], shrink);
      pack_weights(p[m], s[m]);
    }
#pragma unroll
    for (int n = 0; n < kTokens / 16; n++)
#pragma unroll
      for (int j = 0; j < kDim / 16; j++) {
        uint32_t b[4];
        load_matrices_transposed(b, fragment_a(v_tile, n * 16, 2 * j, kRowBytes, lane));
#pragma unroll
        for (int m = 0; m < kWarpTiles; m++) {
          mma(acc[m][2 * j], p[m][n], b[0], b[1]);
          mma(acc[m][2 * j + 1], p[m][n], b[2], b[3]);
        }
      }
  }

#pragma unroll
  for (int m = 0; m < kWarpTiles; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float inverse = 1.0f / quad_sum(rows[m][half].sum);
      const int pair = warp_first + m * 16 + half * 8 + g;
      if (pair >= pairs) continue;
      float* const out = a.out + (q_begin + pair / a.group) * a.out_row + (kv_head * a.group + pair % a.group) * a.out_head + 2 * t;
#pragma unroll
      for (int n = 0; n < kDim / 8; n++) {
        out[n * 8] = acc[m][n][2 * half] * inverse;
        out[n * 8 + 1] = acc[m][n][2 * half + 1] * inverse;
      }
    }
}

template <int kDim, bool kAsync>
void launch(const AttentionArgs& a, cudaStream_t stream) {
  constexpr int kShared = PrefillShape<kDim>::kShared;
  allow_shared_memory<prefill_kernel<kDim, kAsync>>(kShared);
  const int64_t tiles = (static_cast<int64_t>(a.sequences.longest_prefill_q) * a.group + kPairs - 1) / kPairs;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(a.kv_heads), static_cast<unsigned>(a.sequences.count));
  prefill_kernel<kDim, kAsync><<<grid, kThreads, kShared, stream>>>(a);
}

}  // namespace

void launch_attention_prefill(const AttentionArgs& a, int head_dim, cudaStream_t stream) {
  const bool async = a.k.element == Element::kBf16 && a.k.aligned && a.v.aligned;
  if (head_dim == 64) async ? launch<64, true>(a, stream) : launch<64, false>(a, stream);
  else async ? launch<128, true>(a, stream) : launch<128, false>(a, stream);
}

}  // namespace dg::cuda
