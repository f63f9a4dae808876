// The op vocabulary: one parameter struct per op. Outputs first, inputs in reading order, weights, then parameters.
// Activations are (tokens, ...) views in f32; caches may be f32, bf16, f16, fp8 or int8 (device/cache_format.h).
// backends/cpu/reference.cpp defines what each op computes. A new op needs a reference body, a row in tests/ops and two
// users or a measured win.
#pragma once
#include <span>

#include "quant/format.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace dg {

// out[t] = table[ids[t]].
struct Embed {
  Tensor out;    // (tokens, dim)
  Tensor ids;    // (tokens) i32
  Weight table;  // (vocab, dim)
};

// out = x W^T + bias. Every row of `out` is a function of its own row of `x` alone, bit for bit, whatever the batch, unless the backend
// was told that it need not be (CpuOptions::batch_invariant).
struct Linear {
  Tensor out;  // (tokens, out)
  Tensor x;    // (tokens, in)
  Weight weight;
  Tensor bias{};  // (out) f32, optional
};

// * Matrices that share x (q, k and v; q_a and kv_a): parts[i].out = x parts[i].weight^T + parts[i].bias, as Linear.
struct LinearPart {
  Tensor out;  // (tokens, out)
  Weight weight;
  Tensor bias{};  // (out) f32, optional
};
struct LinearSeveral {
  static constexpr int kMost = 3;
  Tensor x;                 // (tokens, in)
  LinearPart parts[kMost];  // the first `count`
  int count;
};

// * out = silu(x gate^T) * (x up^T).
struct LinearGlu {
  Tensor out;       // (tokens, inner)
  Tensor x;         // (tokens, dim)
  Weight gate, up;  // (inner, dim)
  Arena* scratch;
};

// out = x * rsqrt(mean(x^2) + eps) * weight, over the last dimension. In place allowed; rows may be strided.
struct RmsNorm {
  Tensor out, x;  // (tokens, dim) or (tokens, heads, dim)
  Tensor weight;  // (dim) f32
  float eps;
};

// x = sum of the x of all ranks of the backend's group, in order of rank: the same bits on every rank. Alone: nothing to do.
struct AllReduce {
  Tensor x;  // (tokens, dim), contiguous
};

// * residual += delta; out = rms_norm(residual). `partial`: delta is this rank's part and is summed over the ranks first
// (its content afterwards is unspecified).
struct AddRmsNorm {
  Tensor out, residual, delta;  // (tokens, dim)
  Tensor weight;                // (dim) f32
  float eps;
  bool partial = false;
};

// Rotary embedding in place. Angle of pair i at position p: p * inv_freq[i]; both products are multiplied by `magnitude`.
// Pairs are (2i, 2i+1) when interleaved (MLA), else (i, i + dim/2). Source: RoFormer; DeepSeek-V3 inference/model.py.
struct Rope {
  Tensor x;          // (tokens, heads, rotary_dim)
  Tensor positions;  // (tokens) i32
  Tensor inv_freq;   // (rotary_dim / 2) f32
  bool interleaved;
  float magnitude;
};

// * Norm over each head (when `weight` is valid), then Rope; in place.
struct HeadNormRope {
  Tensor x;       // (tokens, heads, head_dim)
  Tensor weight;  // (head_dim) f32, optional
  float eps;
  Tensor positions, inv_freq;
  bool interleaved;
  float magnitude;
};

// out = silu(gate) * up.
struct ActMul {
  Tensor out, gate, up;  // (tokens, inner)
};

// out = a + b.
struct Add {
  Tensor out, a, b;  // (tokens, dim)
};

// out[i] = x[rows[i]].
struct GatherRows {
  Tensor out;   // (n, dim)
  Tensor x;     // (tokens, dim)
  Tensor rows;  // (n) i32
};

// Every element = value.
struct Fill {
  Tensor out;  // (tokens, dim)
  float value;
};

// Copies with conversion between f32, bf16 and f16; strided rows allowed.
struct Copy {
  Tensor out, x;  // (tokens, dim)
};

// One part of one layer of the paged cache.
struct PagedCache {
  Tensor data;  // (blocks, block_tokens, width), f32 | bf16 | f16 | E4M3 | int8 with scales behind each row
  int64_t block_tokens() const { return data.dim(1); }
  int64_t width() const { return data.dim(2); }
};

// cache row of slots[t] = values[t]; slot = block * block_tokens + offset.
struct KvWrite {
  PagedCache cache;
  Tensor values;  // (tokens, width)
  Tensor slots;   // (tokens) i32
};

// * What stands between the projections of grouped-query attention and Attention: HeadNormRope of q and of k (halves), then KvWrite
// of k and v.
struct RopeKvWrite {
  Tensor q;                           // (tokens, heads, head_dim), in place
  Tensor k, v;                        // (tokens, kv_heads * head_dim); k in place
  Tensor q_weight{}, k_weight{};      // (head_dim) f32: norms, optional
  float eps;                          // of the norms
  Tensor positions, inv_freq, slots;  // (tokens) i32, (head_dim / 2), (tokens) i32
  float magnitude;
  PagedCache k_cache, v_cache;  // width = kv_heads * head_dim
};

// * The same of latent attention: RmsNorm of the latent's first columns, Rope (interleaved) of the rest, KvWrite of both. Beside it what
// does not depend on it: the norm of the low-rank query, or the rotation of a query that needs no further product.
struct LatentKvWrite {
  Tensor latent;                      // (tokens, kv_lora + rope), in place
  Tensor weight;                      // (kv_lora) f32
  Tensor q_low{}, q_low_weight{};     // (tokens, q_lora), in place, and (q_lora) f32: normed; optional
  Tensor q_pe{};                      // (tokens, heads, rope): rotated in place; optional
  float eps;                          // of the norms
  Tensor positions, inv_freq, slots;  // (tokens) i32, (rope / 2), (tokens) i32
  float magnitude;
  PagedCache cache;  // width = kv_lora + rope
};

