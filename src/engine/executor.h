// Executor: runs plain-data steps of one model on one backend. It owns the arena, the KV pool and the step's index buffers;
// the engine (one thread) decides what runs. Engine thread only.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "engine/device_picks.h"
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
  Tensor hidden;  // (tokens, hidden) after the final norm, on the device, valid until the next step: read_hidden()
  const float* row(int64_t i) const { return logits.f32(i); }
  // What the device picked of a row; null: row(i) is there. Valid until the next step.
  const PickedRow* picked(int64_t i) const { return picks ? picks->picked(i) : nullptr; }
  Tensor device_logits;                // (rows, vocab) where the device has them
  const DevicePicks* picks = nullptr;  // null: no row was picked
};

// Says what a step's rows are wanted for, while the device computes them.
using DescribeRows = std::function<void(const StepResult&, DevicePicks&)>;

class Executor {
 public:
  static Result<std::unique_ptr<Executor>> create(Backend& backend, Model& model, const ExecutorOptions& options);

  // Runs one step. An error (KV cache full) leaves the sequences as they were. Exceeding max_step_tokens is a bug.
  // Where the device can pick from rows (picks_rows), `describe` is called once and rows of logits stay there.
  Result<StepResult> run(std::span<const StepSequence> sequences, const DescribeRows& describe = {});
  // The same rows through the MTP module: `hidden` (tokens, hidden) of the same positions, ids shifted by one.
  Result<StepResult> run_mtp(std::span<const StepSequence> sequences, Tensor hidden, const DescribeRows& describe = {});
  // One more pass of the MTP module on some rows of the last one: one row per sequence, `hidden` (tokens, hidden) of that
  // pass, rows[i] the row that sequence i goes on from. The results of the passes before are no longer valid.
  Result<StepResult> run_mtp_again(std::span<const StepSequence> sequences, Tensor hidden, std::span<const int32_t> rows,
                                   const DescribeRows& describe = {});

  // Captures decode steps of every size, for contexts up to `longest_context`, on a backend that replays them; else nothing.
  void prepare_replays(int64_t longest_context, const std::function<void(int64_t done, int64_t all)>& progress);
  // Rows of a step's logits into `logits`, where picking kept them on the device: after what picks changed. Ascending.
  void read_logits(const StepResult& result, std::span<const int64_t> rows);
  // Rows [first, first + count) of a step's hidden state in host memory, valid until the next call. (count, hidden)
  Tensor read_hidden(const StepResult& result, int64_t first, int64_t count);

  Backend& backend() { return backend_; }
  Model& model() { return model_; }
  KvPool& kv() { return *kv_; }
  const ExecutorOptions& options() const { return options_; }
  size_t arena_peak() const { return arena_.peak(); }
  void set_observer(std::function<void(int, Tensor)> observe) { observe_ = std::move(observe); }

 private:
  Executor(Backend& backend, Model& model, const ExecutorOptions& options) : backend_(backend), model_(model), options_(options) {}
  Result<StepResult> run_forward(std::span<const StepSequence> sequences, const Tensor* mtp_hidden, const DescribeRows& describe);
  void take_logits(StepResult& result, int64_t rows, const DescribeRows& describe);
  Batch upload_batch(int64_t tokens, int64_t rows);
  // Fills a step of decode rows up to a size that is replayed; 0: this step is issued op by op.
  uint64_t pad_for_replay(std::span<const StepSequence> sequences, int64_t* tokens, int64_t* rows);
  int64_t replay_size(int64_t count) const;
  void pad_rows(int64_t count, int64_t size);
  ForwardResult replay(uint64_t key, int64_t tokens);

  Backend& backend_;
  Model& model_;
  ExecutorOptions options_;
  std::unique_ptr<KvPool> kv_;
  std::unique_ptr<DeviceMemory> arena_memory_, index_memory_, carry_memory_;
  std::unique_ptr<DeviceMemory> host_logits_;  // these two where the device's memory is not the host's
  std::unique_ptr<DevicePicks> picks_;         // where the backend picks rows
  std::vector<float> host_hidden_;
  Arena arena_;
  std::vector<int32_t> indices_;  // ids, positions, slots and logit rows of a step, in this order without gaps
  Tensor carry_;                  // (max_step_sequences, hidden) between passes of the MTP module
  std::vector<SequenceSlice> slices_;
  std::vector<int64_t> whole_rows_;
  int32_t padding_block_ = 0;
  struct Replayed {
    ForwardResult result;
    size_t arena_mark = 0;
  };
  std::unordered_map<uint64_t, Replayed> replayed_;  // where a step's results lie, by key
  std::function<void(int, Tensor)> observe_;
};

}  // namespace dg
