// ModelStepRunner: runs a step plan on an executor: forward, sampling with verification of drafts, and new drafts from the
// MTP module or from the text. Sampling runs on the backend's host threads, one sequence at a time per thread.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/executor.h"
#include "engine/sequence.h"
#include "engine/step.h"

namespace dg {

class ModelStepRunner : public StepRunner {
 public:
  ModelStepRunner(Executor& executor, const EngineOptions& options);
  void run(const StepPlan& plan, StepResults& results) override;

 private:
  struct Worker {
    Sampler sampler;
    SampleOutput draft;
    std::vector<float> scratch;
  };
  // On a device that picks: what the rows of the step are wanted for; the rows of drafts as if those were accepted.
  void describe_rows(const StepPlan& plan, const StepResult& out, DevicePicks& picks);
  void set_token_rows(const StepPlan& plan, const StepResult& out);
  SampleInput sample_input(const StepItem& item, int draft, const uint32_t* allowed) const;
  // From the row of draft `from` on. False: row needed_rows_[index] is needed whole, go on from the last token.
  bool sample_item(const StepItem& item, const StepResult& out, size_t index, int from, Worker& worker, ItemResult& result);
  void text_drafts(const StepPlan& plan, const StepItem& item, ItemResult& result) const;
  // Where `picks` left it open: fetches the rows in needed_rows_ (-1: none), of the first `count`, and calls again(index) for each of them
  // on the host's threads, until again() needs none.
  void fetch_needed(const StepResult& out, size_t count, const std::function<bool(size_t, Worker&)>& again);
  // fn(i, worker) for the rows of a step on the host's threads; what is left to do of a picked row is less than waking one of them.
  void for_rows(size_t count, const StepResult& out, const std::function<void(size_t, Worker&)>& fn);
  void prompt_logprobs(const StepItem& item, const StepResult& out, size_t index, Worker& worker, ItemResult& result);
  void pool_rows(const StepItem& item, const StepResult& out, int64_t first);  // `first`: of its rows of hidden states
  Result<void> mtp_drafts(const StepPlan& plan, const StepResult& out, StepResults& results);
  SampleInput draft_input(const Sequence& sequence, int64_t position, const uint32_t* allowed) const;
  // False: the draft's row is needed whole. `alive`: whether there was a draft.
  bool draft_from(const StepResult& out, int64_t row, bool whole, Sequence& sequence, int64_t position, GrammarState& grammar,
                  Worker& worker, std::vector<int32_t>& drafts, uint8_t& alive);
  void set_row(const StepResult& out, int64_t row, bool whole, SampleInput& input) const;

  Executor& executor_;
  const EngineOptions options_;
  const size_t vocab_;
  std::vector<Worker> workers_;
  std::vector<StepSequence> steps_;
  std::vector<int32_t> ids_;  // rows of all items, where they are not a part of the sequence
  std::vector<int64_t> first_token_row_;
  std::vector<int64_t> needed_rows_, fetched_;  // rows of logits that a pick left open
  // Drafting.
  std::vector<size_t> drafting_;  // items that get drafts
  std::vector<GrammarState> draft_grammar_;
  std::vector<int32_t> rows_;
};

}  // namespace dg
