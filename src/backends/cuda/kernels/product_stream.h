// Products of few rows of x (decode), whose time is that of reading the weights: product_stream.cuh.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/kernels/product_kernels.h"

namespace dg::cuda {

enum class StreamUse {
  kMatrix,    // to = x W^T (+ bias), or with two weights silu(x gate^T) * (x up^T)
  kPairUp,    // hidden[pair] = routing weight * silu(x gate^T) * (x up^T) of the pair's expert, bf16: two weights
  kPairDown,  // to[token] += sum over the token's pairs of hidden[pair] down^T
};

constexpr int kStreamMostTokens = 8;  // one tile of mma
constexpr int kStreamMostPairs = 64;  // tokens * top_k
constexpr int kStreamMostTiles = 16384;
constexpr int kStreamMostShared = 227 << 10;

// The line: all chunks of tile 0, then of tile 1 ... A tile is 16 rows of a matrix and one of `slices` parts of its columns; with pairs
// (pair, 16 rows), or (token, 16 rows) with the columns of all its experts one behind the other. The CTAs of a slice share its line
// evenly; a tile on several CTAs is added up by the last of them that arrives, always in the same order.
constexpr int kStreamParts = 3;  // weights that multiply the same x in one launch

// kMatrix with one weight: weights of one kind and width whose tiles follow each other in the line.
struct StreamPart {
  const uint8_t *data, *aux;
  float* to;
  int64_t ld_to;
  const float* bias;  // or null
  int32_t first_tile, out;
};

struct StreamArgs {
  StreamPart parts[kStreamParts];  // kMatrix with one weight: the first `part_count`; then data, aux, out, to and bias are not looked at
  int32_t part_count;
  const uint8_t* data[2];  // kMatrix with two: gate and up
  const uint8_t* aux[2];
  int64_t tile_bytes, aux_offset;
  int32_t out, chunks, tiles;  // of one matrix, or of all parts
  int32_t line_tiles;          // tiles in the line of a slice
  int32_t tile_chunks;         // chunks of a tile in the line; kMatrix: of a slice, the last one may have fewer
  int32_t ctas;                // of a slice
  const void* x;               // f32 (tokens, ldx); kPairDown: bf16 (tokens * top_k, ldx), ldx >= in
  int64_t ldx;
  const int32_t* columns;  // kMatrix: column k of the weight multiplies x[columns[k]]; or null
  int32_t in, tokens;
  int32_t x_rows, x_pitch;  // what is staged in shared memory: rows, bytes from row to row
  void* to;                 // f32; kPairUp bf16
  int64_t ld_to;
  float4* partial;    // stream_partial_bytes(): sums of tiles that several CTAs share
  int32_t* counters;  // (line_tiles) zeros, and zeros again when the kernel is done
  bool early;         // the weights are there before the kernels issued earlier are done

  // Pairs.
  const ExpertMatrices* experts;
  const int32_t* ids;  // (tokens, top_k); an expert outside [first, first + expert_count) has no part in the result
  int64_t ld_ids;
  const float* weights;  // (tokens, top_k)
  int64_t ld_weights;
  int32_t first, expert_count, top_k;
};
struct StreamShape {
  WeightKind kind;
  StreamUse use;
  int weights;  // 1 or 2
  int slices;
};

constexpr size_t stream_partial_bytes(int64_t line_tiles, int64_t ctas, int slices, int weights) {
  return static_cast<size_t>((slices * line_tiles + 2 * ctas * slices) * weights) * 32 * sizeof(float4);
}
// Bytes of shared memory of a CTA beside staged rows of x.
size_t stream_shared_bytes(WeightKind kind, int weights);
// From row to row of staged x: neighbours lie in different halves of the banks.
constexpr int64_t stream_x_pitch(int64_t columns) { return (columns * 2 + 127) / 128 * 128 + 64; }

template <WeightKind kKind>
void launch_stream_kind(const StreamShape& shape, const StreamArgs& args, cudaStream_t stream);
template <WeightKind kKind>
size_t stream_shared_bytes_kind(int weights);

}  // namespace dg::cuda
