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
  bool decode = false;  // generation rows (absorbed MLA) instead of prefill
  bool mtp = false;     // also run the MTP module behind it
};

struct StepCost {
  size_t arena_bytes = 0;  // peak of the activation arena
  std::map<std::string, DryBackend::OpTotal> by_op;
  Cost total;
};

StepCost dry_run_step(Model& model, const StepShape& shape, Dtype kv_dtype);

// Arena that suffices for every step within these limits, prefill or decode, with or without MTP.
size_t measure_arena_bytes(Model& model, int64_t max_tokens, int64_t max_sequences, int64_t max_kv_len, int64_t max_logit_rows);

}  // namespace dg
