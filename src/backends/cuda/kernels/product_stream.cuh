// Products of few rows of x at the speed of memory. Every multiprocessor reads the same number of bytes, and from start to end: a CTA
// has a contiguous part of the line of all chunks (product_stream.h), each of its warps a contiguous part of that, through a ring of
// cp.async of its own (64 - 80 KiB in flight per CTA; 4.5 TB/s times 1 us are 34 KiB per multiprocessor). Nothing in the loop waits
// for another warp. The ring is filled before the kernel earlier on the stream has ended; then x comes to shared memory as bf16,
// while the first weights are on their way.
//
// A warp keeps the sums of its current tile in registers. A tile that one warp has whole is written by it. Others meet in shared memory,
// where the first warp of a tile adds up the rest in order; a tile of several CTAs in a workspace, where the CTA that arrives last adds
// all of them in order. So there is no second kernel, and the same numbers come out every time.
#pragma once
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/product_stream.h"
#include "backends/cuda/kernels/product_tile.cuh"
#include "backends/cuda/kernels/shared_memory.h"

namespace dg::cuda {
namespace {

extern __shared__ __align__(16) uint8_t product_shared[];  // rings, sums of the warps, x

constexpr int kStreamThreads = kProductWarps * 32;

template <int kWeights>
constexpr int kSumBytes = kProductWarps * 2 * kWeights * 32 * 16;

// Part `i` of `parts` of [0, n) begins here, and which part has place p.
__device__ __forceinline__ int share_begin(int n, int i, int parts) { return static_cast<int>(static_cast<int64_t>(n) * i / parts); }
__device__ __forceinline__ int share_of(int n, int p, int parts) {
  return static_cast<int>(((static_cast<int64_t>(p) + 1) * parts + n - 1) / n) - 1;
}

// Expert of each pair of the step, -1 without a part in the result, and its routing weight.
struct PairTable {
  int expert[kStreamMostPairs];
  float weight[kStreamMostPairs];
};

// Rows [first_row, first_row + a.x_rows) of x to shared memory, bf16, zeros behind the last column. A thread takes 8 columns at a time,
// several of them in flight.
template <StreamUse kUse>
__device__ __forceinline__ void stage_x(const StreamArgs& a, int first_row, int first_column, int columns, uint8_t* to) {
  const int pieces = columns / 8, total = pieces * a.x_rows;
  constexpr int kAhead = 4;
  for (int p = threadIdx.x; p < total; p += kStreamThreads * kAhead) {
    uint4 value[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      const int piece = p + i * kStreamThreads;
      value[i] = make_uint4(0, 0, 0, 0);
      if (piece >= total) continue;
      const int row = first_row + piece / pieces;
      int k = first_column + piece % pieces * 8;
      if constexpr (kUse == StreamUse::kPairDown) {
        if (row >= a.tokens) continue;
        const int pair = row * a.top_k + k / (columns / a.top_k);
        k %= columns / a.top_k;
        const auto* from = static_cast<const __nv_bfloat16*>(a.x) + pair * a.ldx + k;
        if (k + 8 <= a.in) {
          value[i] = *reinterpret_cast<const uint4*>(from);
        } else {
          __nv_bfloat16 v[8];
#pragma unroll
          for (int j = 0; j < 8; j++) v[j] = k + j < a.in ? from[j] : __float2bfloat16_rn(0.0f);
          memcpy(&value[i], v, 16);
        }
      } else {
        const float* from = static_cast<const float*>(a.x) + row * a.ldx;
        float v[8];
        if (k + 8 <= a.in && !a.columns && reinterpret_cast<uintptr_t>(from + k) % 16 == 0) {
          const float4 low = *reinterpret_cast<const float4*>(from + k), high = *reinterpret_cast<const float4*>(from + k + 4);
          v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w, v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
        } else {
#pragma unroll
          for (int j = 0; j < 8; j++) v[j] = k + j < a.in ? from[a.columns ? a.columns[k + j] : k + j] : 0.0f;
        }
        value[i] = make_uint4(pack_bf162(v[0], v[1]), pack_bf162(v[2], v[3]), pack_bf162(v[4], v[5]), pack_bf162(v[6], v[7]));
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; i++) {
      const int piece = p + i * kStreamThreads;
      if (piece < total) *reinterpret_cast<uint4*>(to + piece / pieces * a.x_pitch + piece % pieces * 16) = value[i];
    }
  }
}

__device__ __forceinline__ const StreamPart& part_of(const StreamArgs& a, int tile) {
  int p = 0;
  while (p + 1 < a.part_count && tile >= a.parts[p + 1].first_tile) p++;
  return a.parts[p];
}

// Where the next copies of a warp come from.
template <WeightKind kKind, int kWeights, StreamUse kUse>
struct StreamSource {
  const StreamArgs& a;
  const PairTable& pairs;
  const int lane, slice_begin;
  int place, tile, chunk;  // in the line; tile of the line, chunk of the tile
  LaneTile<kKind> tiles[kWeights];
  bool none = false;  // an expert without a part

  __device__ __forceinline__ StreamSource(const StreamArgs& args, const PairTable& table, int begin, int slice, int at_lane)
      : a(args),
        pairs(table),
        lane(at_lane),
        slice_begin(slice * args.tile_chunks),
        place(begin),
        tile(begin / args.tile_chunks),
        chunk(begin % args.tile_chunks) {
    open();
  }
  // Addresses of the tile, or of the expert's part of it.
  __device__ __forceinline__ void open() {
    // Behind the end of the line nothing is copied, and the last tile's addresses are as good as any.
    if constexpr (kUse == StreamUse::kMatrix && kWeights == 1) {
      const StreamPart& part = part_of(a, min(tile, a.tiles - 1));
      tiles[0].set(part.data, part.aux, min(tile, a.tiles - 1) - part.first_tile, a.tile_bytes, part.out, a.chunks, lane);
    } else if constexpr (kUse == StreamUse::kMatrix) {
#pragma unroll
      for (int m = 0; m < kWeights; m++) tiles[m].set(a.data[m], a.aux[m], min(tile, a.tiles - 1), a.tile_bytes, a.out, a.chunks, lane);
    } else {
      if (tile >= a.line_tiles) return;
      const int pair = kUse == StreamUse::kPairUp ? tile / a.tiles : tile / a.tiles * a.top_k + chunk / a.chunks;
      const int expert = pairs.expert[pair];
      none = expert < 0;
      if (none) return;
#pragma unroll
      for (int m = 0; m < kWeights; m++) {
        const uint8_t* data = a.experts[expert].data[kUse == StreamUse::kPairUp ? m : 2];
        tiles[m].set(data, data + a.aux_offset, tile % a.tiles, a.tile_bytes, a.out, a.chunks, lane);
      }
    }
  }
  __device__ __forceinline__ void issue(uint32_t stage, int end) {
    if (place < end) {
      const int of_matrix = kUse == StreamUse::kMatrix ? slice_begin + chunk : kUse == StreamUse::kPairUp ? chunk : chunk % a.chunks;
      if (!none && of_matrix < a.chunks)
#pragma unroll
        for (int m = 0; m < kWeights; m++) tiles[m].issue(stage + m * RingPart<kKind>::kBytes, lane, of_matrix);
      place++, chunk++;
      if (chunk == a.tile_chunks) {
        chunk = 0, tile++;
        open();
      } else if (kUse == StreamUse::kPairDown && chunk % a.chunks == 0) {
        open();
      }
    }
    cp_async_commit();
  }
};

// What a sum becomes when it is complete.
template <WeightKind kKind, int kWeights, StreamUse kUse>
__device__ __forceinline__ void stream_output(const StreamArgs& a, const PairTable& pairs, int line_tile, float (&acc)[kWeights][1][4],
                                              int lane) {
  if constexpr (kUse == StreamUse::kMatrix && kWeights == 1) {
    const StreamPart& part = part_of(a, line_tile);
    const int part_tile = line_tile - part.first_tile;
    scale_rows<kKind>(part.aux, part_tile, lane, acc[0]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int column = lane % 4 * 2 + i % 2, row = part_tile * kTileRows + lane / 4 + i / 2 * 8;
      if (row < part.out && column < a.tokens)
        part.to[column * part.ld_to + row] = part.bias ? acc[0][0][i] + __ldg(part.bias + row) : acc[0][0][i];
    }
    return;
  }
  const int tile = line_tile % a.tiles;
  if constexpr (kUse == StreamUse::kMatrix) {
#pragma unroll
    for (int m = 0; m < kWeights; m++) scale_rows<kKind>(a.aux[m], tile, lane, acc[m]);
  }
  if constexpr (kUse == StreamUse::kPairUp) {
    const int expert = pairs.expert[line_tile / a.tiles];
    if (expert < 0) return;
#pragma unroll
    for (int m = 0; m < kWeights; m++) scale_rows<kKind>(a.experts[expert].data[m] + a.aux_offset, tile, lane, acc[m]);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int column = lane % 4 * 2 + i % 2, row = tile * kTileRows + lane / 4 + i / 2 * 8;
    if (row >= a.out) continue;
    float v = acc[0][0][i];
    if constexpr (kUse == StreamUse::kMatrix) {
      if (column >= a.tokens) continue;
      v = silu(v) * acc[kWeights - 1][0][i];
      static_cast<float*>(a.to)[column * a.ld_to + row] = v;
    } else if constexpr (kUse == StreamUse::kPairUp) {
      const int pair = line_tile / a.tiles;
      if (column == 0)
        static_cast<__nv_bfloat16*>(a.to)[pair * a.ld_to + row] =
            __float2bfloat16_rn(silu(v) * acc[kWeights - 1][0][i] * pairs.weight[pair]);
    } else {
      if (column == 0) static_cast<float*>(a.to)[line_tile / a.tiles * a.ld_to + row] += v;
    }
  }
}

template <int kWeights>
__device__ __forceinline__ void add_sums(float (&acc)[kWeights][1][4], const float4& v, int m) {
  acc[m][0][0] += v.x, acc[m][0][1] += v.y, acc[m][0][2] += v.z, acc[m][0][3] += v.w;
}
template <int kWeights>
__device__ __forceinline__ void clear_sums(float (&acc)[kWeights][1][4]) {
#pragma unroll
  for (int m = 0; m < kWeights; m++)
#pragma unroll
    for (int i = 0; i < 4; i++) acc[m][0][i] = 0;
}

// A tile's sum over this CTA's chunks, by one warp: the result if that is all; else it is left in the workspace, and the last warp to do
// so adds up everything.
template <WeightKind kKind, int kWeights, StreamUse kUse>
__device__ __forceinline__ void stream_finish(const StreamArgs& a, const PairTable& pairs, int line_tile, float (&acc)[kWeights][1][4],
                                              int lane) {
  const int slices = gridDim.x / a.ctas, total = a.line_tiles * a.tile_chunks, begin = line_tile * a.tile_chunks;
  const int first = share_of(total, begin, a.ctas), last = share_of(total, begin + a.tile_chunks - 1, a.ctas);
  if (slices == 1 && first == last) return stream_output<kKind, kWeights, kUse>(a, pairs, line_tile, acc, lane);
  // Tiles within a CTA: (slices, line_tiles); behind them the first and the last tile of each CTA.
  const auto place_of = [&](int s, int cta, int m) {
    int64_t place = static_cast<int64_t>(s) * a.line_tiles + line_tile;
    if (first != last) {
      const int first_tile = share_begin(total, cta, a.ctas) / a.tile_chunks;
      place = static_cast<int64_t>(slices) * a.line_tiles + (s * a.ctas + cta) * 2 + (line_tile == first_tile ? 0 : 1);
    }
    return (place * kWeights + m) * 32 + lane;
  };
#pragma unroll
  for (int m = 0; m < kWeights; m++)
    __stcg(a.partial + place_of(blockIdx.x / a.ctas, blockIdx.x % a.ctas, m),
           make_float4(acc[m][0][0], acc[m][0][1], acc[m][0][2], acc[m][0][3]));
  __threadfence();
  __syncwarp();
  int arrived = 0;
  if (lane == 0) arrived = atomicAdd(a.counters + line_tile, 1);
  arrived = __shfl_sync(0xffffffffu, arrived, 0);
  if (arrived != slices * (last - first + 1) - 1) return;
  __threadfence();
  clear_sums(acc);
  for (int s = 0; s < slices; s++)
    for (int cta = first; cta <= last; cta++)
#pragma unroll
      for (int m = 0; m < kWeights; m++) add_sums(acc, __ldcg(a.partial + place_of(s, cta, m)), m);
  stream_output<kKind, kWeights, kUse>(a, pairs, line_tile, acc, lane);
  if (lane == 0) a.counters[line_tile] = 0;
}

template <WeightKind kKind, int kWeights, StreamUse kUse>
__global__ void __launch_bounds__(kStreamThreads, 2) stream_kernel(const StreamArgs a) {
  constexpr int kStages = kRingStages<kKind, kWeights>, kPart = RingPart<kKind>::kBytes, kStage = kWeights * kPart;
  static_assert(kStages >= 3);
  __shared__ PairTable pairs;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int slice = blockIdx.x / a.ctas, cta = blockIdx.x % a.ctas, total = a.line_tiles * a.tile_chunks;
  const int cta_begin = share_begin(total, cta, a.ctas), cta_end = share_begin(total, cta + 1, a.ctas), share = cta_end - cta_begin;
  const auto warp_begin = [&](int w) { return cta_begin + share_begin(share, w, kProductWarps); };
  const int begin = warp_begin(warp), end = warp_begin(warp + 1);
  uint8_t* const ring = product_shared + warp * kStages * kStage;
  auto* const sums = reinterpret_cast<float4*>(product_shared + kRingBytes<kKind, kWeights>);  // (warp, first or last tile, weight, lane)
  uint8_t* const x_shared = product_shared + kRingBytes<kKind, kWeights> + kSumBytes<kWeights>;
  const auto ring_address = static_cast<uint32_t>(__cvta_generic_to_shared(ring));

  if (!a.early) wait_for_previous();
  if constexpr (kUse != StreamUse::kMatrix) {
    for (int p = threadIdx.x; p < a.tokens * a.top_k; p += kStreamThreads) {
      const int expert = a.ids[p / a.top_k * a.ld_ids + p % a.top_k] - a.first;
      pairs.expert[p] = expert >= 0 && expert < a.expert_count ? expert : -1;
      pairs.weight[p] = a.weights[p / a.top_k * a.ld_weights + p % a.top_k];
    }
    __syncthreads();
  }
  StreamSource<kKind, kWeights, kUse> source(a, pairs, begin, slice, lane);
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) source.issue(ring_address + s * kStage, end);
  if (a.early) wait_for_previous();

  // x: kMatrix all rows of the slice's columns; kPairUp all rows; kPairDown the tokens of this CTA.
  const int first_row = kUse == StreamUse::kPairDown ? cta_begin / a.tile_chunks / a.tiles : 0;
  const int first_column = kUse == StreamUse::kMatrix ? slice * a.tile_chunks * chunk_columns(kKind) : 0;
  stage_x<kUse>(a, first_row, first_column, a.tile_chunks * chunk_columns(kKind), x_shared);
  __syncthreads();
  start_next();

  float acc[kWeights][1][4] = {};
  [[maybe_unused]] float done[4] = {};  // kPairDown: of the experts before, times the factors of their rows
  int stage = 0, tile = begin / a.tile_chunks, chunk = begin % a.tile_chunks;
  for (int place = begin; place < end;) {
    const int stop = min(a.tile_chunks, chunk + end - place), first_chunk = chunk;  // of this tile
    place += stop - chunk;
    const int x_row = kUse == StreamUse::kMatrix   ? min(lane / 4, a.tokens - 1)
                      : kUse == StreamUse::kPairUp ? tile / a.tiles / a.top_k
                                                   : tile / a.tiles - first_row;
    const uint8_t* const x = x_shared + x_row * a.x_pitch + lane % 4 * 16;
    int expert = 0;
    if constexpr (kUse == StreamUse::kPairUp) expert = pairs.expert[tile / a.tiles];
    if constexpr (kUse == StreamUse::kPairDown) expert = pairs.expert[tile / a.tiles * a.top_k + chunk / a.chunks];
    for (; chunk < stop; chunk++) {
      source.issue(ring_address + (stage == 0 ? kStages - 1 : stage - 1) * kStage, end);
      cp_async_wait<kStages - 1>();
      const uint8_t* const from = ring + stage * kStage;
      stage = stage + 1 == kStages ? 0 : stage + 1;
      if constexpr (kUse == StreamUse::kPairDown) {
        if (chunk > first_chunk && chunk % a.chunks == 0) {
          if constexpr (has_row_scale(kKind)) {
            if (expert >= 0) scale_rows<kKind>(a.experts[expert].data[2] + a.aux_offset, tile % a.tiles, lane, acc[0]);
#pragma unroll
            for (int i = 0; i < 4; i++) done[i] += acc[0][0][i], acc[0][0][i] = 0;
          }
          expert = pairs.expert[tile / a.tiles * a.top_k + chunk / a.chunks];
        }
      }
      if (expert < 0) continue;
      if (kUse == StreamUse::kMatrix && slice * a.tile_chunks + chunk >= a.chunks) continue;
      Chunk<kKind> now[kWeights];
#pragma unroll
      for (int m = 0; m < kWeights; m++) read_chunk(now[m], from + m * kPart, lane);
      multiply_chunk<kKind, 1, kWeights>(now, acc, [&](int, int group, uint32_t(&b)[4]) {
        const uint4 v = *reinterpret_cast<const uint4*>(x + (chunk * chunk_columns(kKind) + group * 32) * 2);
        b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
      });
    }
    if constexpr (kUse == StreamUse::kPairDown && has_row_scale(kKind)) {
      if (expert >= 0) scale_rows<kKind>(a.experts[expert].data[2] + a.aux_offset, tile % a.tiles, lane, acc[0]);
#pragma unroll
      for (int i = 0; i < 4; i++) acc[0][0][i] += done[i], done[i] = 0;
    }
    if (first_chunk == 0 && stop == a.tile_chunks) {
      stream_finish<kKind, kWeights, kUse>(a, pairs, tile, acc, lane);
    } else {
      const int which = first_chunk + tile * a.tile_chunks == begin ? 0 : 1;
#pragma unroll
      for (int m = 0; m < kWeights; m++)
        sums[((warp * 2 + which) * kWeights + m) * 32 + lane] = make_float4(acc[m][0][0], acc[m][0][1], acc[m][0][2], acc[m][0][3]);
    }
    clear_sums(acc);
    chunk = 0, tile++;
  }
  __syncthreads();
  if (begin == end) return;

  // Tiles that several warps share and whose first chunk in this CTA is this warp's.
  for (int which = 0; which < 2; which++) {
    const int at = which == 0 ? begin / a.tile_chunks : (end - 1) / a.tile_chunks;
    const int tile_begin = at * a.tile_chunks, tile_end = tile_begin + a.tile_chunks;
    if (which == 1 && tile_begin <= begin) continue;        // the same tile
    if (begin > tile_begin && begin > cta_begin) continue;  // another warp's
    if (begin <= tile_begin && end >= tile_end) continue;   // finished already
    clear_sums(acc);
#pragma unroll
    for (int m = 0; m < kWeights; m++) add_sums(acc, sums[((warp * 2 + which) * kWeights + m) * 32 + lane], m);
    for (int w = warp + 1; w < kProductWarps && warp_begin(w) < tile_end; w++) {
      if (warp_begin(w) == warp_begin(w + 1)) continue;
#pragma unroll
      for (int m = 0; m < kWeights; m++) add_sums(acc, sums[(w * 2 * kWeights + m) * 32 + lane], m);
    }
    stream_finish<kKind, kWeights, kUse>(a, pairs, at, acc, lane);
  }
}

template <WeightKind kKind, int kWeights, StreamUse kUse>
void launch_stream_use(const StreamShape& s, const StreamArgs& a, cudaStream_t stream) {
  const size_t shared = kRingBytes<kKind, kWeights> + kSumBytes<kWeights> + static_cast<size_t>(a.x_rows) * a.x_pitch;
  allow_shared_memory<stream_kernel<kKind, kWeights, kUse>>(kStreamMostShared - static_cast<int>(sizeof(PairTable)));
  launch_dependent(stream_kernel<kKind, kWeights, kUse>, dim3(a.ctas * s.slices), dim3(kStreamThreads), shared, stream, a);
}

}  // namespace

template <WeightKind kKind>
void launch_stream_kind(const StreamShape& s, const StreamArgs& a, cudaStream_t stream) {
  switch (s.use) {
    case StreamUse::kMatrix:
      if (s.weights == 2) launch_stream_use<kKind, 2, StreamUse::kMatrix>(s, a, stream);
      else launch_stream_use<kKind, 1, StreamUse::kMatrix>(s, a, stream);
      return;
    case StreamUse::kPairUp: return launch_stream_use<kKind, 2, StreamUse::kPairUp>(s, a, stream);
    case StreamUse::kPairDown: return launch_stream_use<kKind, 1, StreamUse::kPairDown>(s, a, stream);
  }
}
template <WeightKind kKind>
size_t stream_shared_bytes_kind(int weights) {
  return weights == 2 ? kRingBytes<kKind, 2> + kSumBytes<2> : kRingBytes<kKind, 1> + kSumBytes<1>;
}

}  // namespace dg::cuda

#define DG_STREAM_KIND(kind)                                                                                                       \
  template void ::dg::cuda::launch_stream_kind<::dg::cuda::WeightKind::kind>(const StreamShape&, const StreamArgs&, cudaStream_t); \
  template size_t dg::cuda::stream_shared_bytes_kind<::dg::cuda::WeightKind::kind>(int);
