// `dougong eval --compare`: what a weight format, or another checkpoint, loses against the model as it is.
#pragma once
#include <atomic>
#include <string>
#include <vector>

#include "app/eval_runs.h"
#include "app/open_model.h"

namespace dg {

// How one row of logits q differs from p: Kullback-Leibler divergence of their softmaxes, in nats, at least 0.
double kl_of_logits(std::span<const float> p, std::span<const float> q);

// Differences of a candidate from a reference over all tokens of some sequences.
struct Divergence {
  int64_t tokens = 0;
  double mean_kl = 0;             // nats
  double p99_kl = 0, max_kl = 0;  // of single tokens
  int64_t same_top = 0;           // tokens where both find the same one likeliest
  PerplexityResult reference, candidate;
  double agreement_percent() const { return tokens > 0 ? 100.0 * static_cast<double>(same_top) / static_cast<double>(tokens) : 0; }
};
// Errors: those of run_sequences, and logits that are no numbers.
Result<Divergence> measure_divergence(Executor& reference, Executor& candidate, const std::vector<std::vector<int32_t>>& sequences,
                                      int64_t max_context, const std::function<void(int64_t)>& progress, const std::atomic<bool>* cancel);

// One item of --compare: a dtype, a weight format or a model, as options to open it with.
struct CompareItem {
  std::string name, path;
  OpenOptions open;
};
// Errors: an empty item, or one that is neither a format nor a model.
Result<std::vector<CompareItem>> parse_compare(const std::string& text, const std::string& path, const OpenOptions& open);

// The whole command: prints the table or the JSON. `questions` and `text` may be empty, but not both.
Result<int> run_eval_compare(const Options& options, const std::string& path, const OpenOptions& open,
                             const std::vector<EvalQuestion>& questions, const std::string& suite_path, const std::string& text,
                             const std::atomic<bool>* cancel);

}  // namespace dg
