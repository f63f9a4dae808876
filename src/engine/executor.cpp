#include "engine/executor.h"

#include <algorithm>

#include "engine/warm_up.h"

namespace dg {
namespace {

constexpr int64_t kMostPickedRows = 512;  // of a step; all rows of a larger one are read
uint64_t replay_key(int64_t longest, int64_t size) { return static_cast<uint64_t>(longest) << 32 | static_cast<uint64_t>(size); }

}  // namespace

Result<std::unique_ptr<Executor>> Executor::create(Backend& backend, Model& model, const ExecutorOptions& options) {
  const ExecutorRank rank{backend, model};
  return create({&rank, 1}, nullptr, options);
}

Result<std::unique_ptr<Executor>> Executor::create(std::span<const ExecutorRank> ranks, RankGroup* group, const ExecutorOptions& options) {
  CHECK(options.kv_tokens > 0 && options.max_step_tokens > 0 && options.arena_bytes > 0);
  CHECK(ranks.size() == 1 || (group && group->size() == static_cast<int>(ranks.size())));
  auto executor = std::unique_ptr<Executor>(new Executor(options));
  executor->group_ = group;
  for (const ExecutorRank& rank : ranks) {
    DG_ASSIGN(auto made, RankExecutor::create(rank.backend, rank.model, options));
    executor->ranks_.push_back(std::move(made));
  }
  executor->padding_block_ = static_cast<int32_t>((options.kv_tokens + options.block_tokens - 1) / options.block_tokens);
  executor->indices_.resize(static_cast<size_t>(4 * options.max_step_tokens));
  if (Backend& backend = ranks[0].backend; ranks.size() > 1 || !backend.host_memory()) {
    const int64_t bytes = options.max_logit_rows * ranks[0].model.config().vocab * 4;
    DG_ASSIGN(executor->host_logits_, backend.allocate_host(static_cast<size_t>(bytes), "logits"));
    if (ranks.size() == 1 && backend.picks_rows()) {  // of several ranks each has its columns only
      const int64_t rows = std::min(options.max_logit_rows, kMostPickedRows);
      DG_ASSIGN(executor->picks_, DevicePicks::create(backend, ranks[0].model.config().vocab, rows));
    }
  }
  executor->slices_.reserve(static_cast<size_t>(options.max_step_sequences));
  DG_ASSIGN(executor->threads_, RankThreads::create(static_cast<int>(ranks.size())));
  return executor;
}

Result<StepResult> Executor::run(std::span<const StepSequence> sequences, const DescribeRows& describe) {
  return run_pass(sequences, {}, describe);
}

Result<StepResult> Executor::run_mtp(std::span<const StepSequence> sequences, Tensor hidden, const DescribeRows& describe) {
  return run_pass(sequences, {.kind = RankPass::Kind::kMtp, .hidden = hidden, .hidden_offset = hidden_offset(hidden)}, describe);
}

Result<StepResult> Executor::run_mtp_again(std::span<const StepSequence> sequences, Tensor hidden, std::span<const int32_t> rows,
                                           const DescribeRows& describe) {
  CHECK(rows.size() == sequences.size());
  return run_pass(sequences,
                  {.kind = RankPass::Kind::kMtpAgain, .hidden = hidden, .hidden_offset = hidden_offset(hidden), .carried_rows = rows},
                  describe);
}

ptrdiff_t Executor::hidden_offset(const Tensor& hidden) const {
  const Tensor& last = ranks_[0]->result().hidden;
  const ptrdiff_t offset = static_cast<std::byte*>(hidden.data) - static_cast<std::byte*>(last.data);
  CHECK(offset >= 0 && offset + static_cast<ptrdiff_t>(hidden.bytes()) <= static_cast<ptrdiff_t>(last.bytes())) << "not of the last pass";
  return offset;
}

Result<void> Executor::status() const {
  if (group_ && group_->failed()) {
    // Ranks that lost each other do not meet again: as with a lost device, the process has to be started again.
    auto error = group_->exchange(0, nullptr);
    if (!error.ok()) return Error{ErrorKind::kDevice, error.error().message};
  }
  for (const auto& rank : ranks_) DG_TRY(rank->backend().status());
  return {};
}

Result<void> Executor::run_ranks(const RankPass& pass, float* logits) {
  DG_TRY(status());
  const int64_t vocab = model().config().vocab;
  threads_->run([&](int rank) {
    RankExecutor& own = *ranks_[static_cast<size_t>(rank)];
    own.issue(pass, rank == 0 ? observe_ : std::function<void(int, Tensor)>());
    own.finish(logits, vocab);
  });
  return status();
}

Result<StepResult> Executor::run_pass(std::span<const StepSequence> sequences, RankPass pass, const DescribeRows& describe) {
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

  if (pass.kind == RankPass::Kind::kMain) pass.replay_key = pad_for_replay(sequences, &tokens, &rows);
  pass.indices = std::span(indices_).first(static_cast<size_t>(3 * tokens + rows));
  pass.tokens = tokens;
  pass.rows = rows;
  pass.slices = slices_;
  pass.wanted_rows = static_cast<int64_t>(sequences.size());
  if (pass.replay_key != 0) rows = pass.wanted_rows;
  auto* logits = host_logits_ ? static_cast<float*>(host_logits_->data()) : nullptr;
  if (picks_ && describe) {
    DG_TRY(status());
    ranks_[0]->issue(pass, observe_);
    result.hidden = ranks_[0]->result().hidden;
    result.device_logits = ranks_[0]->result().logits;
    result.logits = Tensor::of(logits, Dtype::kF32, {rows, model().config().vocab});
    take_logits(result, rows, describe);
    DG_TRY(status());
    return result;
  }
  DG_TRY(run_ranks(pass, logits));
  result.hidden = ranks_[0]->result().hidden;
  result.logits = logits ? Tensor::of(logits, Dtype::kF32, {rows, model().config().vocab}) : ranks_[0]->result().logits;
  return result;
}

// From the device: what the rows are wanted for, or the rows.
void Executor::take_logits(StepResult& result, int64_t rows, const DescribeRows& describe) {
  CHECK(rows == 0 || result.device_logits.contiguous());
  whole_rows_.clear();
  if (rows > 0 && rows <= picks_->max_rows()) {
    picks_->begin(rows);
    describe(result, *picks_);
    picks_->run(result.device_logits);
    result.picks = picks_.get();
  }
  for (int64_t i = 0; i < rows; i++)
    if (!result.picks || picks_->wanted_whole(i)) whole_rows_.push_back(i);
  read_logits(result, whole_rows_);
  if (rows == 0) backend().synchronise();
}

void Executor::read_logits(const StepResult& result, std::span<const int64_t> rows) {
  for (size_t i = 0; i < rows.size();) {  // rows that lie behind each other at once
    size_t end = i + 1;
    while (end < rows.size() && rows[end] == rows[end - 1] + 1) end++;
    const Tensor from = result.device_logits.slice(0, rows[i], static_cast<int64_t>(end - i));
    backend().download(result.logits.slice(0, rows[i], from.rows()).data, from.data, from.bytes());
    i = end;
  }
}

// Decode rows of sequences one token further each: their number is rounded up to one of a few, and the longest context to a power of
// two, so that few graphs serve all steps.
uint64_t Executor::pad_for_replay(std::span<const StepSequence> sequences, int64_t* tokens, int64_t* rows) {
  if (!backend().replays() || observe_) return 0;
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
  return replay_rows(count, most);
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

Result<void> Executor::prepare_replays(int64_t longest_context, const std::function<void(int64_t, int64_t)>& progress) {
  if (!backend().replays()) return {};
  std::vector<uint64_t> keys;
  int64_t longest = kShortestReplay;
  while (longest < longest_context) longest *= 2;
  // The largest first: they need the most workspace, and graphs hold its address.
  for (; longest >= kShortestReplay; longest /= 2)
    for (int64_t count = replay_size(options_.max_step_sequences); count > 0; count--)
      if (replay_size(count) == count) keys.push_back(replay_key(longest, count));
  for (size_t i = 0; i < keys.size(); i++) {
    const auto size = static_cast<int64_t>(keys[i] & 0xffffffff);
    slices_.clear();
    pad_rows(0, size);
    const RankPass pass{.indices = std::span(indices_).first(static_cast<size_t>(4 * size)),
                        .tokens = size,
                        .rows = size,
                        .slices = slices_,
                        .replay_key = keys[i],
                        .wanted_rows = size};
    threads_->run([&](int rank) { ranks_[static_cast<size_t>(rank)]->prepare(pass); });
    DG_TRY(status());
    if (progress) progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(keys.size()));
  }
  return {};
}

}  // namespace dg
