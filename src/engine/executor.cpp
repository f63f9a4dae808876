#include "engine/executor.h"

#include <algorithm>

namespace dg {
namespace {

constexpr int64_t kMostPickedRows = 512;  // of a step; all rows of a larger one are read

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
  const auto padding_block = static_cast<int32_t>((options.kv_tokens + options.block_tokens - 1) / options.block_tokens);
  executor->padding_blocks_.assign(static_cast<size_t>(options.draft_tokens / options.block_tokens + 1), padding_block);
  executor->more_blocks_.resize(static_cast<size_t>(options.max_step_sequences));
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
  StepResult result;
  StepLayout layout;
  const bool after_main = pass.kind == RankPass::Kind::kMtp && pass.hidden_offset == 0;
  if (backend().replays() && !observe_) layout = choose_layout(options_, sequences, longest_replay_);
  // The module's rows lie as those of the pass that its hidden states come from.
  if (pass.kind == RankPass::Kind::kMtp && !(after_main && layout == last_layout_)) layout = {};
  pass = lay_out(sequences, pass, layout, &result, nullptr);
  CHECK(pass.kind != RankPass::Kind::kMtp || pass.hidden.rows() == pass.tokens) << pass.hidden.rows() << " rows of " << pass.tokens;
  last_layout_ = pass.kind == RankPass::Kind::kMain ? layout : StepLayout();
  const int64_t rows = pass.wanted_rows;
  auto* logits = host_logits_ ? static_cast<float*>(host_logits_->data()) : nullptr;
  if (picks_ && describe) {
    DG_TRY(status());
    ranks_[0]->issue(pass, observe_);
    result.hidden = ranks_[0]->result().hidden;
    result.device_logits = ranks_[0]->result().logits;
    result.logits = Tensor::of(logits, Dtype::kF32, {rows, model().config().vocab});
    take_logits(result, rows, describe);
    DG_TRY(status());
    note_end();
    return result;
  }
  DG_TRY(run_ranks(pass, logits));
  note_end();
  result.hidden = ranks_[0]->result().hidden;
  result.logits = logits ? Tensor::of(logits, Dtype::kF32, {rows, model().config().vocab}) : ranks_[0]->result().logits;
  return result;
}

void Executor::note_end() {
  const auto began = ranks_[0]->device_began();
  waited_s_ = last_end_ ? std::chrono::duration<double>(began - *last_end_).count() : 0;
  if (last_end_) backend().note_wait(*last_end_, began);
  last_end_ = std::chrono::steady_clock::now();
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

// The blocks that `kv_len` rows of the sequence lie in. Rows that fill it up may have none.
const int32_t* Executor::blocks_for(const StepSequence& sequence, int64_t kv_len, size_t index) {
  const auto& own = sequence.blocks->blocks();
  const auto needed = static_cast<size_t>((kv_len + options_.block_tokens - 1) / options_.block_tokens);
  if (needed <= own.size()) return own.data();
  std::vector<int32_t>& more = more_blocks_[index];
  more.assign(own.begin(), own.end());
  more.resize(needed, padding_blocks_[0]);
  return more.data();
}

RankPass Executor::lay_out(std::span<const StepSequence> sequences, RankPass pass, const StepLayout& layout, StepResult* result,
                           const ReplayShape* shape) {
  int64_t tokens = 0, rows = 0;
  for (const StepSequence& s : sequences) tokens += static_cast<int64_t>(s.ids.size());
  if (layout.padded()) tokens = layout.tokens();
  CHECK(tokens <= options_.max_step_tokens) << tokens << " rows";
  CHECK(static_cast<int64_t>(sequences.size()) <= options_.max_step_sequences) << sequences.size() << " sequences";
  int32_t *ids = indices_.data(), *positions = ids + tokens, *slots = positions + tokens, *logit_rows = slots + tokens;
  if (layout.padded()) {
    std::fill(ids, slots, 0);
    std::fill(slots, slots + tokens, padding_blocks_[0] * options_.block_tokens);
  }
  slices_.clear();
  auto add_slice = [&](int64_t begin, int64_t count, int64_t kv_len, const int32_t* blocks, bool decode) {
    slices_.push_back({.q_begin = static_cast<int>(begin),
                       .q_len = static_cast<int>(count),
                       .kv_len = static_cast<int>(kv_len),
                       .blocks = blocks,
                       .decode = decode});
  };
  int64_t at = 0;
  for (size_t k = 0; k < sequences.size(); k++) {
    const StepSequence& s = sequences[k];
    const auto count = static_cast<int64_t>(s.ids.size());
    CHECK(count > 0);
    const int64_t own = layout.padded() && !layout.split ? layout.width : count;
    if (layout.split) {
      for (int64_t i = 0; i < count; i++) add_slice(at + i, 1, s.first_position + i + 1, s.blocks->blocks().data(), true);
    } else {
      add_slice(at, own, s.first_position + own, blocks_for(s, s.first_position + own, k), s.decode);
    }
    result->first_row.push_back(rows);
    result->first_hidden.push_back(at);
    for (int64_t i = 0; i < count; i++) {
      ids[at + i] = s.ids[static_cast<size_t>(i)];
      positions[at + i] = static_cast<int32_t>(s.first_position + i);
      slots[at + i] = s.blocks->slot(s.first_position + i);
      const bool wanted = s.logits == LogitsWanted::kAll || (s.logits == LogitsWanted::kLast && i + 1 == count) ||
                          (s.logits == LogitsWanted::kRow && i == s.logit_row);
      if (wanted) logit_rows[rows++] = static_cast<int32_t>(at + i);
    }
    at += own;
  }
  CHECK(rows <= options_.max_logit_rows) << rows << " rows of logits";
  pass.wanted_rows = rows;
  for (; at < tokens; at += layout.width) add_slice(at, layout.width, layout.width, padding_blocks_.data(), true);
  std::optional<ReplayShape> found;
  if (!shape && layout.padded()) {
    found = replay_shape(options_, pass.kind, layout, rows);
    shape = found ? &*found : nullptr;
  }
  if (shape) {
    pass.replay_key = shape->key();
    pass.longest = layout.longest;
    std::fill(logit_rows + rows, logit_rows + shape->logit_rows(), 0);
    rows = shape->logit_rows();
  }
  pass.indices = std::span(indices_).first(static_cast<size_t>(3 * tokens + rows));
  pass.tokens = tokens;
  pass.rows = rows;
  pass.slices = slices_;
  return pass;
}

Result<void> Executor::prepare_replays(int64_t longest_context, const std::function<void(int64_t, int64_t)>& progress) {
  if (!backend().replays()) return {};
  const std::vector<ReplayShape> shapes = replay_shapes(options_, longest_context);
  const std::vector<int32_t> first_rows(static_cast<size_t>(options_.max_step_sequences), 0);
  for (size_t i = 0; i < shapes.size(); i++) {
    const ReplayShape& shape = shapes[i];
    StepResult none;
    auto issue = [&](const RankPass& pass) {
      threads_->run([&](int rank) {
        ranks_[static_cast<size_t>(rank)]->issue(pass, {});
        ranks_[static_cast<size_t>(rank)]->backend().synchronise();
      });
      return status();
    };
    for (int turn = 0; turn < 2; turn++) {  // the first chooses kernels, the second is captured
      // The module goes on from where a pass of the model has ended.
      if (shape.kind == RankPass::Kind::kMtp) DG_TRY(issue(lay_out({}, {}, shape.layout, &none, nullptr)));
      const auto carried = std::span(first_rows).first(static_cast<size_t>(shape.layout.slices));
      DG_TRY(issue(lay_out({}, {.kind = shape.kind, .carried_rows = carried}, shape.layout, &none, &shape)));
    }
    if (progress) progress(static_cast<int64_t>(i) + 1, static_cast<int64_t>(shapes.size()));
  }
  last_layout_ = {};
  rest();
  longest_replay_ = longest_replay(longest_context);
  return {};
}

}  // namespace dg
