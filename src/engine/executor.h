// Executor: runs plain-data steps of one model on one backend, or on several that compute it together (tensor parallel). It makes the
// indices of a step and hands them to every rank (RankExecutor); the engine (one thread) decides what runs. Engine thread only.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "device/rank_group.h"
#include "engine/device_picks.h"
#include "engine/rank_executor.h"
#include "engine/rank_threads.h"
#include "engine/step_layout.h"
#include "model/model.h"

namespace dg {

struct ExecutorOptions {
  Dtype kv_dtype = Dtype::kBf16;
  int block_tokens = 16;
  int64_t kv_tokens = 0;          // capacity of the KV pool, all sequences together
  int64_t max_step_tokens = 512;  // rows of one step
  int64_t max_step_sequences = 64;
  int64_t max_logit_rows = 64;  // rows of logits of one step (max_step_tokens for perplexity and verification)
  int64_t max_decode_rows = 0;  // generation rows of one step that the arena suffices for; 0: max_step_sequences
  int64_t draft_tokens = 0;     // of a sequence that a step verifies: steps with so many, or fewer, are replayed
  bool mtp_drafts = false;      // the MTP module makes them: its passes are replayed too
  size_t arena_bytes = 0;       // from plan/sizing.h for the same limits
};

enum class LogitsWanted { kNone, kLast, kAll, kRow };  // kRow: of row StepSequence::logit_row

// The part of one sequence that runs in a step: tokens ids[0..n) at positions first_position.., in the cache blocks of
// `blocks` (run() reserves them).
struct StepSequence {
  std::span<const int32_t> ids;
  int64_t first_position = 0;
  BlockTable* blocks = nullptr;
  bool decode = false;  // one generated token; false for prefill chunks
  LogitsWanted logits = LogitsWanted::kLast;
  int64_t logit_row = 0;
};

struct StepResult {
  // Per sequence of the step, the first of its logit rows in `logits`.
  std::vector<int64_t> first_row;
  Tensor logits;  // (rows, vocab) f32, host-readable, valid until the next step; of rows that were picked only after read_logits()
  // (rows, hidden) after the final norm, on the device, valid until the next step: read_hidden(). Rows that fill up the step lie between
  // those of the sequences, which begin at first_hidden.
  Tensor hidden;
  std::vector<int64_t> first_hidden;
  const float* row(int64_t i) const { return logits.f32(i); }
  // What the device picked of a row; null: row(i) is there. Valid until the next step.
  const PickedRow* picked(int64_t i) const { return picks ? picks->picked(i) : nullptr; }
  Tensor device_logits;                // (rows, vocab) where the device has them
  const DevicePicks* picks = nullptr;  // null: no row was picked
};

// A device and the part of the model on it. One, or several that compute together.
struct ExecutorRank {
  Backend& backend;
  Model& model;
};

// Says what a step's rows are wanted for, while the device computes them.
using DescribeRows = std::function<void(const StepResult&, DevicePicks&)>;

class Executor {
 public:
  static Result<std::unique_ptr<Executor>> create(Backend& backend, Model& model, const ExecutorOptions& options);
  // By rank; `group` is theirs and outlives the executor. Once it has failed, every step does.
  static Result<std::unique_ptr<Executor>> create(std::span<const ExecutorRank> ranks, RankGroup* group, const ExecutorOptions& options);

  // Runs one step. An error (KV cache full) leaves the sequences as they were; that of a rank leaves their new rows undefined.
  // Exceeding max_step_tokens is a bug. Where the device can pick from rows (picks_rows), `describe` is called once and rows of logits
  // stay there.
  Result<StepResult> run(std::span<const StepSequence> sequences, const DescribeRows& describe = {});
  // The same rows through the MTP module: `hidden` of the same positions, ids shifted by one; of the last pass.
  Result<StepResult> run_mtp(std::span<const StepSequence> sequences, Tensor hidden, const DescribeRows& describe = {});
  // One more pass of the MTP module on some rows of the last one: one row per sequence, `hidden` of that pass, rows[i] its row that
  // sequence i goes on from. The results of the passes before are no longer valid.
  Result<StepResult> run_mtp_again(std::span<const StepSequence> sequences, Tensor hidden, std::span<const int32_t> rows,
                                   const DescribeRows& describe = {});

  // Captures decode steps of every size, with drafts and passes of the MTP module where the options say so, for contexts up to
  // `longest_context`, on a backend that replays them; else nothing. Longer contexts are then issued op by op.
  Result<void> prepare_replays(int64_t longest_context, const std::function<void(int64_t done, int64_t all)>& progress);
  // Rows of a step's logits into `logits`, where picking kept them on the device: after what picks changed. Ascending.
  void read_logits(const StepResult& result, std::span<const int64_t> rows);
  // Rows [first, first + count) of a step's hidden state in host memory, valid until the next call. (count, hidden)
  Tensor read_hidden(const StepResult& result, int64_t first, int64_t count) { return ranks_[0]->read_rows(result.hidden, first, count); }

  // Seconds between the end of the pass before, its tokens read, and the moment that the device had the last one: it waited for the host.
  // 0 behind rest().
  double waited_s() const { return waited_s_; }
  void rest() { last_end_.reset(); }  // no pass followed at once: there was nothing to do

  // Of rank 0, whose blocks are those of all ranks.
  Backend& backend() { return ranks_[0]->backend(); }
  Model& model() { return ranks_[0]->model(); }
  KvPool& kv() { return ranks_[0]->kv(); }
  const ExecutorOptions& options() const { return options_; }
  size_t arena_peak() const { return ranks_[0]->arena_peak(); }
  void set_observer(std::function<void(int, Tensor)> observe) { observe_ = std::move(observe); }

 private:
  explicit Executor(const ExecutorOptions& options) : options_(options) {}
  Result<StepResult> run_pass(std::span<const StepSequence> sequences, RankPass pass, const DescribeRows& describe);
  Result<void> run_ranks(const RankPass& pass, float* logits);
  ptrdiff_t hidden_offset(const Tensor& hidden) const;
  void take_logits(StepResult& result, int64_t rows, const DescribeRows& describe);
  // `pass` with indices and slices of the sequences in `layout`, filled up. `shape` null: that of the rows of logits there are.
  RankPass lay_out(std::span<const StepSequence> sequences, RankPass pass, const StepLayout& layout, StepResult* result,
                   const ReplayShape* shape);
  const int32_t* blocks_for(const StepSequence& sequence, int64_t kv_len, size_t index);
  Result<void> status() const;
  void note_end();

  ExecutorOptions options_;
  RankGroup* group_ = nullptr;
  std::vector<std::unique_ptr<RankExecutor>> ranks_;
  std::unique_ptr<DeviceMemory> host_logits_;  // where rank 0 alone has no logits that the host can read
  std::unique_ptr<DevicePicks> picks_;         // where one backend picks rows
  std::vector<int32_t> indices_;               // RankPass::indices
  std::vector<SequenceSlice> slices_;
  std::vector<int64_t> whole_rows_;
  std::vector<int32_t> padding_blocks_;            // the block nobody owns, as often as a slice may need it
  std::vector<std::vector<int32_t>> more_blocks_;  // by sequence: its blocks, with that one behind them
  StepLayout last_layout_;                         // of the last pass, if that was of the model itself
  int64_t longest_replay_ = INT64_MAX;             // the longest that was captured
  std::function<void(int, Tensor)> observe_;
  std::optional<std::chrono::steady_clock::time_point> last_end_;  // of the last pass
  double waited_s_ = 0;
  std::unique_ptr<RankThreads> threads_;  // the first to go: they use all the others
};

}  // namespace dg
