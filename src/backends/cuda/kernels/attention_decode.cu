// Attention of few rows over a long cache: flash decoding (Dao et al. 2023). A block takes one range of positions of one kv head for up
// to 16 pairs; its four warps take 16 positions at a time in turn, each with a copy pipeline and a running softmax of its own, so that
// nothing but the merge at the end waits for another warp. Query heads of a kv head (and the drafts of a sequence) share each row.
// The block of a (sequence, kv head) that comes last, by a counter, merges the ranges in the order of their positions: which one that is
// does not show in the result. The counter wraps to zero with it and is ready for the next launch.
//
// Bytes: 2 x head_dim x element for each position and kv head, read once; partial results are 1/16 of that or less. Tensor cores run
// with 1/16 to 16/16 of their rows in use; at 16 x 8 x 16 multiply-adds for 512 bytes they are below a tenth busy. Bound: memory.
// 3 stages x 8 KiB x 4 warps x 2 blocks keep 128 KiB in flight on a multiprocessor, four times what the latency of H200 memory asks for.
#include <algorithm>

#include "backends/cuda/kernels/cache_rows.h"
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

constexpr int kWarps = 4, kPairs = 16, kTokens = 16;  // pairs of a block, positions of a warp's step

template <int kDim, bool kAsync>
struct DecodeShape {
  static constexpr int kRowBytes = kDim * 2, kTile = kTokens * kRowBytes, kStage = 2 * kTile;  // K, V
  static constexpr int kStages = kAsync ? 3 : 1, kRing = kStages * kStage;
  static constexpr int kMerge = kWarps * kPairs * kDim * 4;
  static constexpr int kTiles = std::max(kWarps * kRing, kMerge);
  static constexpr int kShared = kTiles + 2 * kWarps * kPairs * 4;
};

// A tile of K and one of V through registers, whatever the cache holds.
template <Element kElement, int kDim>
__device__ __forceinline__ void convert_tile(const AttentionArgs& a, const int32_t* blocks, int begin, int end, int kv_head, uint32_t stage,
                                             int lane) {
  constexpr int kChunks = kDim / 8, kRows = 32 / kChunks;  // rows at a time
  const int chunk = lane % kChunks;
#pragma unroll
  for (int i = 0; i < kTokens / kRows; i++) {
    const int row = lane / kChunks + i * kRows;
    uint4 k = {0, 0, 0, 0}, v = k;
    if (begin + row < end) {
      k = load_eight<kElement>(a.k, cache_row(a.k, blocks, begin + row), kv_head * kDim + chunk * 8);
      v = load_eight<kElement>(a.v, cache_row(a.v, blocks, begin + row), kv_head * kDim + chunk * 8);
    }
    const uint32_t at = tile_address(stage, row, chunk, kDim * 2);
    store_chunk(at, k);
    store_chunk(at + kTokens * kDim * 2, v);
  }
}

// Counts this block, whose results other blocks shall see; whether it is the last of `count`.
__device__ __forceinline__ bool arrive_last(unsigned* counter, int count) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(counter, static_cast<unsigned>(count - 1)) == static_cast<unsigned>(count - 1);
  __syncthreads();
  __threadfence();
  return last;
}

// Merges `splits` ranges of the pairs of a block. Results of other blocks are read from L2: L1 may hold older neighbours of them.
template <int kDim>
__device__ __forceinline__ void merge_splits(const AttentionArgs& a, int sequence, int kv_head, int q_begin, int first_pair, int pairs,
                                             int splits) {
  constexpr int kLanes = kDim / 4, kAtOnce = kWarps * 32 / kLanes;  // threads of a pair, four columns each
  const int lane = threadIdx.x % kLanes, heads = a.kv_heads * a.group;
  for (int m = threadIdx.x / kLanes; m < kPairs; m += kAtOnce) {
    if (first_pair + m - m % (32 / kLanes) >= pairs) return;  // whole warps
    const bool valid = first_pair + m < pairs;
    const int pair = valid ? first_pair + m : pairs - 1, row = pair / a.group, head = kv_head * a.group + pair % a.group;
    const int64_t index = ((static_cast<int64_t>(sequence) * a.sequences.longest_decode_q + row) * heads + head) * a.plan.splits;
    const float2* const sums = a.sums + index;
    const auto* const from = reinterpret_cast<const float4*>(a.partials + index * kDim) + lane;
    float top = -INFINITY;
    for (int s = lane; s < splits; s += kLanes) top = fmaxf(top, __ldcg(sums + s).x);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    const float base = softmax_base(top);
    float4 value = {0, 0, 0, 0};
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < splits; s++) {
      const float2 part = __ldcg(sums + s);
      const float4 v = __ldcg(from + static_cast<int64_t>(s) * kLanes);
      const float weight = exp2f(part.x - base);
      sum += weight * part.y;
      value.x += weight * v.x, value.y += weight * v.y, value.z += weight * v.z, value.w += weight * v.w;
    }
    if (!valid) continue;
    const float inverse = 1.0f / sum;
    float* const out = a.out + (q_begin + row) * a.out_row + head * a.out_head + lane * 4;
    out[0] = value.x * inverse, out[1] = value.y * inverse, out[2] = value.z * inverse, out[3] = value.w * inverse;
  }
}

