// Attention on the GPU, and the sequences of a step as the kernels of attention and latent attention read them.
//
// Decode rows go to the split kernel, prefill rows to the tile kernel (a row of a prefill never depends on how the prefill was cut), and
// whatever these do not take - f32 caches, unusual heads - to the general kernel. How a step's decode rows are split follows from the
// number of sequences and the longest of them, so that a captured graph can be used while they grow.
#include "backends/cuda/attention.h"

#include <algorithm>

#include "backends/cuda/cuda_backend.h"
#include "device/cache_format.h"

namespace dg::cuda {
namespace {

constexpr int64_t kLongestSplit = 2048;  // positions: bounds how long a block works on one sequence of many

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Element element_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32: return Element::kF32;
    case Dtype::kBf16: return Element::kBf16;
    case Dtype::kF16: return Element::kF16;
    case Dtype::kF8E4m3: return Element::kE4m3;
    case Dtype::kI8: return Element::kInt8;
    default: CHECK(false) << "cache of " << dtype_name(dtype); return Element::kF32;
  }
}

}  // namespace

CacheView cache_view(const PagedCache& cache) {
  const Tensor& t = cache.data;
  CHECK(t.rank == 3 && (cache.width() <= 1 || t.stride[2] == 1) && is_cache_dtype(t.dtype));
  const auto bytes = static_cast<int64_t>(dtype_bytes(t.dtype));
  CHECK(t.stride[1] * bytes >= cache_row_bytes(t.dtype, cache.width())) << "cache rows of " << t.stride[1] << " elements";
  const int64_t block_bytes = t.stride[0] * bytes, row_bytes = t.stride[1] * bytes;
  return {.data = static_cast<const unsigned char*>(t.data),
          .element = element_of(t.dtype),
          .aligned = reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && block_bytes % 16 == 0 && row_bytes % 16 == 0,
          .block_bytes = block_bytes,
          .row_bytes = row_bytes,
          .block_tokens = static_cast<int>(cache.block_tokens()),
          .width = static_cast<int>(cache.width())};
}

SequenceArgs sequence_args(const DeviceSequences& s) {
  return {.q_begin = s.q_begin,
          .q_len = s.q_len,
          .kv_len = s.kv_len,
          .decode = s.decode,
          .first_block = s.first_block,
          .blocks = s.blocks,
          .row_sequence = s.row_sequence,
          .count = s.count,
          .tokens = s.tokens,
          .longest_prefill_q = s.longest_prefill_q,
          .longest_decode_q = s.longest_decode_q};
}

// Blocks work in waves of `at_once`, each for its range of positions and about `overhead` positions more: the number of ranges with the
// shortest time, if all sequences were as long as the longest. Shorter ones are cut into fewer ranges, none below `least`.
SplitPlan split_plan(int64_t units, int64_t longest_kv, int64_t at_once, int64_t shortest, int64_t overhead) {
  units = std::max<int64_t>(1, units);
  const int64_t fewest = std::max<int64_t>(1, ceil_div(longest_kv, kLongestSplit));
  const int64_t most = std::max(fewest, std::min(ceil_div(longest_kv, shortest), ceil_div(4 * at_once, units)));
  int64_t best = fewest, best_time = INT64_MAX;
  for (int64_t splits = fewest; splits <= most; splits++) {
    const int64_t time = ceil_div(units * splits, at_once) * (ceil_div(longest_kv, splits * 64) * 64 + overhead);
    if (time < best_time) best = splits, best_time = time;
  }
  const int64_t length = ceil_div(longest_kv, best * 64) * 64;
  const int64_t least = std::clamp<int64_t>(kLongestSplit * units / (2 * at_once) / 64 * 64, shortest, kLongestSplit);
  return {.splits = static_cast<int>(best), .least = static_cast<int>(std::max<int64_t>(64, std::min(least, length)))};
}

const DeviceSequences& CudaBackend::sequences(std::span<const SequenceSlice> slices, int64_t block_tokens) {
  if (step_begun_) return sequences_;
  const size_t count = slices.size();
  size_t tokens = 0;
  DeviceSequences s;
  for (const SequenceSlice& slice : slices) {
    CHECK(slice.q_begin >= 0 && slice.q_len >= 0 && slice.kv_len >= slice.q_len)
        << "rows " << slice.q_begin << " + " << slice.q_len << ", " << slice.kv_len << " cached";
    tokens = std::max(tokens, static_cast<size_t>(slice.q_begin) + static_cast<size_t>(slice.q_len));
    s.longest_kv = std::max(s.longest_kv, slice.kv_len);
    int& longest = slice.decode ? s.longest_decode_q : s.longest_prefill_q;
    longest = std::max(longest, slice.q_len);
    s.decode_count += slice.decode ? 1 : 0;
  }
  std::vector<int32_t>& words = sequence_words_;
  const size_t row_words = 5 * count, block_words = row_words + tokens;
  words.assign(block_words, -1);
  for (size_t i = 0; i < count; i++) {
    const SequenceSlice& slice = slices[i];
    words[i] = slice.q_begin;
    words[count + i] = slice.q_len;
    words[2 * count + i] = slice.kv_len;
    words[3 * count + i] = slice.decode ? 1 : 0;
    words[4 * count + i] = static_cast<int32_t>(words.size() - block_words);
    std::fill_n(words.begin() + static_cast<ptrdiff_t>(row_words) + slice.q_begin, slice.q_len, static_cast<int32_t>(i));
    words.insert(words.end(), slice.blocks, slice.blocks + ceil_div(slice.kv_len, block_tokens));
  }
  // With room to grow, so that the address stays.
  size_t bytes = size_t{1} << 20;
  while (bytes < words.size() * sizeof(int32_t)) bytes *= 2;
  auto* const device = static_cast<int32_t*>(workspace(Workspace::kSequences, bytes));
  if (sequences_.q_begin != device || words != uploaded_words_) {
    upload(device, words.data(), words.size() * sizeof(int32_t));
    uploaded_words_ = words;
  }
  s.q_begin = device;
  s.q_len = device + count;
  s.kv_len = device + 2 * count;
  s.decode = device + 3 * count;
  s.first_block = device + 4 * count;
  s.row_sequence = device + row_words;
  s.blocks = device + block_words;
  s.count = static_cast<int>(count);
  s.tokens = static_cast<int>(tokens);
  sequences_ = s;
  return sequences_;
}

