// Latent attention in its absorbed form: all heads read the same 576 columns, [c (512) | k_pe (64)], as keys and the first 512 of them
// as values. A block takes 16, 32 or 64 pairs of a sequence and one range of positions; 32 positions (36 KiB) at a time go through a ring
// in shared memory, read once from the cache for keys and values and all pairs. Eight warps:
//   scores: a warp multiplies a quarter of the 576 columns (every fourth step of 16) for a half of the tile; the quarters are added
//           through shared memory, in order;
//   softmax: 256 / pairs threads share a row;
//   values: a warp owns 64 of the 512 columns for all pairs: pairs x 512 f32 in registers over the block.
//
// Bytes: 1152 a position. Flops: 2 x 1088 for a position and pair.
//   16 pairs (16 heads a GPU, one row): 30 flops a byte: bound by memory. A tile costs about 300 clocks of mma, 1000 of shared memory and
//   barriers, against 1750 to read it at 4.8 TB/s / 132; 4 stages (144 KiB) are in flight. Expected: 80% of the bandwidth.
//   64 pairs: a tile is 1088 mma (1750 clocks at the rate of mma.sync) and 2000 clocks of shared memory: about 40% of the bf16 peak.
#include <algorithm>

#include "backends/cuda/kernels/cache_rows.h"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kThreads = 256, kTokens = 32, kColumns = kLatent + kLatentRope, kRowBytes = kColumns * 2, kStage = kTokens * kRowBytes;
constexpr int kQuarters = 4, kSteps = kColumns / 16 / kQuarters;  // of the score product
constexpr int kScoreRow = kTokens + 8;                            // floats: rows g and columns 2t of a fragment in different banks
constexpr int kWeightRow = kTokens * 2 + 16;                      // bytes: eight rows of a matrix in different banks

// A cache of another type than bf16 goes through registers, a tile at a time with its latency in the open: two stages, and for 16 pairs
// two blocks on a multiprocessor, each of which computes while the other waits.
template <int kTiles, bool kAsync>  // of 16 pairs
struct LatentShape {
  static constexpr int kPairs = 16 * kTiles, kStages = !kAsync ? 2 : kTiles == 4 ? 3 : 5;
  static constexpr int kBlocks = latent_blocks(kPairs, kAsync);  // of a multiprocessor
  static constexpr bool kKeepQuery = kTiles <= 2;                // in registers
  static constexpr int kWarpTiles = kTiles == 4 ? 2 : kTiles;    // of a warp in the score product: half the pairs or half the positions
  static constexpr int kWarpTokens = kTiles == 4 ? kTokens : kTokens / 2;
  static constexpr int kRing = kStages * kStage, kQuery = kKeepQuery ? 0 : kPairs * kRowBytes;
  static constexpr int kScores = kQuarters * kPairs * kScoreRow * 4, kWeights = kPairs * kWeightRow;
  static constexpr int kShared = kRing + kQuery + kScores + kWeights + kPairs * 4;
  static constexpr int kRowThreads = kThreads / kPairs, kRowTokens = kTokens / kRowThreads;  // softmax
};
static_assert(LatentShape<4, true>::kShared <= 227 << 10 && LatentShape<2, true>::kShared <= 227 << 10);
static_assert(2 * (LatentShape<1, false>::kShared + 1024) <= 228 << 10);

// One row's chunk, and every eighth behind it, through registers: 8 threads convert a row of 72 chunks.
template <Element kElement>
__device__ __forceinline__ void convert_row(const CacheView& cache, const unsigned char* row, bool valid, uint32_t to) {
  uint4 v[kColumns / 64];
#pragma unroll
  for (int i = 0; i < kColumns / 64; i++) {
    v[i] = {0, 0, 0, 0};
    if (valid) v[i] = load_eight<kElement>(cache, row, (static_cast<int>(threadIdx.x % 8) + 8 * i) * 8);
  }
#pragma unroll
  for (int i = 0; i < kColumns / 64; i++) store_chunk(to + i * 128, v[i]);
}

