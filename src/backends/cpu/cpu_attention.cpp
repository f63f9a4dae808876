// Attention: cut into pieces that do not depend on each other.
//
// Decode splits the positions of a row into ranges of 512 (longer behind 16384 positions, so that a row has at most 32)
// whose partial results are merged in order (FlashDecoding, Dao et al. 2023): where the ranges end depends on the row's own
// position alone, so neither threads nor the batch show in a result. Prefill tasks take all positions of some rows.
#include <algorithm>

#include "backends/cpu/cpu_backend.h"
#include "device/cache_format.h"
#include "device/scratch.h"

namespace dg {
namespace {

constexpr int64_t kSplitTokens = 512, kMostSplits = 32;
constexpr int64_t kDecodePairs = 128;                 // (row, head) pairs that share a read of the cache
constexpr int64_t kPartialFloats = int64_t{8} << 20;  // partial results kept at a time, if more than one unit

CacheView view(const PagedCache& cache, const SequenceSlice& s) {
  const Tensor& t = cache.data;
  CHECK(t.rank == 3 && (cache.width() <= 1 || t.stride[2] == 1));
  const auto bytes = static_cast<int64_t>(dtype_bytes(t.dtype));
  CHECK(t.stride[1] * bytes >= cache_row_bytes(t.dtype, cache.width())) << "cache rows of " << t.stride[1] << " elements";
  return {.data = t.data,
          .element = cache_element(cache),
          .block_bytes = t.stride[0] * bytes,
          .row_bytes = t.stride[1] * bytes,
          .block_tokens = cache.block_tokens(),
          .width = cache.width(),
          .column = 0,
          .blocks = s.blocks};
}

void check_slice(const SequenceSlice& s, int64_t tokens) {
  CHECK(s.q_begin >= 0 && s.q_len >= 0 && s.q_begin + int64_t{s.q_len} <= tokens && s.kv_len >= s.q_len)
      << "rows " << s.q_begin << " + " << s.q_len << " of " << tokens << ", " << s.kv_len << " cached";
}

// Length of the ranges of a row that sees `visible` positions.
int64_t split_tokens(int64_t visible) {
  return kSplitTokens * std::max<int64_t>(1, (visible + kSplitTokens * kMostSplits - 1) / (kSplitTokens * kMostSplits));
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [row, row + rows) of a task that has all rows of its slice.
AttentionTask some_rows(AttentionTask t, int64_t row, int64_t rows) {
  t.q += row * t.q_row_stride;
  t.out += row * t.out_row_stride;
  t.visible += row;
  t.rows = rows;
  t.end = t.visible + rows - 1;
  return t;
}

AttentionTask some_kv_heads(AttentionTask t, int64_t first, int64_t count) {
  t.q += first * t.group * t.q_head_stride;
  t.out += first * t.group * t.out_head_stride;
  t.k.column += first * t.k_width;
  t.v.column += first * t.v_width;
  t.kv_heads = count;
  return t;
}

// For a task of one kv head.
AttentionTask some_heads(AttentionTask t, int64_t first, int64_t count) {
  t.q += first * t.q_head_stride;
  t.out += first * t.out_head_stride;
  t.group = count;
  return t;
}

}  // namespace

CacheElement cache_element(const PagedCache& cache) {
  switch (cache.data.dtype) {
    case Dtype::kF32: return CacheElement::kF32;
    case Dtype::kBf16: return CacheElement::kBf16;
    case Dtype::kF16: return CacheElement::kF16;
    case Dtype::kF8E4m3: return CacheElement::kFp8;
    case Dtype::kI8: return CacheElement::kInt8;
    default: CHECK(false) << "cache of " << dtype_name(cache.data.dtype); return CacheElement::kF32;
  }
}

void CpuBackend::attention(const Attention& op) {
  const int64_t heads = op.q.dim(1), dim = op.q.cols();
  CHECK(op.kv_heads > 0 && heads % op.kv_heads == 0 && op.out.dim(1) == heads && op.out.cols() == dim);
  CHECK(op.k_cache.width() == op.kv_heads * dim && op.v_cache.width() == op.kv_heads * dim);
  CHECK(op.q.stride[2] == 1 && op.out.stride[2] == 1);
  const int64_t group = heads / op.kv_heads;
  attention_tasks_.clear();
  decode_units_.clear();
  int64_t prefill_rows = 0;
  for (const SequenceSlice& s : op.sequences) {
    check_slice(s, op.q.rows());
    if (!s.decode) prefill_rows += s.q_len;
  }
  // Many pairs share the reading and packing of K and V; fewer when there would not be enough tasks for the threads.
  int64_t most_pairs = kAttentionPairs;
  while (most_pairs > 64 && prefill_rows * heads < 4 * most_pairs * pool_.threads()) most_pairs /= 2;
  const int64_t heads_per_task = std::min(group, most_pairs), rows_per_task = most_pairs / heads_per_task;
  for (const SequenceSlice& s : op.sequences) {
    if (s.q_len == 0) continue;
    const AttentionTask whole = {.q = op.q.f32(s.q_begin),
                                 .q_row_stride = op.q.stride[0],
                                 .q_head_stride = op.q.stride[1],
                                 .out = op.out.f32(s.q_begin),
                                 .out_row_stride = op.out.stride[0],
                                 .out_head_stride = op.out.stride[1],
                                 .rows = s.q_len,
                                 .kv_heads = op.kv_heads,
                                 .group = group,
                                 .visible = s.kv_len - s.q_len + 1,
                                 .begin = 0,
                                 .end = s.kv_len,
                                 .cached = s.kv_len,
                                 .k = view(op.k_cache, s),
                                 .v = view(op.v_cache, s),
                                 .k_width = dim,
                                 .v_width = dim,
                                 .scale = op.scale,
                                 .partial = false,
                                 .scratch = nullptr};
    if (s.decode) {
      add_decode(whole);
      continue;
    }
    for (int64_t h = 0; h < op.kv_heads; h++)
      for (int64_t head = 0; head < group; head += heads_per_task)
        for (int64_t row = 0; row < s.q_len; row += rows_per_task)
          attention_tasks_.push_back(some_heads(some_rows(some_kv_heads(whole, h, 1), row, std::min<int64_t>(rows_per_task, s.q_len - row)),
                                                head, std::min(heads_per_task, group - head)));
  }
  run_attention_tasks();
  run_decode();
}

void CpuBackend::run_attention_tasks() {
  if (attention_tasks_.empty()) return;
  int64_t floats = 0;
  for (const AttentionTask& t : attention_tasks_)
    floats = std::max(floats, attention_scratch_floats(t.rows * t.group, t.kv_heads, t.k_width, t.v_width));
  reserve_scratch(floats);
  pool_.parallel_for(static_cast<int64_t>(attention_tasks_.size()), 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) {
      AttentionTask task = attention_tasks_[static_cast<size_t>(i)];
      task.scratch = scratch(worker);
      kernels_->attention(task);
    }
  });
  attention_tasks_.clear();
}

