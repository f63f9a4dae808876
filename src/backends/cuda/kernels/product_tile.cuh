// The inner loop of all products with few rows of x: a warp multiplies 16 rows of a weight (two weights for gate and up) with N tiles of 8
// rows of x by mma.m16n8k16, weights as A. It streams the weights through a ring in shared memory (cp.async, some chunks ahead: loads to
// registers would share scoreboards and wait for each other, measured 1.25 instead of 4 TB/s) and unpacks them in registers; x comes as
// bf16 (or f32) through L1, which the warps of a CTA share because they are at about the same columns.
//
// Order of the columns: in a group of 32, lane 4 g + t of a warp holds columns 8 t .. 8 t + 7 of weight rows g, g + 8 and of x row g. Step
// 0 of the two mma takes the first four of them as its k = 2 t, 2 t + 1, 2 t + 8, 2 t + 9, step 1 the others. So x is read in plain order,
// 16 bytes per lane, and any layout in which these 8 weights lie together will do.
//
// Scales of groups multiply the group's sum, in f32: acc += scale * (codes . x). Offsets multiply the group's sum of x, which two more
// mma with ones as A give in the right registers.
//
// Arithmetic per chunk and tile (1024 bytes of codes = 51 clocks of an SM's share of 4.8 TB/s, 205 issue slots of a scheduler): 4 bits, N =
// 1: 120 unpacking, 8 mma, 32 scaling, 16 loads: near the limit; 8 bits: about 75 + 4 + 8; bf16: 2 mma.
#pragma once
#include "backends/cuda/kernels/launch.cuh"
#include "backends/cuda/kernels/product_kernels.h"
#include "backends/cuda/kernels/weight_unpack.cuh"

namespace dg::cuda {

// Asynchronous copy of 4, 8 or 16 bytes to shared memory, complete after cp_async_wait of its group. 16 bytes bring 256 to L2: rows of
// bf16 are read 64 bytes at a time, and memory pages opened for so little give half of the bandwidth.
template <int kBytes>
__device__ __forceinline__ void cp_async(uint32_t to, const void* from) {
  if constexpr (kBytes == 16) asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes) : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// d += a b: a 16 x 16 rows of bf16 (a0: row g, a1: row g + 8, a2, a3: their columns 8..15), b 16 x 8.
__device__ __forceinline__ void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <WeightKind kKind>
constexpr int kStageWords = square_side(kKind) == 128  ? 1
                            : square_side(kKind) == 32 ? 2
                                                       : kScaleWords<kKind>;
template <WeightKind kKind>
constexpr bool kScaled = kStageWords<kKind> > 0;
template <WeightKind kKind>
constexpr bool kHasOffset = kKind == WeightKind::kCode8Offset || kKind == WeightKind::kCode4Offset;

// A lane's part of one chunk of one tile.
template <WeightKind kKind>
struct Chunk {
  static constexpr int kWords = kStageWords<kKind> > 0 ? kStageWords<kKind> : 1;
  uint4 codes[2];              // rows g, g + 8
  uint32_t scales[2][kWords];  // squares: both rows share scales[0]
};

// A stage of the ring: of each weight the 1024 bytes of codes of a chunk, then its scales lane by lane.
template <WeightKind kKind>
struct RingPart {
  static constexpr int kHalves = square_side(kKind) != 0 ? 1 : 2;
  static constexpr int kScaleBytes = kStageWords<kKind> * 4;  // of a lane and half
  static constexpr int kBytes = 1024 + 32 * kHalves * kScaleBytes;
};
// Chunks that a warp multiplies together, into sums of their own, when it has few columns of x: one chunk of bf16 or 8 bits is a chain of a
// load from shared memory, one of x, unpacking and dependent mma that takes longer than its bytes; 4 bits have four groups in a chunk.
template <WeightKind kKind, int kWeights>
constexpr int kStagesFit = (96 << 10) / (kProductWarps * kWeights * RingPart<kKind>::kBytes);
template <WeightKind kKind, int kWeights>
constexpr int kTogether = chunk_groups(kKind) >= 4 || kStagesFit<kKind, kWeights> < 4 ? 1
                          : chunk_groups(kKind) == 1 && kWeights == 1                 ? 4
                                                                                      : 2;
// Stages of the ring of a warp: what two CTAs per multiprocessor have room for, whole groups of kTogether. Little's law asks for some 40
// KiB in flight per multiprocessor.
constexpr int ring_stages(int fit, int together) { return fit > 12 ? 12 : fit - fit % together; }
template <WeightKind kKind, int kWeights>
constexpr int kRingStages = ring_stages(kStagesFit<kKind, kWeights>, kTogether<kKind, kWeights>);
template <WeightKind kKind, int kWeights>
constexpr size_t kRingBytes = static_cast<size_t>(kProductWarps) * kRingStages<kKind, kWeights>* kWeights* RingPart<kKind>::kBytes;

// What a warp takes of a tile: groups of kTogether chunks of [begin, end), every parts'th one. So the warps of a CTA walk along the rows
// side by side: memory sees long runs, and x is in L1.
struct Chunks {
  int begin, end, part, parts;
};

// Where a lane reads a tile.
template <WeightKind kKind>
struct LaneTile {
  const uint8_t *low, *high;  // rows g, g + 8 of chunk 0
  const uint8_t* scales;

