#include "engine/step_runner.h"

#include <algorithm>
#include <cmath>

#include "engine/speculation.h"

namespace dg {
namespace {

constexpr size_t kPickedRowsOfAThread = 8;

bool contains(std::span<const int32_t> ids, int32_t id) { return std::find(ids.begin(), ids.end(), id) != ids.end(); }

}  // namespace

ModelStepRunner::ModelStepRunner(Executor& executor, const EngineOptions& options)
    : executor_(executor),
      options_(options),
      vocab_(static_cast<size_t>(executor.model().config().vocab)),
      workers_(static_cast<size_t>(executor.backend().host_workers())) {}

void ModelStepRunner::run(const StepPlan& plan, StepResults& results) {
  size_t n = plan.items.size();
  results.error.reset();
  results.waited_s = 0;
  if (!plan.follows) executor_.rest();
  if (results.items.size() < n) results.items.resize(n);
  ids_.clear();
  size_t rows = 0;
  for (const StepItem& item : plan.items) rows += static_cast<size_t>(item.rows);
  ids_.reserve(rows);  // spans into it stay valid
  steps_.clear();
  first_token_row_.clear();
  for (size_t i = 0; i < n; i++) {
    const StepItem& item = plan.items[i];
    Sequence& s = *item.sequence;
    ItemResult& r = results.items[i];
    r.token_count = r.accepted = 0;
    r.end.reset();
    r.stop_id = -1;
    r.failed = false;
    r.drafts.clear();
    r.prompt_logprobs.clear();
    auto known = static_cast<size_t>(item.rows - item.drafts);
    std::span<const int32_t> ids = std::span(s.ids).subspan(static_cast<size_t>(item.begin), known);
    if (item.drafts > 0) {
      size_t at = ids_.size();
      ids_.insert(ids_.end(), ids.begin(), ids.end());
      ids_.insert(ids_.end(), s.drafts.begin(), s.drafts.begin() + item.drafts);
      ids = std::span<const int32_t>(ids_).subspan(at, static_cast<size_t>(item.rows));
    }
    LogitsWanted logits = item.prompt_logits || item.drafts > 0 ? LogitsWanted::kAll
                          : item.wants_token                    ? LogitsWanted::kLast
                                                                : LogitsWanted::kNone;
    steps_.push_back({.ids = ids, .first_position = item.begin, .blocks = &s.blocks, .decode = item.decode, .logits = logits});
  }
  Result<StepResult> out = executor_.run(steps_, [&](const StepResult& result, DevicePicks& picks) { describe_rows(plan, result, picks); });
  if (!out.ok()) {
    results.error = out.error();
    return;
  }
  results.waited_s += executor_.waited_s();
  set_token_rows(plan, *out);
  for (const StepItem& item : plan.items)
    if (item.sequence->request.request.pooling != Pooling::kNone)
      pool_rows(item, *out, out->first_hidden[static_cast<size_t>(&item - plan.items.data())]);
  needed_rows_.assign(n, -1);
  for_rows(n, *out, [&](size_t index, Worker& w) {
    const StepItem& item = plan.items[index];
    if (item.prompt_logits) prompt_logprobs(item, *out, index, w, results.items[index]);
    if (item.wants_token && sample_item(item, *out, index, 0, w, results.items[index])) text_drafts(plan, item, results.items[index]);
  });
  fetch_needed(*out, n, [&](size_t index, Worker& w) {
    const StepItem& item = plan.items[index];
    ItemResult& result = results.items[index];
    if (!sample_item(item, *out, index, result.token_count, w, result)) return false;
    text_drafts(plan, item, result);
    return true;
  });
  if (options_.speculation == SpeculationMethod::kMtp) {
    Result<void> drafted = mtp_drafts(plan, *out, results);
    if (!drafted.ok()) results.error = drafted.error();
  }
}

void ModelStepRunner::set_token_rows(const StepPlan& plan, const StepResult& out) {
  first_token_row_.clear();
  for (size_t i = 0; i < plan.items.size(); i++)
    first_token_row_.push_back(out.first_row[i] + (plan.items[i].prompt_logits ? plan.items[i].rows - 1 : 0));
}

void ModelStepRunner::describe_rows(const StepPlan& plan, const StepResult& out, DevicePicks& picks) {
  set_token_rows(plan, out);
  executor_.backend().host_parallel(static_cast<int64_t>(plan.items.size()), [&](int64_t i, int) {
    const StepItem& item = plan.items[static_cast<size_t>(i)];
    if (!item.wants_token) return;
    const Sequence& s = *item.sequence;
    GrammarState grammar = s.grammar;
    const int64_t first = first_token_row_[static_cast<size_t>(i)];
    for (int j = 0; j <= item.drafts; j++) {
      const bool reached = j == 0 || !grammar.active() || grammar.accept(s.drafts[static_cast<size_t>(j) - 1]);
      if (!reached) {  // the draft before cannot be accepted
        for (int k = j; k <= item.drafts; k++) picks.skip(first + k);
        return;
      }
      const auto drafts = std::span(s.drafts).first(static_cast<size_t>(j));
      picks.add(first + j, sample_input(item, j, grammar.active() ? grammar.mask() : nullptr), drafts);
    }
  });
}

// How the token behind the sequence and `draft` of its drafts is drawn.
SampleInput ModelStepRunner::sample_input(const StepItem& item, int draft, const uint32_t* allowed) const {
  const Sequence& s = *item.sequence;
  const EngineRequest& request = s.request.request;
  const int64_t length = static_cast<int64_t>(s.ids.size()) + draft;
  SampleInput input;
  input.params = &request.sampling;
  input.history = &s.history;
  input.position = static_cast<uint64_t>(length);
  input.seed = s.seed;
  input.allowed = allowed;
  if (length - s.prompt_tokens < request.min_tokens) input.forbidden = request.stop_ids;
  input.logprobs = request.logprobs;
  return input;
}

// `whole`: the row itself, which was fetched after a pick that did not do.
void ModelStepRunner::set_row(const StepResult& out, int64_t row, bool whole, SampleInput& input) const {
  const PickedRow* picked = out.picked(row);
  if (picked && !whole) input.picked = picked;
  else input.logits = {out.row(row), vocab_};
  input.adjusted = picked != nullptr;
}

void ModelStepRunner::for_rows(size_t count, const StepResult& out, const std::function<void(size_t, Worker&)>& fn) {
  const size_t group = out.picks && options_.speculation != SpeculationMethod::kNgram ? kPickedRowsOfAThread : 1;
  executor_.backend().host_parallel(static_cast<int64_t>((count + group - 1) / group), [&](int64_t g, int worker) {
    const size_t first = static_cast<size_t>(g) * group;
    for (size_t i = first; i < std::min(count, first + group); i++) fn(i, workers_[static_cast<size_t>(worker)]);
  });
}

void ModelStepRunner::fetch_needed(const StepResult& out, size_t count, const std::function<bool(size_t, Worker&)>& again) {
  std::vector<size_t> open;
  for (size_t i = 0; i < count; i++)
    if (needed_rows_[i] >= 0) open.push_back(i);
  while (!open.empty()) {
    fetched_.clear();
    for (size_t i : open) fetched_.push_back(needed_rows_[i]);
    std::sort(fetched_.begin(), fetched_.end());
    executor_.read_logits(out, fetched_);
    executor_.backend().host_parallel(static_cast<int64_t>(open.size()), [&](int64_t k, int worker) {
      const size_t i = open[static_cast<size_t>(k)];
      if (again(i, workers_[static_cast<size_t>(worker)])) needed_rows_[i] = -1;
    });
    std::erase_if(open, [&](size_t i) { return needed_rows_[i] < 0; });
  }
}

void ModelStepRunner::text_drafts(const StepPlan& plan, const StepItem& item, ItemResult& result) const {
  if (options_.speculation != SpeculationMethod::kNgram || !plan.draft || !item.sequence->request.request.speculate ||
      result.token_count == 0 || result.end)
    return;
  // The sequence with its new tokens, which are appended only when the engine commits.
  const Sequence& s = *item.sequence;
  std::vector<int32_t> text(s.ids.end() - static_cast<std::ptrdiff_t>(std::min<size_t>(s.ids.size(), 8192)), s.ids.end());
  for (int t = 0; t < result.token_count; t++) text.push_back(result.tokens[static_cast<size_t>(t)].id);
  ngram_drafts(text, options_.draft_tokens, result.drafts);
}

// Draws the token behind the last known one; while it equals the draft that stands there, the next row is as good as computed.
bool ModelStepRunner::sample_item(const StepItem& item, const StepResult& out, size_t index, int from, Worker& worker, ItemResult& result) {
  Sequence& s = *item.sequence;
  const EngineRequest& request = s.request.request;
  for (int j = from; j <= item.drafts; j++) {
    if (result.tokens.size() <= static_cast<size_t>(j)) result.tokens.emplace_back();
    SampleOutput& token = result.tokens[static_cast<size_t>(j)];
    const int64_t length = static_cast<int64_t>(s.ids.size()) + j, generated = length - s.prompt_tokens, row = first_token_row_[index] + j;
    const bool masked = s.grammar.active() && !out.picked(row);  // a picked row is masked already
    SampleInput input = sample_input(item, j, masked ? s.grammar.mask() : nullptr);
    set_row(out, row, row == needed_rows_[index], input);
    worker.sampler.sample(input, token);
    if (token.id == kNeedsRow) {
      needed_rows_[index] = row;
      return false;
    }
    if (token.id < 0) {
      result.failed = true;
      return true;
    }
    result.token_count = j + 1;
    if (request.sampling.penalises()) s.history.add_output(token.id);
    if (contains(request.stop_ids, token.id)) {
      result.stop_id = token.id;
      result.end = FinishReason::kStop;
    } else if (s.grammar.active() && (!s.grammar.accept(token.id) || s.grammar.must_end())) {
      result.end = FinishReason::kStop;
    } else if (request.max_tokens > 0 && generated + 1 >= request.max_tokens) {
      result.end = FinishReason::kLength;
    } else if (length + 1 >= options_.max_model_len) {
      result.end = FinishReason::kContext;
    }
    bool accepted = j < item.drafts && s.drafts[static_cast<size_t>(j)] == token.id;
    result.accepted += accepted;
    if (result.end || !accepted) return true;
  }
  return true;
}

void ModelStepRunner::prompt_logprobs(const StepItem& item, const StepResult& out, size_t index, Worker& worker, ItemResult& result) {
  const Sequence& s = *item.sequence;
  int count = s.request.request.prompt_logprobs;
  for (int64_t j = 0; j < item.rows; j++) {
    int64_t next = item.begin + j + 1;
    if (next >= s.prompt_tokens) break;
    std::span<const float> logits(out.row(out.first_row[index] + j), vocab_);
    SamplingParams plain;
    TokenHistory none;
    SampleInput input;
    input.logits = logits;
    input.params = &plain;
    input.history = &none;
    input.logprobs = std::max(count, 0);
    worker.sampler.sample(input, worker.draft);
    TokenInfo info;
    info.id = s.ids[static_cast<size_t>(next)];
    // The sampler's pick is the likeliest token, whose logprob is known: the difference of the logits gives the other's.
    if (worker.draft.id >= 0)
      info.logprob = worker.draft.logprob + logits[static_cast<size_t>(info.id)] - logits[static_cast<size_t>(worker.draft.id)];
    for (const auto& [id, logprob] : worker.draft.top) info.top.push_back({id, logprob});
    result.prompt_logprobs.push_back(std::move(info));
  }
}

void ModelStepRunner::pool_rows(const StepItem& item, const StepResult& out, int64_t first) {
  Sequence& s = *item.sequence;
  auto width = static_cast<size_t>(out.hidden.cols());
  bool mean = s.request.request.pooling == Pooling::kMean;
  if (!mean || s.pooled.size() != width) s.pooled.assign(width, 0);
  const int64_t from = mean ? 0 : item.rows - 1;
  const Tensor hidden = executor_.read_hidden(out, first + from, item.rows - from);
  for (int64_t j = 0; j < hidden.rows(); j++) {
    const float* row = hidden.f32(j);
    for (size_t k = 0; k < width; k++) s.pooled[k] += row[k];
  }
}

SampleInput ModelStepRunner::draft_input(const Sequence& s, int64_t position, const uint32_t* allowed) const {
  SampleInput input;
  input.params = &s.request.request.sampling;
  input.history = &s.history;
  input.position = static_cast<uint64_t>(position);
  input.seed = s.seed;
  input.allowed = allowed;
  return input;
}

// Draws a draft from the module's logits with the random number that the model's own draw will use there.
bool ModelStepRunner::draft_from(const StepResult& out, int64_t row, bool whole, Sequence& s, int64_t position, GrammarState& grammar,
                                 Worker& worker, std::vector<int32_t>& drafts, uint8_t& alive) {
  SampleInput input = draft_input(s, position, grammar.active() && !out.picked(row) ? grammar.mask() : nullptr);
  set_row(out, row, whole, input);
  worker.sampler.sample(input, worker.draft);
  const int32_t id = worker.draft.id;
  if (id == kNeedsRow) return false;
  alive = id >= 0 && !contains(s.request.request.stop_ids, id) && (!grammar.active() || grammar.accept(id));
  if (alive) drafts.push_back(id);
  return true;
}

// The module runs on every row of the step, so that its cache keeps up; ids are those of the model, shifted by one. Rows of
// rejected drafts get arbitrary ids: their positions are computed again.
Result<void> ModelStepRunner::mtp_drafts(const StepPlan& plan, const StepResult& out, StepResults& results) {
  size_t n = plan.items.size();
  size_t rows = 0;
  for (const StepItem& item : plan.items) rows += static_cast<size_t>(item.rows);
  ids_.clear();
  ids_.reserve(rows + n);
  std::vector<std::span<const int32_t>> spans;
  drafting_.clear();
  draft_grammar_.clear();
  for (size_t i = 0; i < n; i++) {
    const StepItem& item = plan.items[i];
    const Sequence& s = *item.sequence;
    const ItemResult& r = results.items[i];
    size_t at = ids_.size();
    int64_t known = static_cast<int64_t>(s.ids.size());
    for (int64_t row = 0; row < item.rows; row++) {
      int64_t next = item.begin + row + 1;
      int64_t token = next - known;  // >= 0: a token of this step
      ids_.push_back(token < 0 ? s.ids[static_cast<size_t>(next)] : token < r.token_count ? r.tokens[static_cast<size_t>(token)].id : 0);
    }
    spans.push_back(std::span<const int32_t>(ids_).subspan(at));
    steps_[i].ids = spans.back();
    steps_[i].logits = LogitsWanted::kNone;
    const EngineRequest& request = s.request.request;
    bool wants = plan.draft && request.speculate && item.wants_token && !r.end && !r.failed && r.token_count > 0 &&
                 static_cast<int64_t>(drafting_.size()) < executor_.options().max_logit_rows;
    if (!wants) continue;
    steps_[i].logits = LogitsWanted::kRow;
    steps_[i].logit_row = item.rows - item.drafts - 1 + r.accepted;
    drafting_.push_back(i);
    draft_grammar_.push_back(s.grammar);
  }
  int depth = 0;
  auto row_of = [&](const StepResult& of, size_t k) { return of.first_row[depth == 0 ? drafting_[k] : k]; };
  auto position_of = [&](size_t k) {
    const size_t i = drafting_[k];
    return static_cast<int64_t>(plan.items[i].sequence->ids.size()) + results.items[i].token_count + depth;
  };
  const DescribeRows describe = [&](const StepResult& of, DevicePicks& picks) {
    executor_.backend().host_parallel(static_cast<int64_t>(drafting_.size()), [&](int64_t d, int) {
      const auto k = static_cast<size_t>(d);
      const Sequence& s = *plan.items[drafting_[k]].sequence;
      GrammarState& grammar = draft_grammar_[k];
      picks.add(row_of(of, k), draft_input(s, position_of(k), grammar.active() ? grammar.mask() : nullptr));
    });
  };
  DG_ASSIGN(StepResult draft, executor_.run_mtp(steps_, out.hidden, describe));
  results.waited_s += executor_.waited_s();
  std::vector<uint8_t> alive(drafting_.size(), 1);
  while (depth < options_.draft_tokens && !drafting_.empty()) {
    auto draw = [&](size_t k, Worker& worker) {
      const size_t i = drafting_[k];
      const int64_t row = row_of(draft, k);
      const bool whole = needed_rows_[k] == row;
      needed_rows_[k] = row;
      return draft_from(draft, row, whole, *plan.items[i].sequence, position_of(k), draft_grammar_[k], worker, results.items[i].drafts,
                        alive[k]);
    };
    needed_rows_.assign(drafting_.size(), -1);
    for_rows(drafting_.size(), draft, [&](size_t k, Worker& worker) {
      if (draw(k, worker)) needed_rows_[k] = -1;
    });
    fetch_needed(draft, drafting_.size(), draw);
    if (depth + 1 == options_.draft_tokens) break;
    // The next draft stands on the module's own hidden state, one position further.
    std::vector<size_t> next_items;
    std::vector<GrammarState> next_grammar;
    rows_.clear();
    ids_.clear();
    ids_.reserve(drafting_.size());
    std::vector<StepSequence> next_steps;
    for (size_t k = 0; k < drafting_.size(); k++) {
      if (!alive[k]) continue;
      size_t i = drafting_[k];
      const StepItem& item = plan.items[i];
      Sequence& s = *item.sequence;
      int64_t position = item.begin + item.rows - item.drafts + results.items[i].accepted + depth;
      if (s.blocks.missing_blocks(position + 1) > 0) continue;  // no block for its row: the chain ends here
      rows_.push_back(static_cast<int32_t>(depth == 0 ? draft.first_hidden[i] + steps_[i].logit_row : draft.first_hidden[k]));
      ids_.push_back(results.items[i].drafts.back());
      next_steps.push_back({.first_position = position, .blocks = &s.blocks, .decode = true, .logits = LogitsWanted::kLast});
      next_items.push_back(i);
      next_grammar.push_back(draft_grammar_[k]);
    }
    if (next_items.empty()) break;
    for (size_t k = 0; k < next_steps.size(); k++) next_steps[k].ids = std::span<const int32_t>(ids_).subspan(k, 1);
    drafting_ = std::move(next_items);
    draft_grammar_ = std::move(next_grammar);
    alive.assign(drafting_.size(), 1);
    depth++;
    DG_ASSIGN(draft, executor_.run_mtp_again(next_steps, draft.hidden, rows_, describe));
    results.waited_s += executor_.waited_s();
  }
  return {};
}

}  // namespace dg