void CudaBackend::attention(const Attention& op) {
  const int64_t heads = op.q.dim(1), dim = op.q.cols();
  CHECK(op.q.rank == 3 && op.out.rank == 3 && op.kv_heads > 0 && heads % op.kv_heads == 0);
  CHECK(op.out.dim(1) == heads && op.out.cols() == dim && op.out.rows() == op.q.rows());
  CHECK(op.k_cache.width() == op.kv_heads * dim && op.v_cache.width() == op.kv_heads * dim);
  CHECK(op.k_cache.data.dtype == op.v_cache.data.dtype && op.k_cache.block_tokens() == op.v_cache.block_tokens());
  CHECK((dim <= 1 || (op.q.stride[2] == 1 && op.out.stride[2] == 1)) && op.scale > 0);
  const DeviceSequences& s = sequences(op.sequences, op.k_cache.block_tokens());
  CHECK(s.tokens <= op.q.rows()) << s.tokens << " rows of " << op.q.rows();
  if (s.tokens == 0) return;
  const int group = static_cast<int>(heads) / op.kv_heads, head_dim = static_cast<int>(dim);
  const CacheView k = cache_view(op.k_cache), v = cache_view(op.v_cache);
  if (k.element == Element::kF32 || !fast_head_dim(dim)) {
    launch_attention_general({.q = op.q.f32(),
                              .out = op.out.f32(),
                              .q_row = op.q.stride[0],
                              .q_head = op.q.stride[1],
                              .out_row = op.out.stride[0],
                              .out_head = op.out.stride[1],
                              .k = k,
                              .v = v,
                              .sequences = sequence_args(s),
                              .row_begin = 0,
                              .row_end = s.tokens,
                              .heads = static_cast<int>(heads),
                              .group = group,
                              .k_dim = head_dim,
                              .v_dim = head_dim,
                              .scale = op.scale},
                             stream_);
    DG_CUDA(cudaPeekAtLastError());
    return;
  }
  AttentionArgs args{.q = op.q.f32(),
                     .out = op.out.f32(),
                     .q_row = op.q.stride[0],
                     .q_head = op.q.stride[1],
                     .out_row = op.out.stride[0],
                     .out_head = op.out.stride[1],
                     .k = k,
                     .v = v,
                     .sequences = sequence_args(s),
                     .kv_heads = op.kv_heads,
                     .group = group,
                     .scale = op.scale,
                     .plan = {},
                     .partials = nullptr,
                     .sums = nullptr,
                     .counters = nullptr,
                     .q_by_two = reinterpret_cast<uintptr_t>(op.q.data) % 8 == 0 && op.q.stride[0] % 2 == 0 && op.q.stride[1] % 2 == 0};
  if (s.longest_decode_q > 0) {
    const int64_t units = s.decode_count * op.kv_heads * ceil_div(int64_t{s.longest_decode_q} * group, 16);
    args.plan = split_plan(units, s.longest_kv, 2 * multiprocessors(), 64, 64);
    if (args.plan.splits > 1) {
      const auto results = static_cast<size_t>(int64_t{s.count} * s.longest_decode_q * heads * args.plan.splits);
      const size_t partial_bytes = results * static_cast<size_t>(dim) * sizeof(float);
      auto* const memory = static_cast<std::byte*>(workspace(Workspace::kAttention, partial_bytes + results * sizeof(float2)));
      args.partials = reinterpret_cast<float*>(memory);
      args.sums = reinterpret_cast<float2*>(memory + partial_bytes);
      args.counters =
          static_cast<unsigned*>(workspace(Workspace::kCounters, static_cast<size_t>(decode_counters(args)) * sizeof(unsigned)));
    }
    launch_attention_decode(args, head_dim, stream_);
    DG_CUDA(cudaPeekAtLastError());
  }
  if (s.longest_prefill_q > 0) {
    launch_attention_prefill(args, head_dim, stream_);
    DG_CUDA(cudaPeekAtLastError());
  }
}

}  // namespace dg::cuda
