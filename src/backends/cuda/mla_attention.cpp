// Multi-head latent attention on the GPU.
//
// Decode rows and short prefills: in absorbed form. q_latent = Wk^T q for every head, attention over the latent rows that all heads share,
// out = Wv out_latent. The latent queries and results of some hundred rows at a time stand in the workspace.
// Long prefills: k and v are made from the latent rows of the context, for as many heads at a time as the workspace holds. Both forms are
// the same up to rounding; a prefill cut into chunks on both sides of kMadeRows rows shows it.
//
// kv_b is wanted as bf16 rows; a weight of another format is decoded at its first use and kept (heads x (nope + v_dim) x kv_lora x 2
// bytes for a layer). The exact path (f32 cache, unusual sizes) decodes to f32 at every call.
#include <algorithm>
#include <cstring>

#include "backends/cuda/attention.h"
#include "backends/cuda/kernels/decode_weight.h"

namespace dg::cuda {
namespace {

constexpr int64_t kWindowBytes = int64_t{256} << 20;  // of latent queries and results
constexpr int64_t kMadeBytes = int64_t{512} << 20;    // of keys and values
constexpr int kMadeRows = 160;                        // from here on making k and v takes less time: mla_prefill.cu

size_t align256(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Whether a row of [begin, end) belongs to a sequence of this kind.
bool any_rows(std::span<const SequenceSlice> slices, bool decode, int64_t begin, int64_t end) {
  return std::any_of(slices.begin(), slices.end(), [&](const SequenceSlice& s) {
    return s.decode == decode && s.q_len > 0 && s.q_begin < end && s.q_begin + int64_t{s.q_len} > begin;
  });
}

}  // namespace

struct CudaBackend::LatentWeights {
  struct Entry {
    Weight weight;
    void* decoded;
  };
  std::vector<Entry> entries;
  uint64_t freed = 0;

