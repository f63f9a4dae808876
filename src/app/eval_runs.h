// The measurements of `dougong eval` on an opened model: answers to a suite of questions, and the text whose tokens are predicted.
#pragma once
#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "app/eval_suite.h"
#include "app/model_options.h"
#include "app/perplexity.h"

namespace dg {

struct EvalScore {
  int64_t correct = 0, judged = 0;
  double percent() const { return judged > 0 ? 100.0 * static_cast<double>(correct) / static_cast<double>(judged) : 0; }
};

struct SuiteReport {
  std::map<std::string, EvalScore> tasks;
  EvalScore total;
  int64_t questions = 0, output_tokens = 0, finished = 0;  // finished: ended by the model itself
  double seconds = 0;
};

struct PerplexityReport {
  std::vector<std::pair<const char*, PerplexityResult>> modes;
  double seconds = 0;
};

// One line on a terminal that is overwritten; nothing elsewhere.
class EvalCounter {
 public:
  explicit EvalCounter(bool show);
  ~EvalCounter();
  void show(const std::string& text);

 private:
  bool show_, shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

// Writes --output. `origin`: the suite's file, for messages.
Result<SuiteReport> run_suite(const Options& options, OpenedModel& model, const std::vector<EvalQuestion>& questions,
                              const std::string& origin, const std::atomic<bool>* cancel);

// The token sequences of one mode of --perplexity-mode.
struct TextMode {
  const char* name;
  std::vector<std::vector<int32_t>> sequences;
};
Result<std::vector<TextMode>> text_modes(const Options& options, const OpenedModel& model, const std::string& text);

Result<PerplexityReport> run_perplexity(const Options& options, OpenedModel& model, const std::string& text,
                                        const std::atomic<bool>* cancel);

}  // namespace dg
