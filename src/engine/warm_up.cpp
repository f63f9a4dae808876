#include "engine/warm_up.h"

#include <algorithm>
#include <iterator>

namespace dg {
namespace {

constexpr int64_t kMeasuredReplays = 2;  // of those that differ in size and context alone; memory of the first also holds what all share

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
    const Batch batch = make_batch(rows, sequences, decode, longest_);
    arena_.release(0);
    Ctx ctx{backend_, arena_, *pool_};
    const ForwardResult out = model_.forward(ctx, batch);
    if (mtp && model_.mtp_modules() > 0) model_.mtp_forward(ctx, batch, out.hidden);
    backend_.synchronise();
    return backend_.status();
  }

  Result<void> capture(const ReplayShape& shape) {
    for (int turn = 0; turn < 2; turn++) {  // the first chooses kernels, the second is captured
      const StepLayout& layout = shape.layout;
      Batch batch = make_batch(layout.tokens(), layout.slices, true, std::min(longest_, layout.longest));
      batch.logit_rows = batch.logit_rows.slice(0, 0, shape.logit_rows());
      arena_.release(0);
      // The states that the module goes on from: any values.
      Tensor hidden;
      if (shape.kind != RankPass::Kind::kMain) hidden = arena_.alloc({layout.tokens(), model_.config().hidden});
      backend_.begin_step(slices_, options_.block_tokens, layout.longest);
      backend_.replay(shape.key(), [&] {
        const Arena::Scope scope(arena_);
        Ctx ctx{backend_, arena_, *pool_};
        if (shape.kind == RankPass::Kind::kMain) model_.forward(ctx, batch);
        else model_.mtp_forward(ctx, batch, hidden);
      });
      backend_.synchronise();
    }
    return backend_.status();
  }

 private:
  Batch make_batch(int64_t rows, int64_t sequences, bool decode, int64_t longest) {
    slices_.clear();
    std::vector<int32_t> indices(static_cast<size_t>(4 * rows), 0);
    const int64_t logits = std::min(rows, options_.max_logit_rows);
    for (int64_t s = 0; s < sequences; s++) {
      const int64_t begin = rows * s / sequences, end = rows * (s + 1) / sequences;
      if (begin == end) continue;
      const int64_t context = std::max(longest, end - begin);
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
  if (options.draft_tokens > 0)
    if (const int64_t verifying = std::min(sequences, decode_rows / (1 + options.draft_tokens)); verifying > 0)
      DG_TRY(steps.run(verifying * (1 + options.draft_tokens), verifying, true, true));
  for (int64_t few = 1; few < std::min<int64_t>(rows, 512); few *= 2) {  // kernels chosen by the number of rows have buffers of their own
    DG_TRY(steps.run(few, 1, false, false));
    DG_TRY(steps.run(std::min(few, sequences), std::min(few, sequences), true, false));
  }
  StepMemory memory{.workspace_bytes = std::max<int64_t>(0, before - backend.memory().free)};
  if (!backend.replays()) return memory;
  std::vector<ReplayShape> shapes = replay_shapes(options, longest_context);
  memory.replays = static_cast<int64_t>(shapes.size());
  while (!shapes.empty()) {  // those that differ in size and context alone, from the largest on
    const ReplayShape first = shapes[0];
    auto same = [&](const ReplayShape& s) {
      return s.kind == first.kind && s.layout.width == first.layout.width && s.logits == first.logits;
    };
    std::vector<ReplayShape> alike;
    std::copy_if(shapes.begin(), shapes.end(), std::back_inserter(alike), same);
    std::erase_if(shapes, same);
    const auto all = static_cast<int64_t>(alike.size()), measured = std::min(kMeasuredReplays, all);
    const int64_t without = backend.memory().free;
    for (int64_t i = 0; i < measured; i++) DG_TRY(steps.capture(alike[static_cast<size_t>(i)]));
    memory.replay_bytes += std::max<int64_t>(0, without - backend.memory().free) * all / measured;
  }
  backend.forget_replays();
  return memory;
}

}  // namespace dg