  // Rows beyond the matrix repeat its last row where the layout is not padded: nobody reads their results.
  __device__ __forceinline__ void set(const uint8_t* data, const uint8_t* aux, int tile, int64_t tile_bytes, int out, int chunks,
                                      int lane) {
    if constexpr (kKind == WeightKind::kBf16) {
      const int64_t row_bytes = tile_bytes / kTileRows;
      const int row = tile * kTileRows + lane / 4;
      low = data + min(row, out - 1) * row_bytes + lane % 4 * 16;
      high = data + min(row + 8, out - 1) * row_bytes + lane % 4 * 16;
      scales = nullptr;
    } else {
      const uint8_t* base = data + tile * tile_bytes;
      low = base + lane_place(kKind, lane) * 16;
      high = low + 512;
      if constexpr (square_side(kKind) != 0) scales = aux + tile * kTileRows / square_side(kKind) * square_pitch(kKind, chunks) * 4;
      else scales = base + scale_offset(kKind, lane / 4, 0);
    }
  }

  // Copies this lane's part of a chunk to its places in a stage of the warp's ring.
  __device__ __forceinline__ void issue(uint32_t stage, int lane, int chunk) const {
    using Part = RingPart<kKind>;
    constexpr int stride = kKind == WeightKind::kBf16 ? 64 : block_bytes(kKind);
    const int64_t at = static_cast<int64_t>(chunk) * stride;
    cp_async<16>(stage + lane * 16, low + at);
    cp_async<16>(stage + 512 + lane * 16, high + at);
    const uint32_t to = stage + 1024 + lane * Part::kScaleBytes;
    if constexpr (square_side(kKind) == 128) {
      cp_async<4>(to, reinterpret_cast<const uint32_t*>(scales) + chunk / 2);
    } else if constexpr (square_side(kKind) == 32) {
      cp_async<8>(to, reinterpret_cast<const uint2*>(scales) + chunk);
    } else if constexpr (kScaled<kKind>) {
      constexpr int rows8 = 8 * kScaleWords<kKind> * 4;
      cp_async<Part::kScaleBytes>(to, scales + at);
      cp_async<Part::kScaleBytes>(to + 32 * Part::kScaleBytes, scales + at + rows8);
    }
  }
};

// This lane's part of a chunk, out of the ring.
template <WeightKind kKind>
__device__ __forceinline__ void read_chunk(Chunk<kKind>& to, const uint8_t* stage, int lane) {
  using Part = RingPart<kKind>;
  to.codes[0] = *reinterpret_cast<const uint4*>(stage + lane * 16);
  to.codes[1] = *reinterpret_cast<const uint4*>(stage + 512 + lane * 16);
  if constexpr (kScaled<kKind>) {
#pragma unroll
    for (int half = 0; half < Part::kHalves; half++)
#pragma unroll
      for (int i = 0; i < kStageWords<kKind>; i++)
        to.scales[half][i] = *reinterpret_cast<const uint32_t*>(stage + 1024 + (half * 32 + lane) * Part::kScaleBytes + i * 4);
  }
}

// Scale of row g (half 0) or g + 8 (half 1) in group j.
template <WeightKind kKind>
__device__ __forceinline__ float chunk_scale(const Chunk<kKind>& c, int half, int j) {
  if constexpr (square_side(kKind) == 128) return __uint_as_float(c.scales[0][0]);
  else if constexpr (square_side(kKind) == 32) return __uint_as_float(c.scales[0][j]);
  else return group_scale<kKind>(c.scales[half], j);
}
// What the sum of x is multiplied with: the offset, less 128 times the scale where codes come out 128 too large.
template <WeightKind kKind>
__device__ __forceinline__ float chunk_offset(const Chunk<kKind>& c, int half, int j) {
  const float offset = group_offset<kKind>(c.scales[half], j);
  if constexpr (kKind == WeightKind::kCode4Offset) return fmaf(-128.0f, group_scale<kKind>(c.scales[half], j), offset);
  else return offset;
}

template <WeightKind kKind>
__device__ __forceinline__ void chunk_codes(const Chunk<kKind>& c, int half, int j, uint32_t (&p)[4]) {
  const uint4& w = c.codes[half];
  if constexpr (kKind == WeightKind::kBf16) p[0] = w.x, p[1] = w.y, p[2] = w.z, p[3] = w.w;
  else if constexpr (chunk_groups(kKind) == 2) unpack_codes<kKind>(j == 0 ? w.x : w.z, j == 0 ? w.y : w.w, p);
  else unpack_codes<kKind>(j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w, 0, p);
}

// Eight columns of a row of x as pairs of bf16. Plain loads: those of the read-only path may move before wait_for_previous().
template <bool kF32>
__device__ __forceinline__ void load_x(const void* x, uint32_t offset, uint32_t (&b)[4]) {
  if constexpr (kF32) {
    const auto* p = reinterpret_cast<const float4*>(static_cast<const float*>(x) + offset);
    const float4 v = p[0], w = p[1];
    b[0] = pack_bf162(v.x, v.y), b[1] = pack_bf162(v.z, v.w), b[2] = pack_bf162(w.x, w.y), b[3] = pack_bf162(w.z, w.w);
  } else {
    const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(x) + offset);
    b[0] = v.x, b[1] = v.y, b[2] = v.z, b[3] = v.w;
  }
}

