#include "plan/sizing.h"

#include <algorithm>
#include <vector>

namespace dg {

StepCost dry_run_step(Model& model, const StepShape& shape, Dtype kv_dtype) {
  DryBackend dry;
  CacheLayout layout;
  model.register_cache(layout);
  auto pool = KvPool::create(dry, layout, {.dtype = kv_dtype, .block_tokens = 16, .blocks = 1});
  CHECK(pool.ok()) << "address space only";
  // Far above the addresses of the dry backend's own memory; nothing is ever read or written there.
  Arena arena(reinterpret_cast<void*>(uintptr_t{1} << 45), size_t{1} << 45);
  std::vector<int32_t> blocks(static_cast<size_t>((shape.kv_len + 15) / 16), 0);
  std::vector<SequenceSlice> slices;
  int64_t front = std::min(shape.decode_rows, shape.tokens);
  if (front > 0)
    slices.push_back({.q_begin = 0,
                      .q_len = static_cast<int>(front),
                      .kv_len = static_cast<int>(std::max(shape.kv_len, front)),
                      .blocks = blocks.data(),
                      .decode = true});
  int64_t rest = shape.tokens - front;
  for (int64_t i = 0; i < shape.sequences; i++) {
    int64_t begin = front + rest * i / shape.sequences, end = front + rest * (i + 1) / shape.sequences;
    if (end == begin) continue;
    slices.push_back({.q_begin = static_cast<int>(begin),
                      .q_len = static_cast<int>(end - begin),
                      .kv_len = static_cast<int>(std::max(shape.kv_len, end - begin)),
                      .blocks = blocks.data(),
                      .decode = shape.decode});
  }
  auto indices = [&](int64_t n) { return Tensor::of(reinterpret_cast<void*>(uintptr_t{1} << 43), Dtype::kI32, {n}); };
  Batch batch{indices(shape.tokens), indices(shape.tokens), indices(shape.tokens), slices, indices(shape.logit_rows)};
  Ctx ctx{dry, arena, **pool};
  ForwardResult out = model.forward(ctx, batch);
  if (shape.mtp && model.mtp_modules() > 0) model.mtp_forward(ctx, batch, out.hidden);
  return {.arena_bytes = arena.peak(), .by_op = dry.by_op(), .total = dry.total()};
}

size_t measure_arena_bytes(Model& model, int64_t max_tokens, int64_t max_sequences, int64_t max_kv_len, int64_t max_logit_rows,
                           int64_t max_decode_rows) {
  size_t bytes = 0;
  auto consider = [&](StepShape shape) {
    shape.logit_rows = std::min(max_logit_rows, shape.tokens);
    shape.kv_len = max_kv_len;
    shape.mtp = true;
    bytes = std::max(bytes, dry_run_step(model, shape, Dtype::kF32).arena_bytes);
  };
  int64_t decode_rows = std::min(max_tokens, std::max(max_sequences, max_decode_rows));
  consider({.tokens = max_tokens, .sequences = 1});
  consider({.tokens = max_tokens, .sequences = 1, .decode_rows = decode_rows});
  consider({.tokens = decode_rows, .sequences = 1, .decode = true});
  consider({.tokens = max_tokens, .sequences = std::min(max_tokens, max_sequences)});
  consider({.tokens = std::min(max_tokens, max_sequences), .sequences = std::min(max_tokens, max_sequences), .decode = true});
  return bytes;
}

}  // namespace dg
