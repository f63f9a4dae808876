// Attention: cut into (sequence, head, row block) pieces that do not depend on each other.
#include <algorithm>

#include "backends/cpu/cpu_backend.h"
#include "device/scratch.h"

namespace dg {
namespace {

Element cache_element(const PagedCache& cache) {
  switch (cache.data.dtype) {
    case Dtype::kF32: return Element::kF32;
    case Dtype::kBf16: return Element::kBf16;
    case Dtype::kF16: return Element::kF16;
    default: CHECK(false) << "cache of " << dtype_name(cache.data.dtype); return Element::kF32;
  }
}

CacheView view(const PagedCache& cache, const SequenceSlice& s, int64_t first_column) {
  CHECK(cache.data.rank == 3 && (cache.width() <= 1 || cache.data.stride[2] == 1));
  const auto* data = static_cast<const std::byte*>(cache.data.data) + first_column * static_cast<int64_t>(dtype_bytes(cache.data.dtype));
  return {.data = data,
          .element = cache_element(cache),
          .block_stride = cache.data.stride[0],
          .row_stride = cache.data.stride[1],
          .block_tokens = cache.block_tokens(),
          .blocks = s.blocks};
}

void check_slice(const SequenceSlice& s, int64_t tokens) {
  CHECK(s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + int64_t{s.q_len} <= tokens && s.kv_len >= s.q_len)
      << "rows " << s.q_begin << " + " << s.q_len << " of " << tokens << ", " << s.kv_len << " cached";
}

}  // namespace

void CpuBackend::attention(const Attention& op) {
  const int64_t heads = op.q.dim(1), dim = op.q.cols();
  CHECK(op.kv_heads > 0 && heads % op.kv_heads == 0 && op.out.dim(1) == heads && op.out.cols() == dim);
  CHECK(op.k_cache.width() == op.kv_heads * dim && op.v_cache.width() == op.kv_heads * dim);
  CHECK(op.q.stride[2] == 1 && op.out.stride[2] == 1);
  const int64_t group = heads / op.kv_heads;
  const int64_t heads_per_task = std::min(group, kRowBlock), rows_per_task = kRowBlock / heads_per_task;
  reserve_scratch(attention_scratch_floats(dim, dim));
  attention_tasks_.clear();
  for (const SequenceSlice& s : op.sequences) {
    check_slice(s, op.q.rows());
    for (int64_t kv_head = 0; kv_head < op.kv_heads; kv_head++)
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head += heads_per_task)
        for (int64_t row = 0; row < s.q_len; row += rows_per_task)
          attention_tasks_.push_back({.q = op.q.f32(s.q_begin),
                                      .q_row_stride = op.q.stride[0],
                                      .q_head_stride = op.q.stride[1],
                                      .out = op.out.f32(s.q_begin),
                                      .out_row_stride = op.out.stride[0],
                                      .out_head_stride = op.out.stride[1],
                                      .row_begin = row,
                                      .row_end = std::min<int64_t>(s.q_len, row + rows_per_task),
                                      .head_begin = head,
                                      .head_end = std::min((kv_head + 1) * group, head + heads_per_task),
                                      .visible = s.kv_len - s.q_len + 1,
                                      .k = view(op.k_cache, s, kv_head * dim),
                                      .v = view(op.v_cache, s, kv_head * dim),
                                      .k_width = dim,
                                      .v_width = dim,
                                      .scale = op.scale,
                                      .scratch = nullptr});
  }
  pool_.parallel_for(static_cast<int64_t>(attention_tasks_.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) {
      AttentionTask task = attention_tasks_[static_cast<size_t>(i)];
      task.scratch = scratch(worker);
      kernels_->attention(task);
    }
  });
}

void CpuBackend::mla_attention(const MlaAttention& op) {
  const int64_t heads = op.q.dim(1);
  CHECK(op.kv_b.out == heads * (op.nope + op.v_dim) && op.kv_b.in == op.kv_lora && op.cache.width() == op.kv_lora + op.rope);
  CHECK(op.q.cols() == op.nope + op.rope && op.out.cols() == op.v_dim && op.out.dim(1) == heads);
  CHECK(op.q.stride[2] == 1 && op.out.stride[2] == 1);
  for (const SequenceSlice& s : op.sequences) check_slice(s, op.q.rows());
  mla_prefill(op);
  mla_decode(op);
}