// acc[m][n] += a chunk of a tile of weight m times rows n of x. load(n, group, b): this lane's 8 columns of the chunk's group.
template <WeightKind kKind, int kN, int kWeights, class Load>
__device__ __forceinline__ void multiply_chunk(const Chunk<kKind> (&now)[kWeights], float (&acc)[kWeights][kN][4], const Load& load) {
  constexpr int kUnit = square_side(kKind) == 128 ? 2 : 1;  // groups that share a scale
  constexpr uint32_t kOnes = 0x3f803f80u;
#pragma unroll
  for (int unit = 0; unit < chunk_groups(kKind); unit += kUnit) {
    uint32_t a[kWeights][kUnit][2][4];
#pragma unroll
    for (int m = 0; m < kWeights; m++)
#pragma unroll
      for (int j = 0; j < kUnit; j++) {
        chunk_codes<kKind>(now[m], 0, unit + j, a[m][j][0]);
        chunk_codes<kKind>(now[m], 1, unit + j, a[m][j][1]);
      }
#pragma unroll
    for (int n = 0; n < kN; n++) {
      uint32_t b[kUnit][4];
#pragma unroll
      for (int j = 0; j < kUnit; j++) load(n, unit + j, b[j]);
      float sum[4] = {};
      if constexpr (kHasOffset<kKind>) {
        mma(sum, kOnes, kOnes, kOnes, kOnes, b[0][0], b[0][1]);
        mma(sum, kOnes, kOnes, kOnes, kOnes, b[0][2], b[0][3]);
      }
#pragma unroll
      for (int m = 0; m < kWeights; m++) {
        if constexpr (!kScaled<kKind>) {
          const auto &low = a[m][0][0], &high = a[m][0][1];
          mma(acc[m][n], low[0], high[0], low[1], high[1], b[0][0], b[0][1]);
          mma(acc[m][n], low[2], high[2], low[3], high[3], b[0][2], b[0][3]);
        } else {
          float d[4] = {};
#pragma unroll
          for (int j = 0; j < kUnit; j++) {
            const auto &low = a[m][j][0], &high = a[m][j][1];
            mma(d, low[0], high[0], low[1], high[1], b[j][0], b[j][1]);
            mma(d, low[2], high[2], low[3], high[3], b[j][2], b[j][3]);
          }
#pragma unroll
          for (int i = 0; i < 4; i++) {
            acc[m][n][i] = fmaf(chunk_scale<kKind>(now[m], i / 2, unit), d[i], acc[m][n][i]);
            if constexpr (kHasOffset<kKind>) acc[m][n][i] = fmaf(chunk_offset<kKind>(now[m], i / 2, unit), sum[i], acc[m][n][i]);
          }
        }
      }
    }
  }
}

