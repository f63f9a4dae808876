// Executor: runs plain-data steps of one model on one backend. It owns the arena, the KV pool and the step's index buffers;
// the engine (one thread) decides what runs. Engine thread only.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
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
  Tensor logits;  // (rows, vocab) f32, host-readable, valid until the next step
  Tensor hidden;  // (tokens, hidden) after the final norm, on the device, valid until the next step: read_hidden()
  const float* row(int64_t i) const { return logits.f32(i); }
};

class Executor {
 public:
  static Result<std::unique_ptr<Executor>> create(Backend& backend, Model& model, const ExecutorOptions& options);

  // Runs one step. An error (KV cache full) leaves the sequences as they were. Exceeding max_step_tokens is a bug.
  Result<StepResult> run(std::span<const StepSequence> sequences);
  // The same rows through the MTP module: `hidden` (tokens, hidden) of the same positions, ids shifted by one.
  Result<StepResult> run_mtp(std::span<const StepSequence> sequences, Tensor hidden);
  // One more pass of the MTP module on some rows of the last one: one row per sequence, `hidden` (tokens, hidden) of that
  // pass, rows[i] the row that sequence i goes on from. The results of the passes before are no longer valid.
  Result<StepResult> run_mtp_again(std::span<const StepSequence> sequences, Tensor hidden, std::span<const int32_t> rows);

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
  Result<StepResult> run_forward(std::span<const StepSequence> sequences, const Tensor* mtp_hidden);

  Backend& backend_;
  Model& model_;
  ExecutorOptions options_;
  std::unique_ptr<KvPool> kv_;
  std::unique_ptr<DeviceMemory> arena_memory_, index_memory_, carry_memory_;
  std::unique_ptr<DeviceMemory> host_logits_;  // these two where the device's memory is not the host's
  std::vector<float> host_hidden_;
  Arena arena_;
  std::vector<int32_t> indices_;  // ids, positions, slots and logit rows of a step, in this order without gaps
  Tensor carry_;                                 // (max_step_sequences, hidden) between passes of the MTP module
  std::vector<SequenceSlice> slices_;
  std::function<void(int, Tensor)> observe_;
};

}  // namespace dg
