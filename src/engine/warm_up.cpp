#include "engine/warm_up.h"

#include <algorithm>

namespace dg {
namespace {

constexpr int64_t kMeasuredReplays = 2;  // graphs are alike; memory of the first also holds what all share

// Sequences whose context is one block again and again: values do not matter, and the pool need not hold the longest context.
class LargestSteps {
 public:
  LargestSteps(Backend& backend, Model& model, const ExecutorOptions& options, int64_t longest)
      : backend_(backend), model_(model), options_(options), longest_(longest) {}

  Result<void> allocate() {
    CacheLayout layout;
    model_.register_cache(layout);
    DG_ASSIGN(pool_, KvPool::create(backend_, layout, {.dtype = options_.kv_dtype, .block_tokens = options_.block_tokens, .blocks = 1}));
    DG_ASSIGN(arena_memory_, backend_.allocate(options_.arena_bytes, "activations"));
    DG_ASSIGN(index_memory_, backend_.allocate(static_cast<size_t>(4 * options_.max_step_tokens) * 4, "step indices"));
    arena_ = Arena(arena_memory_->data(), options_.arena_bytes);
    const int64_t most = std::max(longest_, options_.max_step_tokens);
    blocks_.assign(static_cast<size_t>((most + options_.block_tokens - 1) / options_.block_tokens), 0);
    return {};
  }

  // `rows` rows, split over `sequences` at the end of the longest context.
  Result<void> run(int64_t rows, int64_t sequences, bool decode, bool mtp) {
    const Batch batch = make_batch(rows, sequences, decode);
    arena_.release(0);
    Ctx ctx{backend_, arena_, *pool_};
    const ForwardResult out = model_.forward(ctx, batch);
    if (mtp && model_.mtp_modules() > 0) model_.mtp_forward(ctx, batch, out.hidden);
    backend_.synchronise();
    return backend_.status();
  }

  Result<void> capture(uint64_t key, int64_t rows) {
    for (int turn = 0; turn < 2; turn++) {  // the first chooses kernels, the second is captured
      const Batch batch = make_batch(rows, rows, true);
      int64_t bound = kShortestReplay;
      while (bound < longest_) bound *= 2;
      backend_.begin_step(slices_, options_.block_tokens, bound);
      backend_.replay(key, [&] {
        arena_.release(0);
        Ctx ctx{backend_, arena_, *pool_};
        model_.forward(ctx, batch);
      });
      backend_.synchronise();
    }
    return backend_.status();
  }

 private:
  Batch make_batch(int64_t rows, int64_t sequences, bool decode) {
    slices_.clear();
    std::vector<int32_t> indices(static_cast<size_t>(4 * rows), 0);
    const int64_t logits = std::min(rows, options_.max_logit_rows);
    for (int64_t s = 0; s < sequences; s++) {
      const int64_t begin = rows * s / sequences, end = rows * (s + 1) / sequences;
      if (begin == end) continue;
      const int64_t context = std::max(longest_, end - begin);
      slices_.push_back({.q_begin = static_cast<int>(begin),
                         .q_len = static_cast<int>(end - begin),
                         .kv_len = static_cast<int>(context),
                         .blocks = blocks_.data(),
                         .decode = decode});
      for (int64_t i = begin; i < end; i++) {
        const int64_t position = context - (end - i);
        indices[static_cast<size_t>(rows + i)] = static_cast<int32_t>(position);
        indices[static_cast<size_t>(2 * rows + i)] = static_cast<int32_t>(position % options_.block_tokens);
      }
    }
    for (int64_t i = 0; i < logits; i++) indices[static_cast<size_t>(3 * rows + i)] = static_cast<int32_t>(i);
    auto* base = static_cast<int32_t*>(index_memory_->data());
    backend_.upload(base, indices.data(), indices.size() * 4);
    auto at = [&](int64_t part, int64_t n) { return Tensor::of(base + part * rows, Dtype::kI32, {n}); };
    return {at(0, rows), at(1, rows), at(2, rows), slices_, at(3, logits)};
  }

  Backend& backend_;
  Model& model_;
  const ExecutorOptions& options_;
  const int64_t longest_;
  std::unique_ptr<KvPool> pool_;
  std::unique_ptr<DeviceMemory> arena_memory_, index_memory_;
  Arena arena_;
  std::vector<int32_t> blocks_;
  std::vector<SequenceSlice> slices_;
};

}  // namespace

int64_t replay_rows(int64_t count, int64_t most) {
  const int64_t rows = count <= 2 ? count : count <= 4 ? 4 : count <= 32 ? (count + 7) / 8 * 8 : (count + 31) / 32 * 32;
  return std::min(rows, most);
}

Result<StepMemory> measure_step_memory(Backend& backend, Model& model, const ExecutorOptions& options, int64_t longest_context) {
  if (backend.memory().total == 0) return StepMemory{};
  LargestSteps steps(backend, model, options, longest_context);
  DG_TRY(steps.allocate());
  const int64_t before = backend.memory().free;
  const int64_t rows = options.max_step_tokens, sequences = std::min(rows, options.max_step_sequences);
  const int64_t decode_rows = std::min(rows, std::max(sequences, options.max_decode_rows));
  DG_TRY(steps.run(rows, 1, false, true));
  DG_TRY(steps.run(rows, sequences, false, true));
  DG_TRY(steps.run(decode_rows, 1, true, true));
  DG_TRY(steps.run(sequences, sequences, true, true));
  for (int64_t few = 1; few < std::min<int64_t>(rows, 512); few *= 2) {  // kernels chosen by the number of rows have buffers of their own
    DG_TRY(steps.run(few, 1, false, false));
    DG_TRY(steps.run(std::min(few, sequences), std::min(few, sequences), true, false));
  }
  StepMemory memory{.workspace_bytes = std::max<int64_t>(0, before - backend.memory().free)};
  if (!backend.replays()) return memory;
  const int64_t most = std::min({options.max_step_sequences, options.max_logit_rows, options.max_step_tokens});
  int64_t sizes = 0, classes = 1;
  for (int64_t n = 1; n <= most; n++) sizes += replay_rows(n, most) == n;
  for (int64_t longest = kShortestReplay; longest < longest_context; longest *= 2) classes++;
  memory.replays = sizes * classes;
  const int64_t without = backend.memory().free;
  for (int64_t i = 0; i < std::min(kMeasuredReplays, memory.replays); i++) DG_TRY(steps.capture(static_cast<uint64_t>(i) + 1, most));
  const int64_t taken = std::max<int64_t>(0, without - backend.memory().free);
  memory.replay_bytes = taken * memory.replays / std::min(kMeasuredReplays, memory.replays);
  backend.forget_replays();
  return memory;
}

}  // namespace dg
