// RankExecutor: the part of the Executor that one device has: arena, cache, indices, forward, replayed steps, download. Each is
// driven by a thread of its own, all with the same steps; they meet in the collectives of their backends.
#pragma once
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "model/model.h"

namespace dg {

struct ExecutorOptions;

// One pass through the model as plain data: the same for every rank.
struct RankPass {
  enum class Kind { kMain, kMtp, kMtpAgain };
  Kind kind = Kind::kMain;
  std::span<const int32_t> indices;  // ids, positions, slots (tokens each) and logit rows, without gaps
  int64_t tokens = 0, rows = 0;
  std::span<const SequenceSlice> slices;
  uint64_t replay_key = 0;  // of a pass that is replayed (ReplayShape); 0: it is issued op by op
  int64_t longest = 0;      // of a replayed pass: the bound of its contexts
  int64_t wanted_rows = 0;  // the rows of logits beyond are padding
  // kMtp, kMtpAgain: (tokens, hidden) as rank 0 has it, and how many bytes behind the hidden state of its last pass it begins. Not valid:
  // that of the last pass.
  Tensor hidden{};
  ptrdiff_t hidden_offset = 0;
  std::span<const int32_t> carried_rows{};  // kMtpAgain: the rows of `hidden` to go on from
};

class RankExecutor {
 public:
  static Result<std::unique_ptr<RankExecutor>> create(Backend& backend, Model& model, const ExecutorOptions& options);

  // Issues the pass; its results lie on the device.
  void issue(const RankPass& pass, const std::function<void(int, Tensor)>& observe);
  // Waits for it and writes this rank's columns of the logits to `logits` (rows, vocab), if given.
  void finish(float* logits, int64_t vocab);

  const ForwardResult& result() const { return result_; }  // of the last pass
  std::chrono::steady_clock::time_point device_began() const {
    return device_began_;
  }  // when the last pass was first heard of by the device
  // Rows [first, first + count) of a hidden state in host memory, until the next call.
  Tensor read_rows(const Tensor& hidden, int64_t first, int64_t count);

  Backend& backend() { return backend_; }
  Model& model() { return model_; }
  KvPool& kv() { return *kv_; }
  size_t arena_peak() const { return arena_.peak(); }

 private:
  RankExecutor(Backend& backend, Model& model, int64_t block_tokens) : backend_(backend), model_(model), block_tokens_(block_tokens) {}
  Batch upload_batch(const RankPass& pass);
  // The pass, whose ops `forward` issues: by replaying them, where it has a key.
  ForwardResult run(const RankPass& pass, const std::function<ForwardResult(const Batch&)>& forward);
  Tensor own_hidden(const RankPass& pass) const;

  Backend& backend_;
  Model& model_;
  int64_t block_tokens_;
  std::unique_ptr<KvPool> kv_;
  std::unique_ptr<DeviceMemory> arena_memory_, index_memory_, carry_memory_;
  std::vector<float> host_hidden_;
  Arena arena_;
  Tensor carry_;  // (max_step_sequences, hidden) between passes of the MTP module
  ForwardResult result_;
  std::chrono::steady_clock::time_point device_began_;
  struct Replayed {
    ForwardResult result;
    size_t arena_begin = 0, arena_end = 0;
  };
  std::unordered_map<uint64_t, Replayed> replayed_;  // where a step's results lie, by key
};

}  // namespace dg
