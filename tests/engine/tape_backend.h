// A backend that captures and replays steps and whose memory the host must not touch: the CPU behind a tape of its ops. What is
// replayed is exactly what was issued, with the sequences of begin_step(), as a CUDA graph does it. And models loaded on it.
#pragma once
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "backends/cpu/cpu.h"
#include "device/local_group.h"
#include "engine/executor.h"
#include "engine/warm_up.h"
#include "io/tensor_index.h"
#include "plan/sizing.h"

namespace dg {

class TapeBackend : public Backend {
 public:
  explicit TapeBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  const char* name() const override { return "tape"; }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override { return inner_->allocate(bytes, purpose); }
  bool host_memory() const override { return false; }
  bool picks_rows() const override { return true; }
  bool supports(const Format& format) const override { return inner_->supports(format); }
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override { return inner_->prepared_bytes(format, out, in); }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override { inner_->prepare(rows, first, out, to); }

  Result<void> status() const override {
    if (fails_in >= 0) return {};
    return Error{ErrorKind::kDevice, "GPU 0 failed: an illegal memory access was encountered"};
  }
  void synchronise() override {
    inner_->synchronise();
    if (fails_in > 0 && fails_in != kNever && --fails_in == 0) fails_in = -1;
  }
  static constexpr int kNever = 1 << 30;
  int fails_in = kNever;  // steps; below 0: it has failed

  Memory memory() const override { return memory_; }
  Memory memory_;
  bool replays() const override { return true; }
  void forget_replays() override { tapes_.clear(); }
  // A device reads the block of every row that a slice has in the cache.
  void begin_step(std::span<const SequenceSlice> slices, int64_t block_tokens, int64_t longest_kv) override {
    slices_.assign(slices.begin(), slices.end());
    for (const SequenceSlice& s : slices) {
      EXPECT_LE(s.kv_len, longest_kv);
      for (int64_t row = 0; row < s.kv_len; row += block_tokens) EXPECT_GE(s.blocks[row / block_tokens], 0);
    }
  }
  void replay(uint64_t key, const std::function<void()>& issue) override {
    auto& tape = tapes_[key];
    if (tape.empty()) {
      recording_ = &tape;
      issue();
      recording_ = nullptr;
      return;
    }
    replayed++;
    for (const auto& op : tape) op();
  }

#define DG_TAPE(method, Op) \
  void method(const Op& op) override { run(&Backend::method, op); }
  DG_OPS(DG_TAPE)
#undef DG_TAPE

  int replayed = 0;
  size_t keys() const { return tapes_.size(); }

 private:
  template <class Op>
  void run(void (Backend::*method)(const Op&), const Op& op) {
    if (recording_) {
      size_t mark = 0;
      if constexpr (requires { op.scratch->mark(); }) mark = op.scratch ? op.scratch->mark() : 0;
      recording_->push_back([this, method, op, mark] {
        Op copy = op;
        if constexpr (requires { copy.scratch->mark(); })
          if (copy.scratch) copy.scratch->release(mark);
        if constexpr (requires { copy.sequences; }) copy.sequences = slices_;
        (inner_.get()->*method)(copy);
      });
    }
    (inner_.get()->*method)(op);
  }

  std::unique_ptr<Backend> inner_;
  std::vector<SequenceSlice> slices_;
  std::map<uint64_t, std::vector<std::function<void()>>> tapes_;
  std::vector<std::function<void()>>* recording_ = nullptr;
};

struct Loaded {
  std::unique_ptr<LocalGroup> group;
  std::unique_ptr<TensorIndex> index;
  struct Rank {
    std::unique_ptr<Backend> backend;
    std::unique_ptr<WeightStore> store;
    std::unique_ptr<Model> model;
  };
  std::vector<Rank> ranks;
  std::unique_ptr<Executor> executor;
};

inline constexpr ExecutorOptions kReplayOptions{.kv_tokens = 4096, .max_step_tokens = 64, .max_step_sequences = 11, .max_logit_rows = 11};

inline Loaded load(const std::string& path, std::unique_ptr<LocalGroup> group, std::vector<std::unique_ptr<Backend>> backends,
                   ExecutorOptions options = kReplayOptions) {
  Loaded l;
  l.group = std::move(group);
  auto config = read_model_config(path);
  auto index = TensorIndex::open(path);
  EXPECT_TRUE(config.ok() && index.ok());
  l.index = std::make_unique<TensorIndex>(std::move(*index));
  l.ranks.resize(backends.size());
  std::vector<ExecutorRank> parts;
  for (size_t r = 0; r < backends.size(); r++) {
    Loaded::Rank& rank = l.ranks[r];
    rank.backend = std::move(backends[r]);
    rank.store = std::make_unique<WeightStore>(*rank.backend, l.index.get(), WeightPolicy{});
    config->parallel = {.rank = static_cast<int>(r), .size = static_cast<int>(backends.size())};
    auto model = make_model(*config, *rank.store);
    EXPECT_TRUE(model.ok());
    rank.model = std::move(*model);
    EXPECT_TRUE(rank.store->load({.threads = 2}).ok());
    options.arena_bytes =
        std::max(options.arena_bytes, measure_arena_bytes(*rank.model, options.max_step_tokens, options.max_step_sequences, 2048,
                                                          options.max_logit_rows, options.max_decode_rows));
    parts.push_back({*rank.backend, *rank.model});
  }
  auto executor = Executor::create(parts, l.group.get(), options);
  EXPECT_TRUE(executor.ok());
  l.executor = std::move(*executor);
  return l;
}

inline Loaded load(const std::string& path, std::unique_ptr<Backend> backend, const ExecutorOptions& options = kReplayOptions) {
  std::vector<std::unique_ptr<Backend>> one;
  one.push_back(std::move(backend));
  return load(path, nullptr, std::move(one), options);
}

inline std::unique_ptr<Backend> cpu(RankGroup* group = nullptr, int rank = 0) {
  auto made = make_cpu_backend({.threads = group ? 1 : 2, .pin = false, .group = group, .rank = rank});
  EXPECT_TRUE(made.ok());
  return std::move(*made);
}

// Ranks, each behind a tape or not.
inline Loaded load_ranks(const std::string& path, int ranks, bool taped, const ExecutorOptions& options = kReplayOptions) {
  auto group = std::make_unique<LocalGroup>(ranks, std::chrono::seconds(30));
  std::vector<std::unique_ptr<Backend>> backends;
  for (int r = 0; r < ranks; r++) {
    backends.push_back(cpu(group.get(), r));
    if (taped) backends.back() = std::make_unique<TapeBackend>(std::move(backends.back()));
  }
  return load(path, std::move(group), std::move(backends), options);
}

}  // namespace dg
