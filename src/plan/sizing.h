// Exact memory and work of a step, found by running the model's own forward on the dry backend.
#pragma once
#include <map>
#include <string>

#include "backends/dry/dry.h"
#include "model/model.h"

namespace dg {

struct StepShape {
  int64_t tokens = 512;   // rows of the step
  int64_t sequences = 1;  // they are split over this many sequences
  int64_t kv_len = 512;   // context of each sequence after the step
  int64_t logit_rows = 1;
  // Of the rows, so many are generation rows of one more sequence in front of the others (a mixed step).
  int64_t decode_rows = 0;
  bool decode = false;  // all are generation rows (absorbed MLA) instead of prefill
  bool mtp = false;     // also run the MTP module behind it
};

struct StepCost {
  size_t arena_bytes = 0;  // peak of the activation arena
  std::map<std::string, DryBackend::OpTotal> by_op;
  Cost total;
};

StepCost dry_run_step(Model& model, const StepShape& shape, Dtype kv_dtype);

// Arena that suffices for every step within these limits, with or without MTP: prompts, generation (at most max_decode_rows rows,
// drafts and replayed tokens included; 0: max_sequences), and both mixed.
size_t measure_arena_bytes(Model& model, int64_t max_tokens, int64_t max_sequences, int64_t max_kv_len, int64_t max_logit_rows,
                           int64_t max_decode_rows = 0);

}  // namespace dg
