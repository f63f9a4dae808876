// Which steps are captured once and replayed, and how the rows of a step are laid out for that. Generation rows come in a few shapes: a
// number of slices, each of `width` rows, with contexts up to a bound. What is missing of a shape is filled up.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/rank_executor.h"

namespace dg {

struct ExecutorOptions;
struct StepSequence;

constexpr int64_t kShortestReplay = 1024;  // bound of the contexts of the first class of replayed steps

// How the rows of a step lie in its batch.
struct StepLayout {
  int64_t slices = 0;   // with those that fill up; 0: the rows lie behind each other as they come, and nothing is replayed
  int64_t width = 1;    // rows of each slice
  int64_t longest = 0;  // bound of their contexts
  // Every row of a sequence is a slice of its own: for few drafts among many sequences. It reads the cache of the sequence again.
  bool split = false;

  bool padded() const { return slices > 0; }
  int64_t tokens() const { return slices * width; }
  friend bool operator==(const StepLayout&, const StepLayout&) = default;
};

// Where a step of these sequences is fastest; not padded: it has prompt rows, or more of a sequence than drafts and one. Contexts
// beyond `longest` are not replayed. A row wants its logits or not; that is not looked at.
StepLayout choose_layout(const ExecutorOptions& options, std::span<const StepSequence> sequences, int64_t longest);

// One shape that is captured.
struct ReplayShape {
  RankPass::Kind kind = RankPass::Kind::kMain;
  StepLayout layout;
  bool logits = true;  // kMtp: of a row per slice; kMain and kMtpAgain always have those of all rows

  int64_t logit_rows() const { return !logits ? 0 : kind == RankPass::Kind::kMtp ? layout.slices : layout.tokens(); }
  uint64_t key() const;
};

// The shape of a pass with `rows` rows of logits in `layout`, which is padded; none: it is issued op by op.
std::optional<ReplayShape> replay_shape(const ExecutorOptions& options, RankPass::Kind kind, const StepLayout& layout, int64_t rows);

// All of them for contexts up to `longest_context`, the largest first: they need the most workspace, and graphs hold its address.
std::vector<ReplayShape> replay_shapes(const ExecutorOptions& options, int64_t longest_context);
int64_t longest_replay(int64_t longest_context);  // the bound of the last class

// Slices of the replayed step that `count` slices run in, with `most` in a step at most.
int64_t replay_rows(int64_t count, int64_t most);

}  // namespace dg
