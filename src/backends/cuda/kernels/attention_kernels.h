// Launches of attention (attention_*.cu) and of latent attention (mla_*.cu): plain arguments, asynchronous on the stream.
//
// Everywhere a "pair" is one query row and one head that read the same keys: the query heads of a kv head (GQA), or all heads (MLA).
// Pairs of a sequence are numbered row by row, head after head, and fill the M side of the tensor cores. Kernels read the lengths of
// the sequences from the device: a captured graph stays valid while they grow within the figures that the grids were made for.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "backends/cuda/kernels/row_kernels.h"

namespace dg::cuda {

struct SequenceArgs {
  const int32_t *q_begin, *q_len, *kv_len, *decode, *first_block, *blocks, *row_sequence;
  int count, tokens;
  int longest_prefill_q, longest_decode_q;  // rows of one sequence, at most
};

// One part of the cache as kernels read it. Strides in bytes.
struct CacheView {
  const unsigned char* data;
  Element element;
  bool aligned;  // rows start at multiples of 16 bytes
  int64_t block_bytes, row_bytes;
  int block_tokens;
  int width;  // columns of a row, all heads: where int8 rows keep their scales
};

// Ranges of positions that a decode row is cut into: at most `splits`, of `least` positions or more.
struct SplitPlan {
  int splits = 1, least = 64;
};

struct AttentionArgs {
  const float* q;
  float* out;
  int64_t q_row, q_head, out_row, out_head;  // strides
  CacheView k, v;
  SequenceArgs sequences;
  int kv_heads, group;
  float scale;
  SplitPlan plan;
  float* partials;     // (sequence, row of it, head, split): head_dim floats
  float2* sums;        // (sequence, row of it, head, split): largest score (times log2 e) and sum of the weights
  unsigned* counters;  // decode_counters(): zero, and zero again behind the launch
  bool q_by_two;       // rows of q start at multiples of 8 bytes
};
// Blocks of decode rows that merge their ranges: sequences x kv heads x tiles of 16 pairs.
inline int64_t decode_counters(const AttentionArgs& a) {
  return int64_t{a.sequences.count} * a.kv_heads * ((int64_t{a.sequences.longest_decode_q} * a.group + 15) / 16);
}
// Tensor cores take these; everything else goes to launch_attention_general.
inline constexpr bool fast_head_dim(int64_t dim) { return dim == 64 || dim == 128; }
// Rows of decode sequences.
void launch_attention_decode(const AttentionArgs& args, int head_dim, cudaStream_t stream);
// Rows of all other sequences.
void launch_attention_prefill(const AttentionArgs& args, int head_dim, cudaStream_t stream);

// Any shape and cache type, all in f32: a block for each row and head.
struct GeneralArgs {
  const float* q;
  float* out;
  int64_t q_row, q_head, out_row, out_head;
  CacheView k, v;
  SequenceArgs sequences;
  int row_begin, row_end;          // batch rows; q and out start at row_begin
  int heads, group, k_dim, v_dim;  // column of head h: h / group * k_dim, and * v_dim
  float scale;
};
void launch_attention_general(const GeneralArgs& args, cudaStream_t stream);

// Merges the splits of latent decode rows in order. A kernel of its own: 64 pairs of 512 columns and 66 ranges are 8.6 MB, which one
// block, the last, would read for 70 us and all blocks of this one in 4.
struct CombineArgs {
  const float* partials;
  const float2* sums;
  void* out;  // f32, or bf16 if `bf16`
  bool bf16;
  int64_t out_row, out_head;
  SequenceArgs sequences;
  int row_begin, row_end;  // as in GeneralArgs
  int heads, dim;
  SplitPlan plan;
};
void launch_attention_combine(const CombineArgs& args, cudaStream_t stream);

// Latent attention in its absorbed form. Buffers hold the rows [row_begin, row_end) of the batch.
inline constexpr int kLatent = 512, kLatentRope = 64;
struct LatentArgs {
  const uint16_t* q;  // (rows, heads, 576) bf16: [Wk^T q | q_pe]
  uint16_t* out;      // (rows, heads, 512) bf16
  CacheView cache;
  SequenceArgs sequences;
  int row_begin, row_end;
  int heads;
  float scale;
  SplitPlan plan;   // of decode rows
  float* partials;  // (sequence, row of it, head, split): 512 floats
  float2* sums;
};
// Whether rows are copied as they are, and the blocks of so many pairs that a multiprocessor holds then.
inline bool latent_async(const CacheView& cache) { return cache.element == Element::kBf16 && cache.aligned; }
constexpr int latent_blocks(int64_t pairs, bool async) { return !async && pairs == 16 ? 2 : 1; }
void launch_latent_decode(const LatentArgs& args, cudaStream_t stream);
void launch_latent_prefill(const LatentArgs& args, cudaStream_t stream);

struct ProjectArgs {
  const float* q;  // (rows, heads, nope + rope)
  float* out;      // (rows, heads, v_dim)
  int64_t q_row, q_head, out_row, out_head;
  const void* weight;           // (heads, nope + v_dim, kv_lora), bf16; f32 for the general form
  void *q_latent, *out_latent;  // (rows, heads, kv_lora + rope), (rows, heads, kv_lora); bf16, or f32
  int rows, heads, nope, rope, v_dim, kv_lora;
  bool settled;  // the weight was not written by a kernel of this step: it may be read before wait_for_previous()
};
// kv_lora 512, rope 64, multiples of 64 for nope and v_dim.
inline constexpr bool fast_latent(int64_t kv_lora, int64_t rope, int64_t nope, int64_t v_dim) {
  return kv_lora == kLatent && rope == kLatentRope && nope % 64 == 0 && v_dim % 64 == 0 && nope > 0 && nope <= 256 && v_dim > 0;
}
void launch_latent_query(const ProjectArgs& args, cudaStream_t stream);
void launch_latent_output(const ProjectArgs& args, cudaStream_t stream);
void launch_latent_query_general(const ProjectArgs& args, cudaStream_t stream);
void launch_latent_output_general(const ProjectArgs& args, cudaStream_t stream);

// Latent attention of one prefill sequence with k and v of `heads` heads made from the latent rows: nope 128, rope 64, v_dim 128.
inline constexpr int kMadeNope = 128, kMadeValue = 128;
inline constexpr bool made_latent(int64_t nope, int64_t v_dim) { return nope == kMadeNope && v_dim == kMadeValue; }
struct MadeArgs {
  const float* q;  // row 0 of the sequence, head 0 of these
  float* out;
  int64_t q_row, q_head, out_row, out_head;
  const uint16_t* weight;  // rows of kv_b of these heads
  uint16_t* latent;        // (kv_len, 576)
  uint16_t* made;          // (kv_len, heads, nope + v_dim)
  int q_len, kv_len, heads;
  float scale;
};
// The first kv_len rows of the sequence whose block ids (on the device) are `blocks`, as bf16 without gaps.
void launch_gather_latent(const CacheView& cache, const int32_t* blocks, int kv_len, uint16_t* latent, cudaStream_t stream);
void launch_make_keys_values(const MadeArgs& args, cudaStream_t stream);
void launch_made_attention(const MadeArgs& args, cudaStream_t stream);

}  // namespace dg::cuda
