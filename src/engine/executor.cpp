#include "engine/executor.h"

#include <algorithm>

namespace dg {
namespace {

constexpr int64_t kShortestReplay = 1024;  // bound of the contexts of the first class of replayed steps
constexpr int64_t kMostPickedRows = 512;   // of a step; all rows of a larger one are read
uint64_t replay_key(int64_t longest, int64_t size) { return static_cast<uint64_t>(longest) << 32 | static_cast<uint64_t>(size); }

}  // namespace

Result<std::unique_ptr<Executor>> Executor::create(Backend& backend, Model& model, const ExecutorOptions& options) {
  CHECK(options.kv_tokens > 0 && options.max_step_tokens > 0 && options.arena_bytes > 0);
  auto executor = std::unique_ptr<Executor>(new Executor(backend, model, options));
  CacheLayout layout;
  model.register_cache(layout);
  int64_t blocks = (options.kv_tokens + options.block_tokens - 1) / options.block_tokens;
  DG_ASSIGN(executor->kv_,
            KvPool::create(
                backend, layout,
                {.dtype = options.kv_dtype, .block_tokens = options.block_tokens, .blocks = blocks, .padding_block = backend.replays()}));
  executor->padding_block_ = static_cast<int32_t>(blocks);
  DG_ASSIGN(executor->arena_memory_, backend.allocate(options.arena_bytes, "activations"));
  executor->arena_ = Arena(executor->arena_memory_->data(), options.arena_bytes);
  int64_t n = options.max_step_tokens;
  DG_ASSIGN(executor->index_memory_, backend.allocate(static_cast<size_t>(4 * n) * 4, "step indices"));
  executor->indices_.resize(static_cast<size_t>(4 * n));
  if (!backend.host_memory()) {
    const int64_t bytes = options.max_logit_rows * model.config().vocab * 4;
    DG_ASSIGN(executor->host_logits_, backend.allocate_host(static_cast<size_t>(bytes), "logits"));
    if (backend.picks_rows()) {
      const int64_t rows = std::min(options.max_logit_rows, kMostPickedRows);
      DG_ASSIGN(executor->picks_, DevicePicks::create(backend, model.config().vocab, rows));
    }
  }
  if (model.mtp_modules() > 0) {
    int64_t hidden = model.config().hidden;
    DG_ASSIGN(executor->carry_memory_, backend.allocate(static_cast<size_t>(options.max_step_sequences * hidden) * 4, "draft states"));
    executor->carry_ = Tensor::of(executor->carry_memory_->data(), Dtype::kF32, {options.max_step_sequences, hidden});
  }
  executor->slices_.reserve(static_cast<size_t>(options.max_step_sequences));
  return executor;
}

Result<StepResult> Executor::run(std::span<const StepSequence> sequences, const DescribeRows& describe) {
  return run_forward(sequences, nullptr, describe);
}

Result<StepResult> Executor::run_mtp(std::span<const StepSequence> sequences, Tensor hidden, const DescribeRows& describe) {
  return run_forward(sequences, &hidden, describe);
}

Result<StepResult> Executor::run_mtp_again(std::span<const StepSequence> sequences, Tensor hidden, std::span<const int32_t> rows,
                                           const DescribeRows& describe) {
  auto n = static_cast<int64_t>(rows.size());
  CHECK(rows.size() == sequences.size() && n <= carry_.rows());
  Tensor carried = carry_.slice(0, 0, n);
  backend_.upload(index_memory_->data(), rows.data(), rows.size_bytes());
  backend_.gather_rows({.out = carried, .x = hidden, .rows = Tensor::of(index_memory_->data(), Dtype::kI32, {n})});
  arena_.release(0);
  return run_forward(sequences, &carried, describe);
}

Result<StepResult> Executor::run_forward(std::span<const StepSequence> sequences, const Tensor* mtp_hidden, const DescribeRows& describe) {
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
  for (const StepSequence& s : sequences) tokens += static_cast<int64_t>(s.ids.size());
  CHECK(tokens <= options_.max_step_tokens) << tokens << " rows";
  int32_t *ids = indices_.data(), *positions = ids + tokens, *slots = positions + tokens, *logit_rows = slots + tokens;
  tokens = 0;
  StepResult result;
  slices_.clear();
  for (const StepSequence& s : sequences) {
    auto count = static_cast<int64_t>(s.ids.size());
    CHECK(count > 0);
    slices_.push_back({.q_begin = static_cast<int>(tokens),
                       .q_len = static_cast<int>(count),
                       .kv_len = static_cast<int>(s.first_position + count),
                       .blocks = s.blocks->blocks().data(),
                       .decode = s.decode});
    result.first_row.push_back(rows);
    for (int64_t i = 0; i < count; i++) {
      ids[tokens + i] = s.ids[static_cast<size_t>(i)];
      positions[tokens + i] = static_cast<int32_t>(s.first_position + i);
      slots[tokens + i] = s.blocks->slot(s.first_position + i);
      bool wanted = s.logits == LogitsWanted::kAll || (s.logits == LogitsWanted::kLast && i + 1 == count) ||
                    (s.logits == LogitsWanted::kRow && i == s.logit_row);
      if (wanted) logit_rows[rows++] = static_cast<int32_t>(tokens + i);
    }
    tokens += count;
  }
  CHECK(rows <= options_.max_logit_rows && static_cast<int64_t>(sequences.size()) <= options_.max_step_sequences);

  const uint64_t key = mtp_hidden ? 0 : pad_for_replay(sequences, &tokens, &rows);

  // The MTP pass reads `hidden` of the previous pass, which lives at the start of the arena: keep it there.
  if (!mtp_hidden) arena_.release(0);
  ForwardResult out;
  if (key != 0) {
    out = replay(key, tokens);
    rows = static_cast<int64_t>(sequences.size());
    out.logits = out.logits.slice(0, 0, rows);
    out.hidden = out.hidden.slice(0, 0, rows);
  } else {
    Ctx ctx{backend_, arena_, *kv_, observe_};
    const Batch batch = upload_batch(tokens, rows);
    out = mtp_hidden ? model_.mtp_forward(ctx, batch, *mtp_hidden) : model_.forward(ctx, batch);
  }
  result.hidden = out.hidden;
  result.logits = out.logits;
  if (backend_.host_memory()) {
    backend_.synchronise();
  } else {
    result.device_logits = out.logits;
    result.logits.data = host_logits_->data();
    take_logits(result, rows, describe);
  }
  return result;
}

// From the device: what the rows are wanted for, or the rows.
void Executor::take_logits(StepResult& result, int64_t rows, const DescribeRows& describe) {
  CHECK(rows == 0 || result.device_logits.contiguous());
  whole_rows_.clear();
  if (rows > 0 && picks_ && describe && rows <= picks_->max_rows()) {
    picks_->begin(rows);
    describe(result, *picks_);
    picks_->run(result.device_logits);
    result.picks = picks_.get();
  }
  for (int64_t i = 0; i < rows; i++)
    if (!result.picks || picks_->wanted_whole(i)) whole_rows_.push_back(i);
  read_logits(result, whole_rows_);
  if (rows == 0) backend_.synchronise();
}

void Executor::read_logits(const StepResult& result, std::span<const int64_t> rows) {
  for (size_t i = 0; i < rows.size();) {  // rows that lie behind each other at once
    size_t end = i + 1;
    while (end < rows.size() && rows[end] == rows[end - 1] + 1) end++;
    const Tensor from = result.device_logits.slice(0, rows[i], static_cast<int64_t>(end - i));
    backend_.download(result.logits.slice(0, rows[i], from.rows()).data, from.data, from.bytes());
    i = end;
  }
}

Batch Executor::upload_batch(int64_t tokens, int64_t rows) {
  auto* base = static_cast<int32_t*>(index_memory_->data());
  backend_.upload(base, indices_.data(), static_cast<size_t>(3 * tokens + rows) * sizeof(int32_t));
  auto indices = [&](int64_t begin, int64_t n) { return Tensor::of(base + begin, Dtype::kI32, {n}); };
  return {indices(0, tokens), indices(tokens, tokens), indices(2 * tokens, tokens), slices_, indices(3 * tokens, rows)};
}

ForwardResult Executor::replay(uint64_t key, int64_t tokens) {
  const Batch batch = upload_batch(tokens, tokens);
  backend_.begin_step(slices_, options_.block_tokens, static_cast<int64_t>(key >> 32));
  backend_.replay(key, [&] {
    arena_.release(0);
    Ctx ctx{backend_, arena_, *kv_, {}};
    const ForwardResult result = model_.forward(ctx, batch);
    replayed_[key] = {result, arena_.mark()};
  });
  const Replayed& replayed = replayed_[key];
  arena_.release(replayed.arena_mark);  // what an MTP pass must not overwrite
  return replayed.result;
}

// Decode rows of sequences one token further each: their number is rounded up to one of a few, and the longest context to a power of
// two, so that few graphs serve all steps.
uint64_t Executor::pad_for_replay(std::span<const StepSequence> sequences, int64_t* tokens, int64_t* rows) {
  if (!backend_.replays() || observe_) return 0;
  auto count = static_cast<int64_t>(sequences.size());
  int64_t longest = kShortestReplay;
  for (const StepSequence& s : sequences) {
    if (!s.decode || s.ids.size() != 1 || s.logits != LogitsWanted::kLast) return 0;
    while (longest <= s.first_position) longest *= 2;
  }
  const int64_t size = replay_size(count);
  if (size < count) return 0;
  pad_rows(count, size);
  *tokens = *rows = size;
  return replay_key(longest, size);
}

int64_t Executor::replay_size(int64_t count) const {
  const int64_t most = std::min({options_.max_step_sequences, options_.max_logit_rows, options_.max_step_tokens});
  const int64_t size = count <= 2 ? count : count <= 4 ? 4 : count <= 32 ? (count + 7) / 8 * 8 : (count + 31) / 32 * 32;
  return std::min(size, most);
}

// Rows that fill a step of `count` decode rows up to `size` read and write the padding block.
void Executor::pad_rows(int64_t count, int64_t size) {
  // The four lists of indices lie behind each other without gaps: move them apart first.
  int32_t* at = indices_.data();
  for (int part = 3; part > 0; part--) std::copy_backward(at + part * count, at + (part + 1) * count, at + part * size + count);
  for (int64_t i = count; i < size; i++) {
    at[i] = at[size + i] = 0;
    at[2 * size + i] = padding_block_ * options_.block_tokens;
    at[3 * size + i] = static_cast<int32_t>(i);
    slices_.push_back({.q_begin = static_cast<int>(i), .q_len = 1, .kv_len = 1, .blocks = &padding_block_, .decode = true});
  }
}

void Executor::prepare_replays(int64_t longest_context, const std::function<void(int64_t, int64_t)>& progress) {
  if (!backend_.replays()) return;
  std::vector<uint64_t> keys;
  int64_t longest = kShortestReplay;
  while (longest < longest_context) longest *= 2;
  // The largest first: they need the most workspace, and graphs hold its address.
  for (; longest >= kShortestReplay; longest /= 2)
    for (int64_t count = replay_size(options_.max_step_sequences); count > 0; count--)
      if (replay_size(count) == count) keys.push_back(replay_key(longest, count));
  for (size_t i = 0; i < keys.size(); i++) {
    const auto size = static_cast<int64_t>(keys[i] & 0xffffffff);
    for (int run = 0; run < 2; run++) {  // the first chooses kernels, the second is captured
      slices_.clear();
      pad_rows(0, size);
      replay(keys[i], size);
      backend_.synchronise();
    }
    if (progress) progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(keys.size()));
  }
}

Tensor Executor::read_hidden(const StepResult& result, int64_t first, int64_t count) {
  Tensor rows = result.hidden.slice(0, first, count);
  if (backend_.host_memory()) return rows;
  CHECK(rows.contiguous());
  host_hidden_.resize(static_cast<size_t>(rows.elements()));
  backend_.download(host_hidden_.data(), rows.data, rows.bytes());
  rows.data = host_hidden_.data();
  return rows;
}

}  // namespace dg