// Cuts a slice into units of rows that share a read of the cache and the same ranges.
void CpuBackend::add_decode(const AttentionTask& whole) {
  const int64_t heads = whole.kv_heads * whole.group, most = std::max<int64_t>(1, kDecodePairs / heads);
  for (int64_t row = 0; row < whole.rows;) {
    const int64_t length = split_tokens(whole.visible + row);
    int64_t n = std::min(most, whole.rows - row);
    while (n > 1 && split_tokens(whole.visible + row + n - 1) != length) n--;
    const AttentionTask task = some_rows(whole, row, n);
    decode_units_.push_back({.task = task, .split_tokens = length, .splits = ceil_div(task.end, length), .partials = 0});
    row += n;
  }
}

void CpuBackend::run_decode() {
  for (size_t begin = 0; begin < decode_units_.size();) {
    int64_t floats = 0;
    size_t end = begin;
    for (; end < decode_units_.size(); end++) {
      DecodeUnit& u = decode_units_[end];
      const int64_t needed = u.splits > 1 ? u.splits * u.task.rows * u.task.kv_heads * u.task.group * partial_floats(u.task.v_width) : 0;
      if (end > begin && floats + needed > kPartialFloats) break;
      u.partials = floats;
      floats += needed;
    }
    run_decode_units(begin, end, floats);
    begin = end;
  }
}

