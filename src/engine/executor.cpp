#include "engine/executor.h"

#include <algorithm>

namespace dg {

Result<std::unique_ptr<Executor>> Executor::create(Backend& backend, Model& model, const ExecutorOptions& options) {
  CHECK(options.kv_tokens > 0 && options.max_step_tokens > 0 && options.arena_bytes > 0);
  auto executor = std::unique_ptr<Executor>(new Executor(backend, model, options));
  CacheLayout layout;
  model.register_cache(layout);
  int64_t blocks = (options.kv_tokens + options.block_tokens - 1) / options.block_tokens;
  DG_ASSIGN(executor->kv_,
            KvPool::create(backend, layout, {.dtype = options.kv_dtype, .block_tokens = options.block_tokens, .blocks = blocks}));
  DG_ASSIGN(executor->arena_memory_, backend.allocate(options.arena_bytes, "activations"));
  executor->arena_ = Arena(executor->arena_memory_->data(), options.arena_bytes);
  int64_t n = options.max_step_tokens;
  DG_ASSIGN(executor->index_memory_, backend.allocate(static_cast<size_t>(4 * n) * 4, "step indices"));
  auto* base = static_cast<int32_t*>(executor->index_memory_->data());
  executor->ids_ = Tensor::of(base, Dtype::kI32, {n});
  executor->positions_ = Tensor::of(base + n, Dtype::kI32, {n});
  executor->slots_ = Tensor::of(base + 2 * n, Dtype::kI32, {n});
  executor->logit_rows_ = Tensor::of(base + 3 * n, Dtype::kI32, {n});
  if (model.mtp_modules() > 0) {
    int64_t hidden = model.config().hidden;
    DG_ASSIGN(executor->carry_memory_, backend.allocate(static_cast<size_t>(options.max_step_sequences * hidden) * 4, "draft states"));
    executor->carry_ = Tensor::of(executor->carry_memory_->data(), Dtype::kF32, {options.max_step_sequences, hidden});
  }
  executor->slices_.reserve(static_cast<size_t>(options.max_step_sequences));
  return executor;
}

Result<StepResult> Executor::run(std::span<const StepSequence> sequences) { return run_forward(sequences, nullptr); }

Result<StepResult> Executor::run_mtp(std::span<const StepSequence> sequences, Tensor hidden) { return run_forward(sequences, &hidden); }

Result<StepResult> Executor::run_mtp_again(std::span<const StepSequence> sequences, Tensor hidden, std::span<const int32_t> rows) {
  auto n = static_cast<int64_t>(rows.size());
  CHECK(rows.size() == sequences.size() && n <= carry_.rows());
  for (int64_t i = 0; i < n; i++) *logit_rows_.i32(i) = rows[static_cast<size_t>(i)];
  Tensor carried = carry_.slice(0, 0, n);
  backend_.gather_rows({.out = carried, .x = hidden, .rows = logit_rows_.slice(0, 0, n)});
  backend_.synchronise();  // the indices are written again
  arena_.release(0);
  return run_forward(sequences, &carried);
}

Result<StepResult> Executor::run_forward(std::span<const StepSequence> sequences, const Tensor* mtp_hidden) {
  for (size_t i = 0; i < sequences.size(); i++) {
    const StepSequence& s = sequences[i];
    int64_t before = static_cast<int64_t>(s.blocks->blocks().size()) * options_.block_tokens;
    Result<void> reserved = s.blocks->reserve(s.first_position + static_cast<int64_t>(s.ids.size()));
    if (!reserved.ok()) {
      s.blocks->truncate(before);
      return reserved.error();
    }
  }
  int64_t tokens = 0, rows = 0;
  StepResult result;
  slices_.clear();
  for (const StepSequence& s : sequences) {
    auto count = static_cast<int64_t>(s.ids.size());
    CHECK(count > 0 && tokens + count <= options_.max_step_tokens) << tokens << " + " << count << " rows";
    slices_.push_back({.q_begin = static_cast<int>(tokens),
                       .q_len = static_cast<int>(count),
                       .kv_len = static_cast<int>(s.first_position + count),
                       .blocks = s.blocks->blocks().data(),
                       .decode = s.decode});
    result.first_row.push_back(rows);
    for (int64_t i = 0; i < count; i++) {
      *ids_.i32(tokens + i) = s.ids[static_cast<size_t>(i)];
      *positions_.i32(tokens + i) = static_cast<int32_t>(s.first_position + i);
      *slots_.i32(tokens + i) = s.blocks->slot(s.first_position + i);
      bool wanted = s.logits == LogitsWanted::kAll || (s.logits == LogitsWanted::kLast && i + 1 == count) ||
                    (s.logits == LogitsWanted::kRow && i == s.logit_row);
      if (wanted) *logit_rows_.i32(rows++) = static_cast<int32_t>(tokens + i);
    }
    tokens += count;
  }
  CHECK(rows <= options_.max_logit_rows && static_cast<int64_t>(sequences.size()) <= options_.max_step_sequences);

  // The MTP pass reads `hidden` of the previous pass, which lives at the start of the arena: keep it there.
  if (!mtp_hidden) arena_.release(0);
  Ctx ctx{backend_, arena_, *kv_, observe_};
  Batch batch{ids_.slice(0, 0, tokens), positions_.slice(0, 0, tokens), slots_.slice(0, 0, tokens), slices_, logit_rows_.slice(0, 0, rows)};
  ForwardResult out = mtp_hidden ? model_.mtp_forward(ctx, batch, *mtp_hidden) : model_.forward(ctx, batch);
  backend_.synchronise();
  result.logits = out.logits;
  result.hidden = out.hidden;
  return result;
}

}  // namespace dg