  ~LatentWeights() { clear(); }
  void clear() {
    for (const Entry& e : entries) cudaFree(e.decoded);
    entries.clear();
  }
};

const void* CudaBackend::latent_weight(const Weight& kv_b, bool bf16, bool& settled) {
  settled = true;
  CHECK(!kv_b.prepared && !kv_b.columns) << "kv_b is read by rows, as published";
  if (std::strcmp(kv_b.format->name, bf16 ? "bf16" : "f32") == 0 && reinterpret_cast<uintptr_t>(kv_b.data) % 16 == 0) return kv_b.data;
  const auto elements = static_cast<size_t>(kv_b.out * kv_b.in);
  settled = false;
  if (!bf16 || mapped_) {  // with mapped memory, weights are any memory of the host's and may change
    void* const decoded = workspace(Workspace::kWeights, elements * (bf16 ? 2 : sizeof(float)));
    launch_decode_weight(kv_b, decoded, bf16, 0, kv_b.out, stream_);
    return decoded;
  }
  if (!latent_weights_) latent_weights_ = std::make_shared<LatentWeights>();
  LatentWeights& kept = *latent_weights_;
  if (const uint64_t freed = freed_->load(); kept.freed != freed) kept.clear(), kept.freed = freed;
  for (const LatentWeights::Entry& e : kept.entries)
    if (e.weight.data == kv_b.data && e.weight.scales == kv_b.scales && e.weight.format == kv_b.format && e.weight.out == kv_b.out &&
        e.weight.in == kv_b.in) {
      settled = true;
      return e.decoded;
    }
  void* decoded = nullptr;
  use_device(device_);
  DG_CUDA(cudaMalloc(&decoded, elements * 2));
  kept.entries.push_back({kv_b, decoded});
  launch_decode_weight(kv_b, decoded, true, 0, kv_b.out, stream_);
  return decoded;
}

void CudaBackend::mla_attention(const MlaAttention& op) {
  const int64_t heads = op.q.dim(1), latent_row = op.kv_lora + op.rope;
  CHECK(op.q.rank == 3 && op.out.rank == 3 && op.kv_b.out == heads * (op.nope + op.v_dim) && op.kv_b.in == op.kv_lora);
  CHECK(op.cache.width() == latent_row && op.q.cols() == op.nope + op.rope && op.out.cols() == op.v_dim && op.out.dim(1) == heads);
  CHECK(op.out.rows() == op.q.rows() && (op.q.cols() <= 1 || op.q.stride[2] == 1) && (op.v_dim <= 1 || op.out.stride[2] == 1));
  CHECK(op.scale > 0);
  const DeviceSequences& s = sequences(op.sequences, op.cache.block_tokens());
  CHECK(s.tokens <= op.q.rows()) << s.tokens << " rows of " << op.q.rows();
  if (s.tokens == 0) return;
  const bool exact = op.cache.data.dtype == Dtype::kF32 || !fast_latent(op.kv_lora, op.rope, op.nope, op.v_dim);
  bool settled = false;
  const void* const weight = latent_weight(op.kv_b, !exact, settled);
  // Runs of neighbouring rows in absorbed form.
  int64_t begin = 0, end = 0;
  for (size_t i = 0; i < op.sequences.size(); i++) {
    const SequenceSlice& slice = op.sequences[i];
    if (slice.q_len == 0) continue;
    if (!exact && !slice.decode && slice.q_len >= kMadeRows && made_latent(op.nope, op.v_dim)) {
      mla_made(op, slice, s.blocks + sequence_words_[4 * op.sequences.size() + i], weight);
      continue;
    }
    if (slice.q_begin != end) {
      mla_absorbed(op, weight, exact, settled, begin, end);
      begin = slice.q_begin;
    }
    end = slice.q_begin + slice.q_len;
  }
  mla_absorbed(op, weight, exact, settled, begin, end);
}

void CudaBackend::mla_made(const MlaAttention& op, const SequenceSlice& slice, const int32_t* blocks, const void* weight) {
  const int64_t heads = op.q.dim(1), made_row = op.nope + op.v_dim, kv_len = slice.kv_len;
  const int64_t most = std::clamp<int64_t>(kMadeBytes / (kv_len * made_row * 2), 1, heads), passes = (heads + most - 1) / most;
  const int64_t each = (heads + passes - 1) / passes;
  const size_t latent_space = align256(static_cast<size_t>(kv_len * (kLatent + kLatentRope)) * 2);
  auto* const memory =
      static_cast<std::byte*>(workspace(Workspace::kAttention, latent_space + static_cast<size_t>(kv_len * each * made_row) * 2));
  auto* const latent = reinterpret_cast<uint16_t*>(memory);
  launch_gather_latent(cache_view(op.cache), blocks, slice.kv_len, latent, stream_);
  for (int64_t head = 0; head < heads; head += each) {
    const MadeArgs args{.q = op.q.f32(slice.q_begin, head),
                        .out = op.out.f32(slice.q_begin, head),
                        .q_row = op.q.stride[0],
                        .q_head = op.q.stride[1],
                        .out_row = op.out.stride[0],
                        .out_head = op.out.stride[1],
                        .weight = static_cast<const uint16_t*>(weight) + head * made_row * kLatent,
                        .latent = latent,
                        .made = reinterpret_cast<uint16_t*>(memory + latent_space),
                        .q_len = slice.q_len,
                        .kv_len = slice.kv_len,
                        .heads = static_cast<int>(std::min(each, heads - head)),
                        .scale = op.scale};
    launch_make_keys_values(args, stream_);
    launch_made_attention(args, stream_);
  }
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::mla_absorbed(const MlaAttention& op, const void* weight, bool exact, bool settled, int64_t first, int64_t last) {
  if (first == last) return;
  const DeviceSequences& s = sequences_;
  const int64_t heads = op.q.dim(1), latent_row = op.kv_lora + op.rope;
  const CacheView cache = cache_view(op.cache);
  const size_t each = exact ? 4 : 2;
  const auto query_bytes = static_cast<size_t>(heads * latent_row) * each, result_bytes = static_cast<size_t>(heads * op.kv_lora) * each;
  const int64_t window = std::clamp<int64_t>(kWindowBytes / static_cast<int64_t>(query_bytes + result_bytes), 1, last - first);
  SplitPlan plan;
  size_t results = 0;
  if (!exact && any_rows(op.sequences, true, first, last)) {
    const int64_t pairs = std::min<int64_t>(s.longest_decode_q, window) * heads, tile = pairs <= 16 ? 16 : pairs <= 32 ? 32 : 64;
    plan = split_plan(s.decode_count * ((pairs + tile - 1) / tile), s.longest_kv,
                      int64_t{multiprocessors()} * latent_blocks(tile, latent_async(cache)), 64, 128);
    if (plan.splits > 1) results = static_cast<size_t>(int64_t{s.count} * s.longest_decode_q * heads * plan.splits);
  }
  const size_t query_space = align256(static_cast<size_t>(window) * query_bytes);
  const size_t result_space = align256(static_cast<size_t>(window) * result_bytes);
  const size_t partial_space = results * kLatent * sizeof(float);
  auto* const memory =
      static_cast<std::byte*>(workspace(Workspace::kAttention, query_space + result_space + partial_space + results * sizeof(float2)));
  std::byte *const query = memory, *const result = query + query_space, *const partials = result + result_space;

  for (int64_t begin = first; begin < last; begin += window) {
    const int64_t end = std::min(last, begin + window);
    const ProjectArgs project{.q = op.q.f32(begin),
                              .out = op.out.f32(begin),
                              .q_row = op.q.stride[0],
                              .q_head = op.q.stride[1],
                              .out_row = op.out.stride[0],
                              .out_head = op.out.stride[1],
                              .weight = weight,
                              .q_latent = query,
                              .out_latent = result,
                              .rows = static_cast<int>(end - begin),
                              .heads = static_cast<int>(heads),
                              .nope = op.nope,
                              .rope = op.rope,
                              .v_dim = op.v_dim,
                              .kv_lora = op.kv_lora,
                              .settled = settled};
    if (exact) {
      launch_latent_query_general(project, stream_);
      launch_attention_general({.q = reinterpret_cast<const float*>(query),
                                .out = reinterpret_cast<float*>(result),
                                .q_row = heads * latent_row,
                                .q_head = latent_row,
                                .out_row = heads * op.kv_lora,
                                .out_head = op.kv_lora,
                                .k = cache,
                                .v = cache,
                                .sequences = sequence_args(s),
                                .row_begin = static_cast<int>(begin),
                                .row_end = static_cast<int>(end),
                                .heads = static_cast<int>(heads),
                                .group = static_cast<int>(heads),
                                .k_dim = static_cast<int>(latent_row),
                                .v_dim = op.kv_lora,
                                .scale = op.scale},
                               stream_);
      launch_latent_output_general(project, stream_);
    } else {
      const LatentArgs args{.q = reinterpret_cast<const uint16_t*>(query),
                            .out = reinterpret_cast<uint16_t*>(result),
                            .cache = cache,
                            .sequences = sequence_args(s),
                            .row_begin = static_cast<int>(begin),
                            .row_end = static_cast<int>(end),
                            .heads = static_cast<int>(heads),
                            .scale = op.scale,
                            .plan = plan,
                            .partials = reinterpret_cast<float*>(partials),
                            .sums = reinterpret_cast<float2*>(partials + partial_space)};
      launch_latent_query(project, stream_);
      if (any_rows(op.sequences, true, begin, end)) launch_latent_decode(args, stream_);
      if (any_rows(op.sequences, false, begin, end)) launch_latent_prefill(args, stream_);
      launch_latent_output(project, stream_);
    }
    DG_CUDA(cudaPeekAtLastError());
  }
}

}  // namespace dg::cuda