void CpuBackend::run_decode_units(size_t first, size_t last, int64_t floats) {
  if (static_cast<size_t>(floats) * sizeof(float) > partials_.bytes()) {
    partials_ = HugeMemory();
    auto memory = HugeMemory::allocate(static_cast<size_t>(floats) * sizeof(float), "partial results of attention");
    CHECK(memory.ok()) << memory.error().message;
    partials_ = std::move(memory).value();
  }
  auto* partials = reinterpret_cast<float*>(partials_.data());
  int64_t pieces = 0;
  for (size_t i = first; i < last; i++) pieces += decode_units_[i].splits;
  // Heads are shared out only when there are too few ranges.
  const int64_t cuts = ceil_div(2 * pool_.threads(), std::max<int64_t>(1, pieces));
  merges_.clear();
  for (size_t i = first; i < last; i++) {
    const DecodeUnit& u = decode_units_[i];
    const int64_t heads = u.task.kv_heads * u.task.group, stride = partial_floats(u.task.v_width), split = u.task.rows * heads * stride;
    for (int64_t s = 0; s < u.splits; s++) {
      AttentionTask t = u.task;
      t.begin = s * u.split_tokens;
      t.end = std::min(u.task.end, t.begin + u.split_tokens);
      if (u.splits > 1) {
        t.partial = true;
        t.out = partials + u.partials + s * split;
        t.out_row_stride = heads * stride, t.out_head_stride = stride;
      }
      if (t.kv_heads > 1) {
        const int64_t step = ceil_div(t.kv_heads, cuts);
        for (int64_t h = 0; h < t.kv_heads; h += step) attention_tasks_.push_back(some_kv_heads(t, h, std::min(step, t.kv_heads - h)));
      } else {
        const int64_t step = pad16(ceil_div(t.group, cuts));
        for (int64_t h = 0; h < t.group; h += step) attention_tasks_.push_back(some_heads(t, h, std::min(step, t.group - h)));
      }
    }
    if (u.splits == 1) continue;
    for (int64_t row = 0; row < u.task.rows; row++)
      for (int64_t h = 0; h < heads; h++)
        merges_.push_back({.parts = partials + u.partials + (row * heads + h) * stride,
                           .splits = u.splits,
                           .split_stride = split,
                           .v_width = u.task.v_width,
                           .out = u.task.out + row * u.task.out_row_stride + h * u.task.out_head_stride});
  }
  run_attention_tasks();
  pool_.parallel_for(static_cast<int64_t>(merges_.size()), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) kernels_->attention_merge(merges_[static_cast<size_t>(i)]);
  });
}

void CpuBackend::mla_attention(const MlaAttention& op) {
  const int64_t heads = op.q.dim(1);
  CHECK(op.kv_b.out == heads * (op.nope + op.v_dim) && op.kv_b.in == op.kv_lora && op.cache.width() == op.kv_lora + op.rope);
  CHECK(op.q.cols() == op.nope + op.rope && op.out.cols() == op.v_dim && op.out.dim(1) == heads);
  CHECK(op.q.stride[2] == 1 && op.out.stride[2] == 1 && !op.kv_b.prepared);
  for (const SequenceSlice& s : op.sequences) check_slice(s, op.q.rows());
  mla_prefill(op);
  mla_decode(op);
}