template <int kTiles, bool kAsync>
__global__ void __launch_bounds__(kThreads, (LatentShape<kTiles, kAsync>::kBlocks)) latent_kernel(const LatentArgs a, const bool decode) {
  using Shape = LatentShape<kTiles, kAsync>;
  constexpr int kPairs = Shape::kPairs, kWarpTiles = Shape::kWarpTiles, kStages = Shape::kStages;
  extern __shared__ __align__(128) unsigned char shared[];

  // The host uploaded the sequences and their blocks: no kernel writes them, they are read before the wait.
  start_next();
  const int sequence = blockIdx.z;
  const bool wanted = (a.sequences.decode[sequence] != 0) == decode;
  const int q_len = a.sequences.q_len[sequence], kv_len = a.sequences.kv_len[sequence], q_begin = a.sequences.q_begin[sequence];
  const int first_row = max(q_begin, a.row_begin), pairs = (min(q_begin + q_len, a.row_end) - first_row) * a.heads;
  const int first_pair = static_cast<int>(decode ? blockIdx.y : gridDim.y - 1 - blockIdx.y) * kPairs;  // longest first
  const int before = kv_len - q_len + (first_row - q_begin) + 1;                                       // what the first of these rows sees
  const int length = decode ? split_length(a.plan, kv_len) : kv_len, begin = static_cast<int>(blockIdx.x) * length;
  const int end = min(begin + length, before + (min(first_pair + kPairs, pairs) - 1) / a.heads);
  const bool used = wanted && first_pair < pairs && begin < end;
  const int32_t* const blocks = a.sequences.blocks + a.sequences.first_block[sequence];
  const int64_t buffer_pair = static_cast<int64_t>(first_row - a.row_begin) * a.heads + first_pair;  // pairs are neighbours there

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t ring = shared_address(shared), q_tile = ring + Shape::kRing;
  auto* const scores = reinterpret_cast<float*>(shared + Shape::kRing + Shape::kQuery);
  unsigned char* const weights = shared + Shape::kRing + Shape::kQuery + Shape::kScores;
  auto* const shrinks = reinterpret_cast<float*>(weights + Shape::kWeights);

  // Of the score product: every fourth step of columns from `quarter` on; the pairs or the positions from here on.
  const int quarter = warp % kQuarters, half = warp / kQuarters;
  const int warp_row = kTiles == 4 ? half * 32 : 0, warp_token = kTiles == 4 ? 0 : half * 16;

  // The cache: a row belongs to eight threads. The block of the row to copy next is looked up one tile ahead.
  const int copy_row = threadIdx.x / 8;
  const uint32_t copy_place = static_cast<uint32_t>(copy_row * kRowBytes + (((threadIdx.x % 8) ^ (copy_row & 7)) << 4));
  int next = begin, next_stage = 0;
  auto lookup = [&] { return blocks[min(next + copy_row, end - 1) / a.cache.block_tokens]; };
  int next_block = used ? lookup() : 0;
  wait_for_previous();
  if (!used) return;
  auto prefetch = [&] {
    if (next < end) {
      const int position = min(next + copy_row, end - 1);
      const unsigned char* const row =
          a.cache.data + next_block * a.cache.block_bytes + position % a.cache.block_tokens * a.cache.row_bytes;
      const bool valid = next + copy_row < end;
      const uint32_t to = ring + static_cast<uint32_t>(next_stage * kStage) + copy_place;
      if constexpr (kAsync) {
#pragma unroll
        for (int i = 0; i < kColumns / 64; i++) copy_async(to + i * 128, row + threadIdx.x % 8 * 16 + i * 128, valid);
      } else {
        switch (a.cache.element) {
          case Element::kBf16: convert_row<Element::kBf16>(a.cache, row, valid, to); break;
          case Element::kF16: convert_row<Element::kF16>(a.cache, row, valid, to); break;
          case Element::kE4m3: convert_row<Element::kE4m3>(a.cache, row, valid, to); break;
          default: convert_row<Element::kInt8>(a.cache, row, valid, to); break;
        }
      }
      next += kTokens;
      next_stage = next_stage + 1 == kStages ? 0 : next_stage + 1;
      if (next < end) next_block = lookup();
    }
    copy_async_commit();
  };

  // Queries; pairs behind the last one are zeros and see nothing.
  const uint16_t* const q = a.q + buffer_pair * kColumns;
  uint32_t kept[Shape::kKeepQuery ? kWarpTiles : 1][Shape::kKeepQuery ? kSteps : 1][4];
  if constexpr (Shape::kKeepQuery) {
#pragma unroll
    for (int m = 0; m < kWarpTiles; m++)
#pragma unroll
      for (int step = 0; step < kSteps; step++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int pair = m * 16 + g + i % 2 * 8, column = (quarter + step * kQuarters) * 16 + 2 * t + i / 2 * 8;
          kept[m][step][i] = first_pair + pair < pairs ? *reinterpret_cast<const uint32_t*>(q + pair * kColumns + column) : 0;
        }
  } else {
    for (int i = threadIdx.x; i < kPairs * (kColumns / 8); i += kThreads) {
      const int pair = i / (kColumns / 8), chunk = i % (kColumns / 8);
      const bool valid = first_pair + pair < pairs;
      copy_async(tile_address(q_tile, pair, chunk, kRowBytes), q + (valid ? pair : 0) * kColumns + chunk * 8, valid);
    }
  }
#pragma unroll
  for (int i = 0; i < kStages - 1; i++) prefetch();  // the first group brings the queries too

  // Softmax: this thread's part of a row.
  const int row = threadIdx.x / Shape::kRowThreads, row_token = threadIdx.x % Shape::kRowThreads * Shape::kRowTokens;
  const int limit = first_pair + row < pairs ? min(end, before + (first_pair + row) / a.heads) : 0;
  RunningRow running;
  const float scale = a.scale * kLog2E;

  float acc[kTiles][8][4] = {};
  int stage = 0;
  for (int at = begin; at < end; at += kTokens) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the tile is there for all; the tile before and its weights are used up
    prefetch();
    const uint32_t tile = ring + static_cast<uint32_t>(stage * kStage);
    stage = stage + 1 == kStages ? 0 : stage + 1;

    float s[kWarpTiles][Shape::kWarpTokens / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      const int chunk = 2 * (quarter + step * kQuarters);
      uint32_t loaded[kWarpTiles][4];
      if constexpr (!Shape::kKeepQuery) {
#pragma unroll
        for (int m = 0; m < kWarpTiles; m++) load_matrices(loaded[m], fragment_a(q_tile, warp_row + m * 16, chunk, kRowBytes, lane));
      }
#pragma unroll
      for (int n = 0; n < Shape::kWarpTokens / 16; n++) {
        uint32_t b[4];
        load_matrices(b, fragment_k(tile, warp_token + n * 16, chunk, kRowBytes, lane));
#pragma unroll
        for (int m = 0; m < kWarpTiles; m++) {
          if constexpr (Shape::kKeepQuery) {
            mma(s[m][2 * n], kept[m][step], b[0], b[1]);
            mma(s[m][2 * n + 1], kept[m][step], b[2], b[3]);
          } else {
            mma(s[m][2 * n], loaded[m], b[0], b[1]);
            mma(s[m][2 * n + 1], loaded[m], b[2], b[3]);
          }
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kWarpTiles; m++)
#pragma unroll
      for (int n = 0; n < Shape::kWarpTokens / 8; n++) {
        float* const to = scores + (quarter * kPairs + warp_row + m * 16 + g) * kScoreRow + warp_token + n * 8 + 2 * t;
        *reinterpret_cast<float2*>(to) = {s[m][n][0], s[m][n][1]};
        *reinterpret_cast<float2*>(to + 8 * kScoreRow) = {s[m][n][2], s[m][n][3]};
      }
    __syncthreads();

    {
      float v[Shape::kRowTokens];
      float top = -INFINITY;
#pragma unroll
      for (int i = 0; i < Shape::kRowTokens; i += 2) {
        float2 sum = {0, 0};
#pragma unroll
        for (int part = 0; part < kQuarters; part++) {
          const float2 x = *reinterpret_cast<const float2*>(scores + (part * kPairs + row) * kScoreRow + row_token + i);
          sum.x += x.x, sum.y += x.y;
        }
        v[i] = at + row_token + i < limit ? sum.x * scale : -INFINITY;
        v[i + 1] = at + row_token + i + 1 < limit ? sum.y * scale : -INFINITY;
        top = fmaxf(top, fmaxf(v[i], v[i + 1]));
      }
#pragma unroll
      for (int step = Shape::kRowThreads / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
      top = fmaxf(running.top, top);
      const float base = softmax_base(top), shrink = running.top == top ? 1.0f : exp2f(running.top - base);
      running.top = top;
      running.sum *= shrink;
#pragma unroll
      for (int i = 0; i < Shape::kRowTokens; i += 2) {
        const float one = exp2f(v[i] - base), two = exp2f(v[i + 1] - base);
        running.sum += one, running.sum += two;
        *reinterpret_cast<uint32_t*>(weights + row * kWeightRow + (row_token + i) * 2) = pack_bf16(one, two);
      }
      if (row_token == 0) shrinks[row] = shrink;
    }
    __syncthreads();

#pragma unroll
    for (int m = 0; m < kTiles; m++) {
      const float upper = shrinks[m * 16 + g], lower = shrinks[m * 16 + g + 8];
      if (!__any_sync(0xffffffffu, upper != 1.0f || lower != 1.0f)) continue;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        acc[m][n][0] *= upper, acc[m][n][1] *= upper;
        acc[m][n][2] *= lower, acc[m][n][3] *= lower;
      }
    }
    const uint32_t weight_tile = shared_address(weights);
#pragma unroll
    for (int k = 0; k < kTokens / 16; k++) {
      uint32_t p[kTiles][4];
#pragma unroll
      for (int m = 0; m < kTiles; m++)
        load_matrices(p[m], weight_tile + static_cast<uint32_t>((m * 16 + (lane & 15)) * kWeightRow + (2 * k + (lane >> 4)) * 16));
#pragma unroll
      for (int j = 0; j < 4; j++) {
        uint32_t b[4];
        load_matrices_transposed(b, fragment_a(tile, k * 16, warp * 8 + 2 * j, kRowBytes, lane));
#pragma unroll
        for (int m = 0; m < kTiles; m++) {
          mma(acc[m][2 * j], p[m], b[0], b[1]);
          mma(acc[m][2 * j + 1], p[m], b[2], b[3]);
        }
      }
    }
  }

  const bool whole = kv_len <= length;  // the only range: launch_attention_combine leaves the sequence out
  const int64_t partial_pair =
      (static_cast<int64_t>(sequence) * a.sequences.longest_decode_q + (first_row - q_begin)) * a.heads + first_pair;
  float sum = running.sum;
#pragma unroll
  for (int step = Shape::kRowThreads / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (row_token == 0) {
    scores[row] = sum;  // the last scores were read two barriers ago
    if (!whole && first_pair + row < pairs) a.sums[(partial_pair + row) * a.plan.splits + blockIdx.x] = {running.top, sum};
  }
  __syncthreads();
#pragma unroll
  for (int m = 0; m < kTiles; m++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int pair = m * 16 + i * 8 + g, column = warp * 64 + 2 * t;
      if (first_pair + pair >= pairs) continue;
      if (whole) {
        const float inverse = 1.0f / scores[pair];
        uint16_t* const out = a.out + (buffer_pair + pair) * kLatent + column;
#pragma unroll
        for (int n = 0; n < 8; n++)
          *reinterpret_cast<uint32_t*>(out + n * 8) = pack_bf16(acc[m][n][2 * i] * inverse, acc[m][n][2 * i + 1] * inverse);
      } else {
        float* const out = a.partials + ((partial_pair + pair) * a.plan.splits + blockIdx.x) * kLatent + column;
#pragma unroll
        for (int n = 0; n < 8; n++) *reinterpret_cast<float2*>(out + n * 8) = {acc[m][n][2 * i], acc[m][n][2 * i + 1]};
      }
    }
}

template <int kTiles, bool kAsync>
void launch_of(const LatentArgs& a, bool decode, int rows, cudaStream_t stream) {
  constexpr int kShared = LatentShape<kTiles, kAsync>::kShared, kPairs = LatentShape<kTiles, kAsync>::kPairs;
  allow_shared_memory<latent_kernel<kTiles, kAsync>>(kShared);
  const dim3 grid(static_cast<unsigned>(decode ? a.plan.splits : 1), static_cast<unsigned>((rows * a.heads + kPairs - 1) / kPairs),
                  static_cast<unsigned>(a.sequences.count));
  launch_dependent(latent_kernel<kTiles, kAsync>, grid, kThreads, kShared, stream, a, decode);
}

template <int kTiles>
void launch(const LatentArgs& a, bool decode, int rows, cudaStream_t stream) {
  if (latent_async(a.cache)) launch_of<kTiles, true>(a, decode, rows, stream);
  else launch_of<kTiles, false>(a, decode, rows, stream);
}

}  // namespace

void launch_latent_decode(const LatentArgs& a, cudaStream_t stream) {
  const int rows = std::min(a.sequences.longest_decode_q, a.row_end - a.row_begin), pairs = rows * a.heads;
  if (pairs <= 16) launch<1>(a, true, rows, stream);
  else if (pairs <= 32) launch<2>(a, true, rows, stream);
  else launch<4>(a, true, rows, stream);
  if (a.plan.splits == 1) return;
  launch_attention_combine({.partials = a.partials,
                            .sums = a.sums,
                            .out = a.out,
                            .bf16 = true,
                            .out_row = static_cast<int64_t>(a.heads) * kLatent,
                            .out_head = kLatent,
                            .sequences = a.sequences,
                            .row_begin = a.row_begin,
                            .row_end = a.row_end,
                            .heads = a.heads,
                            .dim = kLatent,
                            .plan = a.plan},
                           stream);
}

void launch_latent_prefill(const LatentArgs& a, cudaStream_t stream) {
  launch<4>(a, false, std::min(a.sequences.longest_prefill_q, a.row_end - a.row_begin), stream);
}

}  // namespace dg::cuda