// `ring`: the warp's kRingStages stages; every lane reads only what it copied itself, so there is nothing to synchronise.
// acc[m][n] += tile of weight m times rows n of x, over these chunks. x_offset[n]: element of x that is column 8 t of the row of
// x that lane 4 g + t holds in tile n. `early`: the kernel before this one is waited for (launch.cuh) when the ring is filled.
template <WeightKind kKind, int kN, int kWeights, bool kF32X>
__device__ __forceinline__ void accumulate(const LaneTile<kKind> (&tiles)[kWeights], Chunks chunks, const void* x,
                                           const uint32_t (&x_offset)[kN], float (&acc)[kWeights][kN][4], uint8_t* ring, int lane,
                                           bool early) {
  constexpr int kMany = kN <= 2 ? kTogether<kKind, kWeights> : 1, kSlots = kRingStages<kKind, kWeights> / kMany;
  constexpr int kPart = RingPart<kKind>::kBytes, kStage = kWeights * kPart;
  static_assert(kSlots >= 2);
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
  const int first = chunks.begin + chunks.part * kMany, stride = chunks.parts * kMany;
  const auto issue = [&](int slot, int chunk) {
#pragma unroll
    for (int i = 0; i < kMany; i++)
      if (chunk + i < chunks.end)
#pragma unroll
        for (int m = 0; m < kWeights; m++) tiles[m].issue(base + (slot * kMany + i) * kStage + m * kPart, lane, chunk + i);
    cp_async_commit();
  };
#pragma unroll
  for (int s = 0; s < kSlots - 1; s++) issue(s, first + s * stride);
  if (early) {
    wait_for_previous();
    start_next();
  }
  float other[kMany > 1 ? kWeights : 1][kMany > 1 ? kN : 1][4] = {};
  int slot = 0;
  for (int chunk = first; chunk < chunks.end; chunk += stride) {
    issue(slot == 0 ? kSlots - 1 : slot - 1, chunk + (kSlots - 1) * stride);
    cp_async_wait<kSlots - 1>();
    Chunk<kKind> now[kMany][kWeights];
#pragma unroll
    for (int i = 0; i < kMany; i++)
#pragma unroll
      for (int m = 0; m < kWeights; m++) read_chunk(now[i][m], ring + (slot * kMany + i) * kStage + m * kPart, lane);
    slot = slot + 1 == kSlots ? 0 : slot + 1;
    const auto multiply = [&](int i, float(&sum)[kWeights][kN][4]) {
      multiply_chunk<kKind, kN>(now[i], sum, [&](int n, int group, uint32_t(&b)[4]) {
        load_x<kF32X>(x, x_offset[n] + (chunk + i) * chunk_columns(kKind) + group * 32, b);
      });
    };
    if constexpr (kMany == 1) {
      multiply(0, acc);
    } else if (chunk + kMany <= chunks.end) {
#pragma unroll
      for (int i = 0; i < kMany; i++) multiply(i, i % 2 ? other : acc);
    } else {
#pragma unroll
      for (int i = 0; i < kMany - 1; i++)
        if (chunk + i < chunks.end) multiply(i, i % 2 ? other : acc);
    }
  }
  if constexpr (kMany > 1)
#pragma unroll
    for (int m = 0; m < kWeights; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] += other[m][n][i];
}

// Factors of whole rows.
template <WeightKind kKind, int kN>
__device__ __forceinline__ void scale_rows(const uint8_t* aux, int tile, int lane, float (&acc)[kN][4]) {
  if constexpr (has_row_scale(kKind)) {
    const float* scales = reinterpret_cast<const float*>(aux) + tile * kTileRows + lane / 4;
    const float low = __ldg(scales), high = __ldg(scales + 8);
#pragma unroll
    for (int n = 0; n < kN; n++) acc[n][0] *= low, acc[n][1] *= low, acc[n][2] *= high, acc[n][3] *= high;
  }
}

__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }

// The sums of the warps of a CTA that share a tile (warp = part * row_tiles + tile), in order, in the warps of part 0; true for these.
template <int kWeights, int kN>
__device__ __forceinline__ bool reduce_parts(float (&acc)[kWeights][kN][4], int row_tiles, float* shared) {
  constexpr int kValues = kWeights * kN * 4;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, parts = kProductWarps / row_tiles;
  if (parts == 1) return true;
  if (warp >= row_tiles) {
    float* to = shared + (warp - row_tiles) * kValues * 32 + lane;
#pragma unroll
    for (int m = 0; m < kWeights; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) to[((m * kN + n) * 4 + i) * 32] = acc[m][n][i];
  }
  __syncthreads();
  if (warp >= row_tiles) return false;
  for (int part = 1; part < parts; part++) {
    const float* from = shared + ((part - 1) * row_tiles + warp) * kValues * 32 + lane;
#pragma unroll
    for (int m = 0; m < kWeights; m++)
#pragma unroll
      for (int n = 0; n < kN; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) acc[m][n][i] += from[((m * kN + n) * 4 + i) * 32];
  }
  return true;
}

}  // namespace dg::cuda