template <int kDim, bool kAsync>
__global__ void __launch_bounds__(kWarps * 32) decode_kernel(const AttentionArgs a) {
  using Shape = DecodeShape<kDim, kAsync>;
  constexpr int kSteps = kDim / 16, kRowBytes = Shape::kRowBytes;
  extern __shared__ __align__(128) unsigned char shared[];

  // The host uploaded the sequences and their blocks: no kernel writes them, they are read before the wait.
  start_next();
  const int sequence = blockIdx.z;
  const bool decode = a.sequences.decode[sequence] != 0;
  const int q_len = a.sequences.q_len[sequence], kv_len = a.sequences.kv_len[sequence], q_begin = a.sequences.q_begin[sequence];
  const int kv_head = blockIdx.y % a.kv_heads, first_pair = blockIdx.y / a.kv_heads * kPairs, pairs = q_len * a.group;
  const int length = split_length(a.plan, kv_len), begin = blockIdx.x * length;
  const int seen = kv_len - q_len + (min(first_pair + kPairs, pairs) - 1) / a.group + 1;  // by the last of these rows
  const int end = min(begin + length, seen);
  const bool used = decode && first_pair < pairs && begin < end;
  const int32_t* const blocks = a.sequences.blocks + a.sequences.first_block[sequence];

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t ring = shared_address(shared) + static_cast<uint32_t>(warp * Shape::kRing);

  constexpr int kStride = kWarps * kTokens;
  auto block_of = [&](int at) { return blocks[min(at + lane % kTokens, end - 1) / a.k.block_tokens]; };
  int next_block = kAsync && used ? block_of(begin + warp * kTokens) : 0;
  wait_for_previous();
  if (!used) return;
  // One step's K and V to a stage of this warp's ring.
  auto issue = [&](int at, int stage) {
    const uint32_t to = ring + static_cast<uint32_t>(stage * Shape::kStage);
    if constexpr (kAsync) {
      constexpr int kChunks = kDim / 8, kRows = 32 / kChunks;
      // Lane r finds row r, its block one step ahead; the others ask it.
      const int64_t block_id = next_block, offset = min(at + lane % kTokens, end - 1) % a.k.block_tokens;
      const int64_t k_offset = block_id * a.k.block_bytes + offset * a.k.row_bytes;
      const int64_t v_offset = block_id * a.v.block_bytes + offset * a.v.row_bytes;
      next_block = block_of(at + kStride);
      const int column = kv_head * kRowBytes + lane % kChunks * 16;
#pragma unroll
      for (int i = 0; i < kTokens / kRows; i++) {
        const int row = lane / kChunks + i * kRows;
        const bool valid = at + row < end;
        const uint32_t place = tile_address(to, row, lane % kChunks, kRowBytes);
        copy_async(place, a.k.data + __shfl_sync(0xffffffffu, k_offset, row) + column, valid);
        copy_async(place + Shape::kTile, a.v.data + __shfl_sync(0xffffffffu, v_offset, row) + column, valid);
      }
    } else {
      switch (a.k.element) {
        case Element::kBf16: convert_tile<Element::kBf16, kDim>(a, blocks, at, end, kv_head, to, lane); break;
        case Element::kF16: convert_tile<Element::kF16, kDim>(a, blocks, at, end, kv_head, to, lane); break;
        case Element::kE4m3: convert_tile<Element::kE4m3, kDim>(a, blocks, at, end, kv_head, to, lane); break;
        default: convert_tile<Element::kInt8, kDim>(a, blocks, at, end, kv_head, to, lane); break;
      }
    }
  };

  int next = begin + warp * kTokens, next_stage = 0;
  auto prefetch = [&] {
    if (next < end) issue(next, next_stage);
    next += kStride;
    next_stage = next_stage + 1 == Shape::kStages ? 0 : next_stage + 1;
    copy_async_commit();
  };
  if constexpr (kAsync) {
#pragma unroll
    for (int i = 0; i < Shape::kStages - 1; i++) prefetch();
  }

  // Queries of rows g and g + 8 of the M side; pairs behind the last one are zeros and see nothing.
  const auto two = [&](const float* p) { return a.q_by_two ? *reinterpret_cast<const float2*>(p) : float2{p[0], p[1]}; };
  uint32_t q[kSteps][4];
  int limit[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int pair = first_pair + g + 8 * half, row = pair / a.group;
    const bool valid = pair < pairs;
    limit[half] = valid ? min(end, kv_len - q_len + row + 1) : 0;
    const float* from = a.q + (q_begin + (valid ? row : 0)) * a.q_row + (kv_head * a.group + (valid ? pair % a.group : 0)) * a.q_head;
#pragma unroll
    for (int s = 0; s < kSteps; s++) {
      const float* at = from + s * 16 + 2 * t;
      const float2 low = two(at), high = two(at + 8);
      q[s][half] = valid ? pack_bf16(low.x, low.y) : 0;
      q[s][half + 2] = valid ? pack_bf16(high.x, high.y) : 0;
    }
  }

  float acc[kDim / 8][4] = {};
  RunningRow rows[2];
  const float scale = a.scale * kLog2E;
  int stage = 0;
  for (int at = begin + warp * kTokens; at < end; at += kStride) {
    if constexpr (kAsync) {
      copy_async_wait<Shape::kStages - 2>();
      __syncwarp();  // the step's tiles are there for all lanes, and all are done with the stage before, which is filled next
      prefetch();
    } else {
      __syncwarp();
      issue(at, 0);
      __syncwarp();
    }
    const uint32_t k_tile = ring + static_cast<uint32_t>(stage * Shape::kStage), v_tile = k_tile + Shape::kTile;
    stage = stage + 1 == Shape::kStages ? 0 : stage + 1;

    float s[2][4] = {};
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      uint32_t b[4];
      load_matrices(b, fragment_k(k_tile, 0, 2 * step, kRowBytes, lane));
      mma(s[0], q[step], b[0], b[1]);
      mma(s[1], q[step], b[2], b[3]);
    }

    float shrink[2];
    uint32_t p[1][4];
    softmax_step(s, rows, shrink, limit, at, true, scale, t);
    shrink_rows(acc, shrink);
    pack_weights(p, s);
#pragma unroll
    for (int j = 0; j < kDim / 16; j++) {
      uint32_t b[4];
      load_matrices_transposed(b, fragment_a(v_tile, 0, 2 * j, kRowBytes, lane));
      mma(acc[2 * j], p[0], b[0], b[1]);
      mma(acc[2 * j + 1], p[0], b[2], b[3]);
    }
  }

  // Merge of the warps, in their order.
  copy_async_wait<0>();
  __syncthreads();
  auto* const merged = reinterpret_cast<float*>(shared);
  auto* const tops = reinterpret_cast<float*>(shared + Shape::kTiles);
  float* const sums = tops + kWarps * kPairs;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = warp * kPairs + g + 8 * half;
    const float sum = quad_sum(rows[half].sum);
    if (t == 0) tops[row] = rows[half].top, sums[row] = sum;
