#include "engine/step_runner.h"

#include <algorithm>
#include <cmath>

#include "engine/speculation.h"

namespace dg {
namespace {

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
  Result<StepResult> out = executor_.run(steps_);
  if (!out.ok()) {
    results.error = out.error();
    return;
  }
  for (size_t i = 0; i < n; i++) {
    const StepItem& item = plan.items[i];
    first_token_row_.push_back(out->first_row[i] + (item.prompt_logits ? item.rows - 1 : 0));
    if (item.sequence->request.request.pooling != Pooling::kNone) pool_rows(item, *out);
  }
  executor_.backend().host_parallel(static_cast<int64_t>(n), [&](int64_t i, int worker) {
    auto index = static_cast<size_t>(i);
    const StepItem& item = plan.items[index];
    Worker& w = workers_[static_cast<size_t>(worker)];
    if (item.prompt_logits) prompt_logprobs(item, *out, index, w, results.items[index]);
    if (item.wants_token) sample_item(item, *out, index, w, results.items[index]);
    if (options_.speculation == SpeculationMethod::kNgram && plan.draft && item.wants_token && item.sequence->request.request.speculate &&
        results.items[index].token_count > 0 && !results.items[index].end) {
      // The sequence with its new tokens, which are appended only when the engine commits.
      const Sequence& s = *item.sequence;
      std::vector<int32_t> text(s.ids.end() - static_cast<std::ptrdiff_t>(std::min<size_t>(s.ids.size(), 8192)), s.ids.end());
      for (int t = 0; t < results.items[index].token_count; t++) text.push_back(results.items[index].tokens[static_cast<size_t>(t)].id);
      ngram_drafts(text, options_.draft_tokens, results.items[index].drafts);
    }
  });
  if (options_.speculation == SpeculationMethod::kMtp) {
    Result<void> drafted = mtp_drafts(plan, *out, results);
    if (!drafted.ok()) results.error = drafted.error();
  }
}

// Draws the token behind the last known one; while it equals the draft that stands there, the next row is as good as computed.
void ModelStepRunner::sample_item(const StepItem& item, const StepResult& out, size_t index, Worker& worker, ItemResult& result) {
  Sequence& s = *item.sequence;
  const EngineRequest& request = s.request.request;
  for (int j = 0; j <= item.drafts; j++) {
    if (result.tokens.size() <= static_cast<size_t>(j)) result.tokens.emplace_back();
    SampleOutput& token = result.tokens[static_cast<size_t>(j)];
    int64_t length = static_cast<int64_t>(s.ids.size()) + j, generated = length - s.prompt_tokens;
    SampleInput input;
    input.logits = {out.row(first_token_row_[index] + j), vocab_};
    input.params = &request.sampling;
    input.history = &s.history;
    input.position = static_cast<uint64_t>(length);
    input.seed = s.seed;
    if (s.grammar.active()) input.allowed = s.grammar.mask();
    if (generated < request.min_tokens) input.forbidden = request.stop_ids;
    input.logprobs = request.logprobs;
    worker.sampler.sample(input, token);
    if (token.id < 0) {
      result.failed = true;
      return;
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
    if (result.end || !accepted) return;
  }
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

void ModelStepRunner::pool_rows(const StepItem& item, const StepResult& out) {
  Sequence& s = *item.sequence;
  int64_t first = 0;
  for (const StepSequence& step : steps_) {
    if (step.blocks == &s.blocks) break;
    first += static_cast<int64_t>(step.ids.size());
  }
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

// Draws a draft from the module's logits with the random number that the model's own draw will use there.
bool ModelStepRunner::draft_from(const float* logits, Sequence& s, int64_t position, GrammarState& grammar, Worker& worker,
                                 std::vector<int32_t>& drafts) {
  const EngineRequest& request = s.request.request;
  SampleInput input;
  input.logits = {logits, vocab_};
  input.params = &request.sampling;
  input.history = &s.history;
  input.position = static_cast<uint64_t>(position);
  input.seed = s.seed;
  if (grammar.active()) input.allowed = grammar.mask();
  worker.sampler.sample(input, worker.draft);
  int32_t id = worker.draft.id;
  if (id < 0 || contains(request.stop_ids, id) || (grammar.active() && !grammar.accept(id))) return false;
  drafts.push_back(id);
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
  DG_ASSIGN(StepResult draft, executor_.run_mtp(steps_, out.hidden));
  std::vector<uint8_t> alive(drafting_.size(), 1);
  for (int depth = 0; depth < options_.draft_tokens && !drafting_.empty(); depth++) {
    executor_.backend().host_parallel(static_cast<int64_t>(drafting_.size()), [&](int64_t d, int worker) {
      auto k = static_cast<size_t>(d);
      if (!alive[k]) return;
      const StepItem& item = plan.items[drafting_[k]];
      ItemResult& r = results.items[drafting_[k]];
      int64_t position = static_cast<int64_t>(item.sequence->ids.size()) + r.token_count + depth;
      const float* logits = draft.row(depth == 0 ? draft.first_row[drafting_[k]] : draft.first_row[k]);
      alive[k] = draft_from(logits, *item.sequence, position, draft_grammar_[k], workers_[static_cast<size_t>(worker)], r.drafts);
    });
    if (depth + 1 == options_.draft_tokens) break;
    // The next draft stands on the module's own hidden state, one position further.
    std::vector<size_t> next_items;
    std::vector<GrammarState> next_grammar;
    rows_.clear();
    ids_.clear();
    ids_.reserve(drafting_.size());
    std::vector<StepSequence> next_steps;
    int64_t row = 0;
    std::vector<int64_t> first_hidden;  // of each item of the last pass
    for (const StepSequence& step : steps_) {
      first_hidden.push_back(row);
      row += static_cast<int64_t>(step.ids.size());
    }
    for (size_t k = 0; k < drafting_.size(); k++) {
      if (!alive[k]) continue;
      size_t i = drafting_[k];
      const StepItem& item = plan.items[i];
      Sequence& s = *item.sequence;
      int64_t position = item.begin + item.rows - item.drafts + results.items[i].accepted + depth;
      if (s.blocks.missing_blocks(position + 1) > 0) continue;  // no block for its row: the chain ends here
      rows_.push_back(static_cast<int32_t>(depth == 0 ? first_hidden[i] + steps_[i].logit_row : static_cast<int64_t>(k)));
      ids_.push_back(results.items[i].drafts.back());
      next_steps.push_back({.first_position = position, .blocks = &s.blocks, .decode = true, .logits = LogitsWanted::kLast});
      next_items.push_back(i);
      next_grammar.push_back(draft_grammar_[k]);
    }
    if (next_items.empty()) break;
    for (size_t k = 0; k < next_steps.size(); k++) next_steps[k].ids = std::span<const int32_t>(ids_).subspan(k, 1);
    DG_ASSIGN(draft, executor_.run_mtp_again(next_steps, draft.hidden, rows_));
    drafting_ = std::move(next_items);
    draft_grammar_ = std::move(next_grammar);
    alive.assign(drafting_.size(), 1);
  }
  return {};
}

}  // namespace dg
