#include "engine/rank_executor.h"

#include <cstring>

#include "engine/executor.h"

namespace dg {

Result<std::unique_ptr<RankExecutor>> RankExecutor::create(Backend& backend, Model& model, const ExecutorOptions& options) {
  auto rank = std::unique_ptr<RankExecutor>(new RankExecutor(backend, model, options.block_tokens));
  CacheLayout layout;
  model.register_cache(layout);
  const int64_t blocks = (options.kv_tokens + options.block_tokens - 1) / options.block_tokens;
  DG_ASSIGN(rank->kv_,
            KvPool::create(
                backend, layout,
                {.dtype = options.kv_dtype, .block_tokens = options.block_tokens, .blocks = blocks, .padding_block = backend.replays()}));
  DG_ASSIGN(rank->arena_memory_, backend.allocate(options.arena_bytes, "activations"));
  rank->arena_ = Arena(rank->arena_memory_->data(), options.arena_bytes);
  DG_ASSIGN(rank->index_memory_, backend.allocate(static_cast<size_t>(4 * options.max_step_tokens) * 4, "step indices"));
  if (model.mtp_modules() > 0) {
    const int64_t hidden = model.config().hidden;
    DG_ASSIGN(rank->carry_memory_, backend.allocate(static_cast<size_t>(options.max_step_sequences * hidden) * 4, "draft states"));
    rank->carry_ = Tensor::of(rank->carry_memory_->data(), Dtype::kF32, {options.max_step_sequences, hidden});
  }
  return rank;
}

Batch RankExecutor::upload_batch(const RankPass& pass) {
  auto* base = static_cast<int32_t*>(index_memory_->data());
  backend_.upload(base, pass.indices.data(), pass.indices.size_bytes());
  auto indices = [&](int64_t begin, int64_t n) { return Tensor::of(base + begin, Dtype::kI32, {n}); };
  const int64_t tokens = pass.tokens;
  return {indices(0, tokens), indices(tokens, tokens), indices(2 * tokens, tokens), pass.slices, indices(3 * tokens, pass.rows)};
}

// The hidden state that rank 0 means, as this rank has it.
Tensor RankExecutor::own_hidden(const RankPass& pass) const {
  if (!pass.hidden.valid()) return result_.hidden;
  Tensor own = pass.hidden;
  own.data = static_cast<std::byte*>(result_.hidden.data) + pass.hidden_offset;
  return own;
}

void RankExecutor::issue(const RankPass& pass, const std::function<void(int, Tensor)>& observe) {
  Ctx ctx{backend_, arena_, *kv_, pass.replay_key != 0 ? std::function<void(int, Tensor)>() : observe};
  switch (pass.kind) {
    case RankPass::Kind::kMain:
      arena_.release(0);
      result_ = run(pass, [&](const Batch& batch) { return model_.forward(ctx, batch); });
      break;
    case RankPass::Kind::kMtp: {  // `hidden` lies at the start of the arena: it stays
      const Tensor hidden = own_hidden(pass);
      result_ = run(pass, [&](const Batch& batch) { return model_.mtp_forward(ctx, batch, hidden); });
      break;
    }
    case RankPass::Kind::kMtpAgain: {
      const auto n = static_cast<int64_t>(pass.carried_rows.size());
      CHECK(n <= pass.tokens && pass.tokens <= carry_.rows());
      backend_.upload(index_memory_->data(), pass.carried_rows.data(), pass.carried_rows.size_bytes());
      backend_.gather_rows(
          {.out = carry_.slice(0, 0, n), .x = own_hidden(pass), .rows = Tensor::of(index_memory_->data(), Dtype::kI32, {n})});
      arena_.release(0);
      result_ = run(pass, [&](const Batch& batch) { return model_.mtp_forward(ctx, batch, carry_.slice(0, 0, pass.tokens)); });
      break;
    }
  }
  if (result_.logits.valid() && result_.logits.rows() > pass.wanted_rows) result_.logits = result_.logits.slice(0, 0, pass.wanted_rows);
}

ForwardResult RankExecutor::run(const RankPass& pass, const std::function<ForwardResult(const Batch&)>& forward) {
  const Batch batch = upload_batch(pass);
  device_began_ = std::chrono::steady_clock::now();
  if (pass.replay_key == 0) return forward(batch);
  backend_.begin_step(pass.slices, block_tokens_, pass.longest);
  const size_t begin = arena_.mark();  // the same in every pass of this key
  backend_.replay(pass.replay_key, [&] {
    arena_.release(begin);
    const ForwardResult result = forward(batch);
    replayed_[pass.replay_key] = {result, begin, arena_.mark()};
  });
  device_began_ = std::chrono::steady_clock::now();  // a graph is handed over as a whole
  const Replayed& replayed = replayed_[pass.replay_key];
  CHECK(replayed.arena_begin == begin) << "a replayed pass begins " << begin << " bytes into the arena, not " << replayed.arena_begin;
  arena_.release(replayed.arena_end);  // what an MTP pass must not overwrite
  return replayed.result;
}

void RankExecutor::finish(float* logits, int64_t vocab) {
  const Tensor& own = result_.logits;
  if (!logits || own.rows() == 0) return backend_.synchronise();
  CHECK(own.contiguous());
  const auto row_bytes = static_cast<size_t>(own.cols()) * sizeof(float);
  logits += model_.first_logit();
  if (!backend_.host_memory())
    return backend_.download_rows(logits, static_cast<size_t>(vocab) * sizeof(float), own.data, row_bytes, own.rows());
  backend_.synchronise();
  for (int64_t r = 0; r < own.rows(); r++) std::memcpy(logits + r * vocab, own.f32(r), row_bytes);
}

Tensor RankExecutor::read_rows(const Tensor& hidden, int64_t first, int64_t count) {
  Tensor rows = hidden.slice(0, first, count);
  if (backend_.host_memory()) return rows;
  CHECK(rows.contiguous());
  host_hidden_.resize(static_cast<size_t>(rows.elements()));
  backend_.download(host_hidden_.data(), rows.data, rows.bytes());
  rows.data = host_hidden_.data();
  return rows;
}

}  // namespace dg