#pragma unroll
    for (int n = 0; n < kDim / 8; n++)
      *reinterpret_cast<float2*>(merged + row * kDim + n * 8 + 2 * t) = {acc[n][2 * half], acc[n][2 * half + 1]};
  }
  __syncthreads();
  const bool whole = seen <= length;  // the only range
  const int heads = a.kv_heads * a.group;
  for (int i = threadIdx.x; i < kPairs * kDim; i += kWarps * 32) {
    const int m = i / kDim, column = i % kDim, pair = first_pair + m;
    if (pair >= pairs) break;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; w++) top = fmaxf(top, tops[w * kPairs + m]);
    const float base = softmax_base(top);
    float value = 0, sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
      const float weight = exp2f(tops[w * kPairs + m] - base);
      value += weight * merged[(w * kPairs + m) * kDim + column];
      sum += weight * sums[w * kPairs + m];
    }
    const int row = pair / a.group, head = kv_head * a.group + pair % a.group;
    if (whole) {
      a.out[(q_begin + row) * a.out_row + head * a.out_head + column] = value / sum;
    } else {
      const int64_t index =
          ((static_cast<int64_t>(sequence) * a.sequences.longest_decode_q + row) * heads + head) * a.plan.splits + blockIdx.x;
      a.partials[index * kDim + column] = value;
      if (column == 0) a.sums[index] = {top, sum};
    }
  }
  if (whole) return;
  const int splits = (seen + length - 1) / length;
  if (arrive_last(a.counters + static_cast<int64_t>(sequence) * gridDim.y + blockIdx.y, splits))
    merge_splits<kDim>(a, sequence, kv_head, q_begin, first_pair, pairs, splits);
}

template <int kDim, bool kAsync>
void launch(const AttentionArgs& a, cudaStream_t stream) {
  constexpr int kShared = DecodeShape<kDim, kAsync>::kShared;
  allow_shared_memory<decode_kernel<kDim, kAsync>>(kShared);
  const int tiles = (a.sequences.longest_decode_q * a.group + kPairs - 1) / kPairs;
  const dim3 grid(static_cast<unsigned>(a.plan.splits), static_cast<unsigned>(tiles * a.kv_heads),
                  static_cast<unsigned>(a.sequences.count));
  launch_dependent(decode_kernel<kDim, kAsync>, grid, kWarps * 32, kShared, stream, a);
}

}  // namespace

void launch_attention_decode(const AttentionArgs& a, int head_dim, cudaStream_t stream) {
  const bool async = a.k.element == Element::kBf16 && a.k.aligned && a.v.aligned;
  if (head_dim == 64) async ? launch<64, true>(a, stream) : launch<64, false>(a, stream);
  else async ? launch<128, true>(a, stream) : launch<128, false>(a, stream);
}

}  // namespace dg::cuda
