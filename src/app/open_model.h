// Opens a model for a command: finds it, reads its configuration and headers, plans its memory, loads the weights and
// makes the executor. The one place that names concrete backends.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "app/open_ranks.h"
#include "app/profile_output.h"
#include "engine/executor.h"
#include "io/tensor_index.h"
#include "model/config.h"
#include "model/model.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace dg {

class CheckedBackend;

struct OpenOptions {
  std::string backend = "cpu";  // auto | cpu | cuda | reference | checked | checked-cuda
  int gpu = 0;                  // of rank 0; the others have those after it
  int tensor_parallel = 1;      // ranks that compute together: GPUs, or backends that share the CPU
  bool expert_parallel = false;
  double collective_timeout = 30;  // seconds
  std::string isa = "auto";
  int threads = 0;             // 0: all physical cores allowed
  bool dummy_weights = false;  // random ones, from config.json alone (--load-format dummy)
  std::string dtype = "auto";  // auto: as published, bf16 cache | float32 | bfloat16 | float16
  std::string quantization;    // format name for the linear layers; empty: as published
  std::string kv_cache_dtype = "auto";
  bool batch_invariant = true;  // CpuOptions
  int64_t max_model_len = 0;    // 0: the model's, at most what the command needs
  int64_t max_step_tokens = 512;
  int64_t max_sequences = 1;
  int64_t max_logit_rows = 0;   // 0: one per sequence
  int64_t max_decode_rows = 0;  // generation rows of one step, with drafts; 0: one per sequence
  int64_t draft_tokens = 0;     // ExecutorOptions; 0 where mtp_drafts are wanted and the checkpoint has no module
  bool mtp_drafts = false;
  // Share of the memory that is free after loading that the KV cache may take (serve), or its bytes. Both 0: room for
  // max_sequences contexts of max_model_len. The longest context then shrinks to what fits, unless max_model_len is set.
  double kv_memory_share = 0;
  double gpu_memory_utilization = 0.9;  // with kv_memory_share, on a device: of its memory, for everything
  int64_t kv_bytes = 0;
  int block_tokens = 16;
  bool progress = true;
  bool load_text = true;  // tokenizer and prompt encoder
  std::string chat_format = "auto";
  bool profile = false;       // time every op; the table is printed when the model is closed
  std::string profile_trace;  // with it: also a trace to this file
};

// Members are destroyed in reverse order: the executor and model before the weights, the backend and the group of ranks last.
struct OpenedModel {
  // Rank 0 is `backend`, `store` and `model`; the others of --tensor-parallel-size are in other_ranks.
  struct Rank {
    std::unique_ptr<Backend>& backend;
    std::unique_ptr<WeightStore>& store;
    std::unique_ptr<Model>& model;
  };
  Rank rank(int r) {
    if (r == 0) return {backend, store, model};
    OpenedRank& other = other_ranks[static_cast<size_t>(r) - 1];
    return {other.backend, other.store, other.model};
  }

  std::string path;
  ModelConfig config;
  GenerationConfig generation;
  std::unique_ptr<TensorIndex> index;
  std::unique_ptr<LocalGroup> group;  // of several ranks
  std::vector<OpenedRank> other_ranks;
  std::unique_ptr<Backend> backend;
  CheckedBackend* checked = nullptr;  // the same object as `backend` with --backend checked
  std::unique_ptr<WeightStore> store;
  std::unique_ptr<Model> model;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<PromptEncoder> prompt;
  std::vector<int32_t> eos;  // ids that end a generation: generation_config.json, else config.json, and the tokenizer's
  double load_seconds = 0;
  std::unique_ptr<ProfileOutput> profile;  // with OpenOptions::profile
};

// A directory, a .safetensors or .gguf file, or a known name such as "mini-r1", looked for in $DOUGONG_MODELS, in
// <executable>/../share/dougong/models and in models/ upward from the executable and from the working directory.
Result<std::string> resolve_model(const std::string& name_or_path);

Result<std::unique_ptr<OpenedModel>> open_model(const std::string& name_or_path, const OpenOptions& options);

// Weight policy and cache type that --dtype, --quantization and --kv-cache-dtype ask for.
Result<WeightPolicy> weight_policy(const OpenOptions& options);
Result<Dtype> kv_cache_dtype(const OpenOptions& options);

}  // namespace dg
