// ModelStepRunner: runs a step plan on an executor: forward, sampling with verification of drafts, and new drafts from the
// MTP module or from the text. Sampling runs on the backend's host threads, one sequence at a time per thread.
#pragma once
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
  void sample_item(const StepItem& item, const StepResult& out, size_t index, Worker& worker, ItemResult& result);
  void prompt_logprobs(const StepItem& item, const StepResult& out, size_t index, Worker& worker, ItemResult& result);
  void pool_rows(const StepItem& item, const StepResult& out);
  Result<void> mtp_drafts(const StepPlan& plan, const StepResult& out, StepResults& results);
  bool draft_from(const float* logits, Sequence& sequence, int64_t position, GrammarState& grammar, Worker& worker,
                  std::vector<int32_t>& drafts);

  Executor& executor_;
  const EngineOptions options_;
  const size_t vocab_;
  std::vector<Worker> workers_;
  std::vector<StepSequence> steps_;
  std::vector<int32_t> ids_;  // rows of all items, where they are not a part of the sequence
  std::vector<int64_t> first_token_row_;
  // Drafting.
  std::vector<size_t> drafting_;  // items that get drafts
  std::vector<GrammarState> draft_grammar_;
  std::vector<int32_t> rows_;
};

}  // namespace dg
