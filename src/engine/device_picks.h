// DevicePicks: what sampling needs of a step's logits, taken on the device that has them. A step's rows are described (add), then
// run() uploads the description, adjusts the logits, picks, and downloads a few hundred bytes a row; a Sampler finishes from these.
// Rows that cannot be finished so are downloaded whole.
//
// Cost beside the step: one upload, two ops, one download. Engine thread; add() for different rows from several threads.
#pragma once
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "device/backend.h"
#include "engine/sampler.h"

namespace dg {

class DevicePicks {
 public:
  // Of steps of at most `max_rows` rows of `vocab` logits. Errors: memory.
  static Result<std::unique_ptr<DevicePicks>> create(Backend& backend, int64_t vocab, int64_t max_rows);

  // A step of `rows` rows, none of them described: all are wanted whole.
  void begin(int64_t rows);
  // `input` describes the pick (its logits, picked and adjusted are not looked at); `drafts` stand behind the sequence: they count for
  // the penalties. Where it asks for what cannot be picked on the device, the row stays wanted whole.
  void add(int64_t row, const SampleInput& input, std::span<const int32_t> drafts = {});
  int64_t max_rows() const { return max_rows_; }
  void skip(int64_t row);  // nobody asks for this row

  // `logits` (rows, vocab) on the device: rows that are picked are changed in place. Waits for the results.
  void run(Tensor logits);
  // The row's figures, valid until begin(); null: it was not picked.
  const PickedRow* picked(int64_t row) const {
    return rows_[static_cast<size_t>(row)].result ? &*rows_[static_cast<size_t>(row)].result : nullptr;
  }
  bool wanted_whole(int64_t row) const { return rows_[static_cast<size_t>(row)].state == State::kWhole; }

 private:
  enum class State : uint8_t { kWhole, kPicked, kNone };
  struct Row {
    State state = State::kWhole;
    PickSpec spec;
    std::vector<LogitChange> changes;
    std::vector<uint32_t> mask;  // empty: every token is allowed
    std::optional<PickedRow> result;
  };
  DevicePicks(Backend& backend, int64_t vocab, int64_t max_rows) : backend_(backend), vocab_(vocab), max_rows_(max_rows) {}

  Backend& backend_;
  const int64_t vocab_, max_rows_;
  std::vector<Row> rows_;
  int64_t count_ = 0;
  int64_t chunks_ = 0;  // of a row
  std::unique_ptr<DeviceMemory> input_memory_, output_memory_, host_output_, scratch_;
  std::vector<int32_t> words_;  // of a step: specs, masks, changes
};

}  // namespace dg
