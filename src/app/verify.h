// `dougong verify`: compares a checkpoint's logits, hidden states and greedy continuation with reference.safetensors
// beside its weights (made by Hugging Face transformers in float32; format: tests/golden/README.md).
#pragma once
#include <string>
#include <vector>

#include "app/open_model.h"

namespace dg {

struct VerifyPrompt {
  std::string name;  // "p1"
  int64_t tokens = 0;
  double max_logit_difference = 0, max_logit = 0;  // max |a - b|, max |reference|
  double mean_kl = 0, max_kl = 0;                  // KL(reference || ours) per position, nats
  int64_t decided = 0, agreed = 0;                 // positions whose reference margin exceeds 0.05; same argmax there
  int64_t argmax_agreed = 0;                       // of all positions
  int first_bad_layer = -1;                        // hidden state index that leaves tolerance first; -1: none
  double worst_hidden = 0;                         // largest relative difference of a hidden state
  std::vector<int32_t> greedy, expected_greedy;
  bool chunk_equal = true;  // chunked prefill gave the same bits
  bool passed = false;
  double median_kl = 0;
  std::string failure;  // why not
};

struct VerifyReport {
  std::string dtype, backend, checked_difference;
  int64_t checked_ops = 0;
  std::vector<VerifyPrompt> prompts;
  bool passed() const;
};

struct VerifyOptions {
  OpenOptions open;   // load_text, limits are set by verify
  int64_t chunk = 0;  // also prefill in chunks of this many tokens and compare bit for bit; 0: not
};

// One path (open.dtype). Tolerances: float32: max |difference| <= 1e-3 * max(1, max |logit|) and the same greedy tokens;
// otherwise mean KL <= 1e-3 and the same argmax at >= 99 % of the decided positions; with experts median KL <= 2e-3 and >= 85 %,
// because bf16 rounding exchanges experts whose scores are close, which changes a position, and those that attend to it, altogether
// (the oracles have random weights and short prompts; trained routers are further apart).
Result<VerifyReport> verify_checkpoint(const std::string& directory, const VerifyOptions& options);

}  // namespace dg