// k and v of a head are made from the latent rows tile by tile and used for all rows of the slice: 64 (nope + v_dim)
// kv_lora multiply-adds per tile and head, against 64 (nope + rope + v_dim) per row.
void CpuBackend::mla_prefill(const MlaAttention& op) {
  const int64_t heads = op.q.dim(1);
  int64_t most_rows = 0;
  prefill_tasks_.clear();
  for (const SequenceSlice& s : op.sequences) {
    if (s.decode) continue;
    most_rows = std::max<int64_t>(most_rows, s.q_len);
    for (int64_t h = 0; h < heads && s.q_len > 0; h++)
      prefill_tasks_.push_back({.q = op.q.f32(s.q_begin, h),
                                .q_row_stride = op.q.stride[0],
                                .out = op.out.f32(s.q_begin, h),
                                .out_row_stride = op.out.stride[0],
                                .rows = s.q_len,
                                .visible = s.kv_len - s.q_len + 1,
                                .cache = view(op.cache, s, 0),
                                .kv_b = matrix(op.kv_b),
                                .head = h,
                                .nope = op.nope,
                                .rope = op.rope,
                                .v_dim = op.v_dim,
                                .kv_lora = op.kv_lora,
                                .scale = op.scale,
                                .scratch = nullptr});
  }
  if (prefill_tasks_.empty()) return;
  reserve_scratch(mla_prefill_scratch_floats(most_rows, op.nope, op.rope, op.v_dim, op.kv_lora));
  pool_.parallel_for(static_cast<int64_t>(prefill_tasks_.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) {
      MlaPrefillTask task = prefill_tasks_[static_cast<size_t>(i)];
      task.scratch = scratch(worker);
      kernels_->mla_prefill(task);
    }
  });
}

// Wk goes into the query, so the latent rows serve as keys and values of all heads; Wv is applied to the result.
void CpuBackend::mla_decode(const MlaAttention& op) {
  const int64_t heads = op.q.dim(1), width = op.kv_lora + op.rope, head_rows = op.nope + op.v_dim;
  int64_t tokens = 0, slices = 0;
  for (const SequenceSlice& s : op.sequences)
    if (s.decode && s.q_len > 0) tokens += s.q_len, slices++;
  if (tokens == 0) return;
  Arena::Scope scope(*op.scratch);
  Tensor latent_q = op.scratch->alloc({tokens * heads, width});
  Tensor latent_out = op.scratch->alloc({tokens * heads, op.kv_lora});
  int32_t* rows = op.scratch->alloc(Dtype::kI32, {tokens}).i32();
  reserve_scratch(std::max({mla_absorb_scratch_floats(op.nope, op.kv_lora), mla_decode_scratch_floats(op.kv_lora, op.rope),
                            matmul_scratch_floats(tokens, op.kv_lora, false)}));

  decode_tasks_.clear();
  int64_t t = 0;
  for (const SequenceSlice& s : op.sequences) {
    if (!s.decode || s.q_len == 0) continue;
    const int64_t pairs = s.q_len * heads;
    // Heads of one sequence are shared out only when there are fewer sequences than threads.
    const int64_t pieces = std::max((pairs + kMlaRowBlock - 1) / kMlaRowBlock, (pool_.threads() + slices - 1) / slices);
    const int64_t step = std::max<int64_t>(4, (pairs + pieces - 1) / pieces);
    for (int64_t p = 0; p < pairs; p += step)
      decode_tasks_.push_back({.q = latent_q.f32(t * heads),
                               .out = latent_out.f32(t * heads),
                               .pair_begin = p,
                               .pair_end = std::min(pairs, p + step),
                               .heads = heads,
                               .visible = s.kv_len - s.q_len + 1,
                               .cache = view(op.cache, s, 0),
                               .kv_lora = op.kv_lora,
                               .rope = op.rope,
                               .scale = op.scale,
                               .scratch = nullptr});
    for (int i = 0; i < s.q_len; i++) rows[t++] = s.q_begin + i;
  }
  const Matrix kv_b = matrix(op.kv_b);
  pool_.parallel_for(heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t h = begin; h < end; h++)
      kernels_->mla_absorb({.q = op.q.f32(0, h),
                            .q_rows = rows,
                            .q_row_stride = op.q.stride[0],
                            .latent = latent_q.f32(h),
                            .latent_stride = heads * width,
                            .tokens = tokens,
                            .kv_b = kv_b,
                            .head = h,
                            .nope = op.nope,
                            .rope = op.rope,
                            .v_dim = op.v_dim,
                            .kv_lora = op.kv_lora,
                            .scratch = scratch(worker)});
  });
  pool_.parallel_for(static_cast<int64_t>(decode_tasks_.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) {
      MlaDecodeTask task = decode_tasks_[static_cast<size_t>(i)];
      task.scratch = scratch(worker);
      kernels_->mla_decode(task);
    }
  });
  pool_.parallel_for(heads, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t h = begin; h < end; h++) {
      MatmulArgs args{};
      args.w = kv_b, args.first_row = h * head_rows + op.nope;
      args.x = latent_out.f32(h), args.x_stride = heads * op.kv_lora;
      args.out = op.out.f32(0, h), args.out_rows = rows, args.out_stride = op.out.stride[0];
      args.tokens = tokens;
      args.scratch = scratch(worker);
      kernels_->matmul(args, 0, op.v_dim);
    }
  });
}

}  // namespace dg
