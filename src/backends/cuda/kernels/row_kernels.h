// Launches of the ops over rows (rows.cu) and of the cache write (cache_write.cu): plain arguments, element strides, asynchronous on
// the stream. The last dimension has stride 1. `vector` says that every address and stride allows accesses of four elements.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace dg::cuda {

// A (rows, heads, cols) view of floats.
struct FloatRows {
  float* data;
  int64_t row_stride, head_stride;
};

struct NormArgs {
  FloatRows out, x;
  const float* weight;
  const float* delta = nullptr;  // add_rms_norm: x += delta first; heads = 1
  int64_t delta_stride = 0;
  int64_t rows, heads, dim;
  float eps;
  bool vector;
};
void launch_rms_norm(const NormArgs& args, cudaStream_t stream);

struct RopeArgs {
  FloatRows x;
  const float* weight;  // null: no norm
  float eps;
  const int32_t* positions;
  const float* inv_freq;
  int64_t rows, heads, dim;
  bool interleaved;
  float magnitude;
};
void launch_rope(const RopeArgs& args, cudaStream_t stream);

enum class Pointwise { kSiluMul, kAdd };  // silu(a) * b, a + b

struct PointwiseArgs {
  float* out;
  const float *a, *b;
  int64_t out_stride, a_stride, b_stride, rows, cols;
  bool vector;
};
void launch_pointwise(Pointwise op, const PointwiseArgs& args, cudaStream_t stream);

struct GatherArgs {
  float* out;
  const float* x;
  const int32_t* rows;
  int64_t out_stride, x_stride, count, cols;
  bool vector;
};
void launch_gather(const GatherArgs& args, cudaStream_t stream);
void launch_fill(float* out, int64_t stride, int64_t rows, int64_t cols, float value, cudaStream_t stream);

enum class Element { kF32, kBf16, kF16, kE4m3, kInt8 };

struct CopyArgs {
  void* out;
  const void* x;
  Element to, from;                                    // the first three
  int64_t out_row, out_col, x_row, x_col, rows, cols;  // strides
};
void launch_copy(const CopyArgs& args, cudaStream_t stream);

// The paged cache as it is written.
struct CacheRows {
  void* data;
  Element element;
  int64_t block_bytes, row_bytes;  // from block to block, from row to row
  int block_tokens;
  int64_t width;
};
// Whether four elements of `bytes` each that start at a multiple of four columns are aligned to their size.
inline bool by_four(const CacheRows& c, int64_t bytes) {
  const int64_t four = 4 * bytes;
  return reinterpret_cast<uintptr_t>(c.data) % static_cast<uintptr_t>(four) == 0 && c.block_bytes % four == 0 && c.row_bytes % four == 0;
}

struct CacheWriteArgs {
  CacheRows cache;
  const float* values;
  int64_t values_stride, rows;
  const int32_t* slots;  // below 0: the row is not stored
};
void launch_cache_write(const CacheWriteArgs& args, cudaStream_t stream);

// rope_cache.cu: RopeKvWrite for heads of 64, 128, 192 or 256.
struct RopeCacheArgs {
  float *q, *k;
  const float* v;
  int64_t q_row, q_head, k_row, v_row;  // strides; the heads of k and v stand side by side
  const float *q_weight, *k_weight;     // or null
  const float* inv_freq;
  const int32_t *positions, *slots;  // slots below 0: not stored
  CacheRows k_cache, v_cache;        // of one element type
  int64_t rows;
  int heads, kv_heads;
  float eps, magnitude;
};
inline constexpr bool fast_rope_cache(int64_t dim) { return dim == 64 || dim == 128 || dim == 192 || dim == 256; }
void launch_rope_cache(const RopeCacheArgs& args, int head_dim, cudaStream_t stream);

// LatentKvWrite where every row, every part of it and every weight is a multiple of four floats, at multiples of 16 bytes.
struct LatentCacheArgs {
  float* latent;
  int64_t latent_row;
  const float* weight;
  float* q_low;  // or null
  int64_t q_low_row;
  const float* q_low_weight;
  float* q_pe;  // or null
  int64_t q_row, q_head;
  const float* inv_freq;
  const int32_t *positions, *slots;
  CacheRows cache;
  bool cache_by_four;
  int64_t rows;
  int kv_lora, rope, q_lora, heads;
  float eps, magnitude;
};
inline constexpr int64_t kMostLatentColumns = 4096;  // of a latent row or a low-rank query: a group of four for each thread of a block
void launch_latent_cache(const LatentCacheArgs& args, cudaStream_t stream);

}  // namespace dg::cuda
