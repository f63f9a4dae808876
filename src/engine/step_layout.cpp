#include "engine/step_layout.h"

#include <algorithm>
#include <bit>

#include "engine/executor.h"

namespace dg {
namespace {

// Slices of `width` rows that a step may have.
int64_t most_slices(const ExecutorOptions& o, int64_t width) {
  if (width == 1) return std::min({o.max_step_sequences, o.max_logit_rows, o.max_step_tokens});
  const int64_t rows = std::min({o.max_logit_rows, o.max_step_tokens, std::max(o.max_decode_rows, o.max_step_sequences)});
  return std::min(o.max_step_sequences, rows / width);
}

}  // namespace

int64_t replay_rows(int64_t count, int64_t most) {
  const int64_t rows = count <= 2 ? count : count <= 4 ? 4 : count <= 32 ? (count + 7) / 8 * 8 : (count + 31) / 32 * 32;
  return std::min(rows, most);
}

int64_t longest_replay(int64_t longest_context) {
  int64_t longest = kShortestReplay;
  while (longest < longest_context) longest *= 2;
  return longest;
}

StepLayout choose_layout(const ExecutorOptions& options, std::span<const StepSequence> sequences, int64_t longest) {
  int64_t rows = 0, widest = 1, context = 0, last_begin = 0;
  for (const StepSequence& s : sequences) {
    const auto count = static_cast<int64_t>(s.ids.size());
    if (!s.decode || count > 1 + options.draft_tokens) return {};
    rows += count;
    widest = std::max(widest, count);
    context = std::max(context, s.first_position + count);
    last_begin = std::max(last_begin, s.first_position);
  }
  const auto count = static_cast<int64_t>(sequences.size());
  const StepLayout single{.slices = replay_rows(rows, most_slices(options, 1)), .longest = longest_replay(context), .split = widest > 1};
  const bool single_fits = single.slices >= rows && single.longest <= longest;
  if (widest == 1) return single_fits ? single : StepLayout();
  const int64_t width = 1 + options.draft_tokens;
  const StepLayout wide{
      .slices = replay_rows(count, most_slices(options, width)), .width = width, .longest = longest_replay(last_begin + width)};
  const bool wide_fits = wide.slices >= count && wide.longest <= longest;
  if (single_fits && (!wide_fits || 2 * single.tokens() <= wide.tokens())) return single;
  return wide_fits ? wide : StepLayout();
}

uint64_t ReplayShape::key() const {
  const auto bound = static_cast<uint64_t>(std::bit_width(static_cast<uint64_t>(layout.longest)));
  return uint64_t{1} << 63 | static_cast<uint64_t>(kind) << 60 | uint64_t{logits} << 56 | bound << 48 |
         static_cast<uint64_t>(layout.width) << 32 | static_cast<uint64_t>(layout.slices);
}

std::optional<ReplayShape> replay_shape(const ExecutorOptions& options, RankPass::Kind kind, const StepLayout& layout, int64_t rows) {
  if (kind != RankPass::Kind::kMain && !options.mtp_drafts) return {};
  ReplayShape shape{.kind = kind, .layout = layout};
  // The module runs in every step; behind one without drafts often for its cache alone.
  if (kind == RankPass::Kind::kMtp && layout.width == 1) shape.logits = rows > 0;
  if (rows > shape.logit_rows()) return {};
  return shape;
}

std::vector<ReplayShape> replay_shapes(const ExecutorOptions& options, int64_t longest_context) {
  std::vector<ReplayShape> shapes;
  for (int64_t longest = longest_replay(longest_context); longest >= kShortestReplay; longest /= 2)
    for (int64_t width : {1 + options.draft_tokens, int64_t{1}}) {
      const int64_t most = most_slices(options, width);
      for (int64_t count = most; count > 0; count--) {
        if (replay_rows(count, most) != count) continue;
        const StepLayout layout{.slices = count, .width = width, .longest = longest};
        shapes.push_back({.layout = layout});
        if (!options.mtp_drafts) continue;
        shapes.push_back({.kind = RankPass::Kind::kMtp, .layout = layout});
        if (width > 1) continue;
        shapes.push_back({.kind = RankPass::Kind::kMtp, .layout = layout, .logits = false});
        if (options.draft_tokens > 1) shapes.push_back({.kind = RankPass::Kind::kMtpAgain, .layout = layout});
      }
      if (options.draft_tokens == 0) break;
    }
  return shapes;
}

}  // namespace dg