// k and v of a head are made from the latent rows tile by tile and used for all rows of the task: 64 (nope + v_dim) kv_lora
// multiply-adds per tile and head, against 64 (nope + rope + v_dim) per row.
void CpuBackend::mla_prefill(const MlaAttention& op) {
  const int64_t heads = op.q.dim(1);
  int64_t most_rows = 0, slices = 0;
  prefill_tasks_.clear();
  for (const SequenceSlice& s : op.sequences)
    if (!s.decode && s.q_len > 0) slices++;
  if (slices == 0) return;
  const int64_t cuts = ceil_div(pool_.threads(), heads * slices);  // rows are shared out only when there are too few heads
  for (const SequenceSlice& s : op.sequences) {
    if (s.decode || s.q_len == 0) continue;
    const int64_t step = std::min(kMlaRows, pad16(ceil_div(s.q_len, cuts)));
    most_rows = std::max(most_rows, std::min<int64_t>(step, s.q_len));
    for (int64_t h = 0; h < heads; h++)
      for (int64_t row = 0; row < s.q_len; row += step)
        prefill_tasks_.push_back({.q = op.q.f32(s.q_begin + row, h),
                                  .q_row_stride = op.q.stride[0],
                                  .out = op.out.f32(s.q_begin + row, h),
                                  .out_row_stride = op.out.stride[0],
                                  .rows = std::min<int64_t>(step, s.q_len - row),
                                  .visible = s.kv_len - s.q_len + 1 + row,
                                  .cache = view(op.cache, s),
                                  .kv_b = matrix(op.kv_b),
                                  .head = h,
                                  .nope = op.nope,
                                  .rope = op.rope,
                                  .v_dim = op.v_dim,
                                  .kv_lora = op.kv_lora,
                                  .scale = op.scale,
                                  .scratch = nullptr});
  }
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
  const int64_t heads = op.q.dim(1), width = op.kv_lora + op.rope;
  int64_t tokens = 0;
  for (const SequenceSlice& s : op.sequences)
    if (s.decode) tokens += s.q_len;
  if (tokens == 0) return;
  Arena::Scope scope(*op.scratch);
  Tensor latent_q = op.scratch->alloc({tokens * heads, width});
  Tensor latent_out = op.scratch->alloc({tokens * heads, op.kv_lora});
  int32_t* rows = op.scratch->alloc(Dtype::kI32, {tokens}).i32();

  attention_tasks_.clear();
  decode_units_.clear();
  int64_t t = 0;
  for (const SequenceSlice& s : op.sequences) {
    if (!s.decode || s.q_len == 0) continue;
    const CacheView cache = view(op.cache, s);
    add_decode({.q = latent_q.f32(t * heads),
                .q_row_stride = heads * width,
                .q_head_stride = width,
                .out = latent_out.f32(t * heads),
                .out_row_stride = heads * op.kv_lora,
                .out_head_stride = op.kv_lora,
                .rows = s.q_len,
                .kv_heads = 1,
                .group = heads,
                .visible = s.kv_len - s.q_len + 1,
                .begin = 0,
                .end = s.kv_len,
                .cached = s.kv_len,
                .k = cache,
                .v = cache,
                .k_width = width,
                .v_width = op.kv_lora,
                .scale = op.scale,
                .partial = false,
                .scratch = nullptr});
    for (int i = 0; i < s.q_len; i++) rows[t++] = s.q_begin + i;
  }
  reserve_scratch(mla_project_scratch_floats(op.nope, op.kv_lora));
  MlaProjectTask project = {.x = nullptr,
                            .x_rows = rows,
                            .x_stride = op.q.stride[0],
                            .out = nullptr,
                            .out_rows = nullptr,
                            .out_stride = heads * width,
                            .tokens = tokens,
                            .kv_b = matrix(op.kv_b),
                            .head = 0,
                            .nope = op.nope,
                            .rope = op.rope,
                            .v_dim = op.v_dim,
                            .kv_lora = op.kv_lora,
                            .element = cache_element(op.cache),
                            .scratch = nullptr};
  auto for_heads = [&](auto kernel, auto place) {
    pool_.parallel_for(heads, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t h = begin; h < end; h++) {
        MlaProjectTask task = project;
        task.head = h;
        task.scratch = scratch(worker);
        place(task);
        kernel(task);
      }
    });
  };
  for_heads(kernels_->mla_absorb, [&](MlaProjectTask& task) { task.x = op.q.f32(0, task.head), task.out = latent_q.f32(task.head); });
  run_decode();
  project.x_rows = nullptr, project.x_stride = heads * op.kv_lora;
  project.out_rows = rows, project.out_stride = op.out.stride[0];
  for_heads(kernels_->mla_output, [&](MlaProjectTask& task) { task.x = latent_out.f32(task.head), task.out = op.out.f32(0, task.head); });
}

}  // namespace dg