// The rows of one sequence in this step. Query rows are [q_begin, q_begin + q_len) of the batch; row i sees the first
// kv_len - q_len + i + 1 tokens of the sequence.
struct SequenceSlice {
  int q_begin, q_len;
  int kv_len;             // tokens in the cache after this step's kv_write
  const int32_t* blocks;  // block ids of the sequence, ceil(kv_len / block_tokens) of them
  bool decode;            // generation step (absorbed MLA); false for prefill chunks of any length
};

// Causal attention with grouped heads over the paged cache: softmax(q k^T * scale) v, softmax in float. A row's result
// depends on its sequence alone, not on how its prefill was cut into chunks.
struct Attention {
  Tensor out, q;                // (tokens, heads, head_dim)
  PagedCache k_cache, v_cache;  // width = kv_heads * head_dim
  std::span<const SequenceSlice> sequences;
  int kv_heads;
  float scale;
  Arena* scratch;
};

// Multi-head latent attention. The cache row is [c (kv_lora) | k_pe (rope)]; per head h, k = [Wk_h c | k_pe], v = Wv_h c
// with [Wk_h; Wv_h] = rows of kv_b. Prefill rows may materialise k and v, decode rows may absorb Wk into q and Wv into
// the output: the same value up to rounding. Source: DeepSeek-V2 paper section 2.1; V3 inference/model.py.
struct MlaAttention {
  Tensor out;        // (tokens, heads, v_dim)
  Tensor q;          // (tokens, heads, nope + rope), rotated
  PagedCache cache;  // width = kv_lora + rope
  Weight kv_b;       // (heads * (nope + v_dim), kv_lora)
  std::span<const SequenceSlice> sequences;
  int nope, rope, v_dim, kv_lora;
  float scale;
  Arena* scratch;
};

enum class RouterScore { kSoftmax, kSigmoid };
enum class GroupScore { kMax, kTopTwoSum };  // V2 group_limited_greedy, V3 noaux_tc

// Router: scores -> (optional groups) -> top_k experts and their weights, ordered by falling selection score; equal
// scores go to the lower expert id.
struct MoeRoute {
  Tensor ids;      // (tokens, top_k) i32
  Tensor weights;  // (tokens, top_k)
  Tensor logits;   // (tokens, experts)
  Tensor bias{};   // (experts) f32, optional: added for the selection only (e_score_correction_bias)
  RouterScore score;
  GroupScore group_score;
  int groups, top_groups;  // 1, 1: no groups
  bool normalise;          // weights / (sum + 1e-20)
  float routed_scale;
};

struct Expert {
  Weight gate, up;  // (inner, dim)
  Weight down;      // (dim, inner)
};

// out[t] += sum over the token's experts in [first, first + experts.size()) of weight * down(silu(gate x) * up x).
struct MoeExperts {
  Tensor out, x;        // (tokens, dim)
  Tensor ids, weights;  // (tokens, top_k)
  std::span<const Expert> experts;
  int first;
  Arena* scratch;
};

// Rows of logits before a pick, in place: of each changed token
//   l = l > 0 ? l / repetition : l * repetition, less presence + frequency * outputs where outputs > 0 (outputs < 0: neither), in double;
//   l += bias (-inf: l = -inf);
// then l = -inf where the row's mask has no bit. Rows whose spec wants no candidates stay as they are.
struct AdjustLogits {
  Tensor logits;         // (rows, columns): tokens first_id, first_id + 1, ...
  Tensor specs;          // (rows, 16) i32: PickSpec (device/row_picks.h)
  Tensor changes;        // (n, 3) i32: LogitChange
  Tensor masks;          // (m, words) i32, bit id of a row: the token is allowed
  int32_t first_id = 0;  // of the first column, where the vocabulary is divided among ranks
};

// The largest logits of each row, its mass and the place of a draw: PickHeader. Exact, ties included (device/row_picks.h).
struct PickRows {
  Tensor out;      // (rows, pick_words(most, draw)) i32: PickHeader, logits, ids, chunk; rows without candidates stay as they are
  Tensor logits;   // (rows, columns), at most kMostPickColumns
  Tensor specs;    // (rows, 16) i32: PickSpec
  int most;        // candidates that a row of `out` has room for, at most kMostCandidates
  bool draw;       // whether it has room for a chunk
  Tensor scratch;  // (3, rows, ceil(columns / kChunk)) f32
  int32_t first_id = 0;
};

// X(method, Struct): every op once; decorators (checked, dry) are generated from this list.
#define DG_OPS(X)                   \
  X(embed, Embed)                   \
  X(linear, Linear)                 \
  X(linear_several, LinearSeveral)  \
  X(linear_glu, LinearGlu)          \
  X(rms_norm, RmsNorm)              \
  X(all_reduce, AllReduce)          \
  X(add_rms_norm, AddRmsNorm)       \
  X(rope, Rope)                     \
  X(head_norm_rope, HeadNormRope)   \
  X(act_mul, ActMul)                \
  X(add, Add)                       \
  X(gather_rows, GatherRows)        \
  X(fill, Fill)                     \
  X(copy, Copy)                     \
  X(kv_write, KvWrite)              \
  X(rope_kv_write, RopeKvWrite)     \
  X(latent_kv_write, LatentKvWrite) \
  X(attention, Attention)           \
  X(mla_attention, MlaAttention)    \
  X(moe_route, MoeRoute)            \
  X(moe_experts, MoeExperts)        \
  X(adjust_logits, AdjustLogits)    \
  X(pick_rows, PickRows)

}  // namespace dg
