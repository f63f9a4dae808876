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

struct CacheWriteArgs {
  void* cache;
  Element element;
  int64_t block_bytes, row_bytes;  // from block to block, from row to row
  int block_tokens;
  int64_t width;
  const float* values;
  int64_t values_stride, rows;
  const int32_t* slots;  // below 0: the row is not stored
};
void launch_cache_write(const CacheWriteArgs& args, cudaStream_t stream);

}  // namespace dg::cuda
