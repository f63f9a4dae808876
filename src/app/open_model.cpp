#include "app/open_model.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <functional>
#include <system_error>
#include <thread>

#include "app/device_memory.h"
#include "app/model_tokenizer.h"
#include "backends/checked/checked.h"
#include "backends/cpu/cpu.h"
#include "backends/cpu/reference.h"
#include "backends/profile/profile.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/progress.h"
#include "device/plugin.h"
#include "io/gguf.h"
#include "model/gguf_config.h"
#include "model/weight_source.h"
#include "plan/sizing.h"
#include "quant/bf16.h"
#include "quant/f16.h"
#include "quant/formats.h"

namespace dg {
namespace {

std::string parent(const std::string& path) {
  size_t slash = path.find_last_of('/');
  return slash == std::string::npos || slash == 0 ? "/" : path.substr(0, slash);
}

bool is_model_directory(const std::string& path) { return file_exists(path + "/config.json"); }

// auto: the GPU's plug-in where it and a device are present. What then fails (an old driver, say) is told, and the CPU takes over.
bool gpu_present() { return backend_installed("cuda") && file_exists("/dev/nvidiactl"); }

// Threads of a rank: they share the CPU's cores.
int threads_of_rank(const OpenOptions& options) {
  const int cores = options.threads > 0 ? options.threads : Topology::load().worker_count();
  return options.tensor_parallel == 1 ? options.threads : std::max(1, cores / options.tensor_parallel);
}

Result<std::unique_ptr<Backend>> make_fast_backend(const OpenOptions& options, LocalGroup* group, int rank) {
  const bool cuda = options.backend == "cuda" || options.backend == "checked-cuda";
  // What must not depend on the batch runs on the CPU.
  if (cuda || (options.backend == "auto" && !options.batch_invariant && gpu_present())) {
    auto made = load_backend("cuda", {.device = options.gpu + rank,
                                      .mapped = options.backend == "checked-cuda",
                                      .exact = options.backend == "checked-cuda",
                                      .group = group,
                                      .rank = rank,
                                      .threads = rank == 0 ? options.threads : 1});
    if (made.ok() || cuda || group) return made;  // of several ranks all change to the CPU, or none
    log_warning(fmt::format("{}; using the CPU", made.error().message));
  }
  return make_cpu_backend({.threads = threads_of_rank(options),
                           .isa = options.isa,
                           .pin = group == nullptr,
                           .batch_invariant = options.batch_invariant,
                           .group = group,
                           .rank = rank});
}

// With --profile, the backend that executes is decorated, so that with `checked` the reference beside it is not counted. Of several
// ranks the first one is.
Result<std::unique_ptr<Backend>> make_backend(const OpenOptions& options, LocalGroup* group, int rank, CheckedBackend** checked,
                                              std::unique_ptr<ProfileOutput>* output) {
  const bool reference = options.backend == "reference";
  std::unique_ptr<Backend> backend;
  if (reference) {
    backend = make_reference_backend(group, rank);
  } else {
    DG_ASSIGN(backend, make_fast_backend(options, group, rank));
  }
  if (rank > 0) return backend;
  *checked = nullptr;
  if (options.profile) {
    std::string isa = reference ? "generic" : options.isa == "auto" ? usable_cpu_isas().front() : options.isa;
    DG_ASSIGN(*output, ProfileOutput::create(*backend, std::move(isa), options.threads, options.profile_trace));
    auto profile = std::make_unique<ProfileBackend>(std::move(backend), (*output)->max_events());
    (*output)->attach(profile.get());
    backend = std::move(profile);
  }
  if (!options.backend.starts_with("checked")) return backend;
  // As published, the fast kernels round activations, queries and probabilities to bf16 (2^-9) where the reference does not.
  const float tolerance = options.dtype == "float32" ? 2e-3f : 6e-2f;
  auto both = std::make_unique<CheckedBackend>(std::move(backend), make_reference_backend(), tolerance);
  *checked = both.get();
  return std::unique_ptr<Backend>(std::move(both));
}

// The KV cache within the memory that --kv-cache-memory-bytes, --gpu-memory-utilization or a share of what is free allows.
// `use`: of the device, where the cache is on one.
Result<void> limit_cache(Model& model, const OpenOptions& options, const DeviceUse& use, ExecutorOptions* executor, int64_t* length) {
  CacheLayout layout;
  model.register_cache(layout);
  int64_t token_bytes = layout.bytes_per_token(executor->kv_dtype);
  int64_t bytes = options.kv_bytes;
  const bool device = use.memory.total > 0;
  if (bytes == 0 && device) {
    bytes = cache_bytes(use, options.gpu_memory_utilization);
  } else if (bytes == 0) {
    bytes =
        static_cast<int64_t>(options.kv_memory_share * static_cast<double>(read_memory_info().available_bytes)) / options.tensor_parallel;
  }
  int64_t tokens = bytes / token_bytes / executor->block_tokens * executor->block_tokens;
  executor->kv_tokens = std::min(executor->kv_tokens, tokens);
  if (executor->kv_tokens >= *length) return {};
  if (options.max_model_len > 0 || executor->kv_tokens < 16 * executor->block_tokens)
    return resource_error(
        fmt::format("KV cache: {} hold {} tokens ({} each), less than one context of {} tokens; lower --max-model-len or raise "
                    "--kv-cache-memory-bytes{}{}",
                    format_bytes(bytes), tokens, format_bytes(token_bytes), *length, device ? " or --gpu-memory-utilization; " : "",
                    device ? use.text() : ""));
  *length = executor->kv_tokens;
  return {};
}

// Tokenizer and prompt encoder, read beside the weights by a thread of their own. A fault there stops the loading of the weights.
class TextLoader {
 public:
  TextLoader() = default;
  TextLoader(const TextLoader&) = delete;
  TextLoader& operator=(const TextLoader&) = delete;
  ~TextLoader() {
    if (thread_.joinable()) thread_.join();
  }
  void start(std::function<Result<void>()> read) {
    auto work = [this, read = std::move(read)] {
      result_ = read();
      if (!result_.ok()) failed_ = true;
    };
    try {
      thread_ = std::thread(work);
    } catch (const std::system_error&) {  // no thread: then here
      work();
    }
  }
  // Set when reading failed or the weights did: whoever loads stops.
  const std::atomic<bool>& failed() const { return failed_; }
  void give_up() { failed_ = true; }
  Result<void> finish() {
    if (thread_.joinable()) thread_.join();
    return result_;
  }

 private:
  std::thread thread_;
  std::atomic<bool> failed_{false};
  Result<void> result_;
};

Result<void> load_text(OpenedModel& opened, const OpenOptions& options, const GgufModel* gguf) {
  if (gguf) {
    DG_ASSIGN(opened.tokenizer, load_model_tokenizer(*gguf));
  } else {
    DG_ASSIGN(opened.tokenizer, load_model_tokenizer(opened.path));
  }
  ChatModelInfo info{opened.config.model_type, opened.tokenizer->chat_template(), opened.tokenizer->bos_token(),
                     opened.tokenizer->eos_token()};
  auto encoder = make_prompt_encoder(info, options.chat_format);
  if (encoder.ok()) opened.prompt = *std::move(encoder);
  else if (options.chat_format != "auto") return encoder.error();  // without a template, --raw prompts still work
  return {};
}

}  // namespace

Result<std::string> resolve_model(const std::string& name_or_path) {
  if (directory_exists(name_or_path)) return name_or_path;
  if (file_exists(name_or_path)) {
    if (name_or_path.size() > 12 && name_or_path.ends_with(".safetensors")) return parent("./" + name_or_path);
    if (name_or_path.ends_with(".gguf")) return name_or_path;
    return input_error(
        fmt::format("{}: expected a model directory (config.json and *.safetensors) or a .gguf file, found a file", name_or_path));
  }
  if (name_or_path.find('/') == std::string::npos && !name_or_path.empty()) {
    std::vector<std::string> places;
    if (const char* models = std::getenv("DOUGONG_MODELS")) places.push_back(models);
    char exe[PATH_MAX];
    ssize_t length = ::readlink("/proc/self/exe", exe, sizeof exe);
    std::string bin = length > 0 ? parent(std::string(exe, static_cast<size_t>(length))) : "";
    if (!bin.empty()) places.push_back(parent(bin) + "/share/dougong/models");
    char cwd[PATH_MAX];
    for (std::string at : {bin, std::string(::getcwd(cwd, sizeof cwd) ? cwd : "")})
      for (; at.size() > 1; at = parent(at)) places.push_back(at + "/models");
    for (const std::string& place : places)
      if (is_model_directory(place + "/" + name_or_path)) return place + "/" + name_or_path;
    return input_error(fmt::format("{}: no such directory, and no model of that name in {}; give a path or set DOUGONG_MODELS",
                                   name_or_path, places.empty() ? "models/" : places.front()));
  }
  return input_error(fmt::format("{}: no such directory", name_or_path));
}

Result<WeightPolicy> weight_policy(const OpenOptions& options) {
  WeightPolicy policy;
  if (options.dtype == "float32") policy.float32 = true;
  else if (options.dtype == "bfloat16") policy.linear = &kBf16;
  else if (options.dtype == "float16") policy.linear = &kF16;
  else if (options.dtype != "auto")
    return input_error(fmt::format("--dtype: expected auto, float32, bfloat16 or float16, found \"{}\"", options.dtype));
  if (!options.quantization.empty()) {
    policy.linear = find_format(options.quantization);
    if (!policy.linear)
      return input_error(fmt::format("--quantization: expected one of {}, found \"{}\"", format_names(), options.quantization));
    if (policy.float32) return input_error("--quantization cannot be combined with --dtype float32: choose one");
  }
  return policy;
}

Result<Dtype> kv_cache_dtype(const OpenOptions& options) {
  const std::string& name = options.kv_cache_dtype;
  if (name == "float32" || (name == "auto" && options.dtype == "float32")) return Dtype::kF32;
  if (name == "auto" || name == "bfloat16") return Dtype::kBf16;
  if (name == "float16") return Dtype::kF16;
  if (name == "fp8") return Dtype::kF8E4m3;
  if (name == "int8") return Dtype::kI8;
  return input_error(fmt::format("--kv-cache-dtype: expected auto, float32, bfloat16, float16, fp8 or int8, found \"{}\"", name));
}

namespace {

Result<void> declare_with(OpenedModel& opened, const OpenOptions& options, const WeightPolicy& policy) {
  const int ranks = options.tensor_parallel;
  if (ranks > 1)
    opened.group = std::make_unique<LocalGroup>(ranks, std::chrono::milliseconds(static_cast<int64_t>(options.collective_timeout * 1000)));
  opened.other_ranks.resize(static_cast<size_t>(ranks - 1));
  DG_TRY(for_ranks(ranks, opened.group.get(), [&](int rank) -> Result<void> {
    DG_ASSIGN(opened.rank(rank).backend, make_backend(options, opened.group.get(), rank, &opened.checked, &opened.profile));
    return {};
  }));
  return for_ranks(ranks, opened.group.get(), [&](int rank) -> Result<void> {
    ModelConfig config = opened.config;
    config.parallel = {.rank = rank, .size = ranks, .whole_experts = options.expert_parallel && config.moe.experts > 0};
    auto& store = opened.rank(rank).store;
    store = std::make_unique<WeightStore>(*opened.rank(rank).backend, opened.index.get(), policy, &assumed_format(config.quantization));
    DG_ASSIGN(opened.rank(rank).model, make_model(config, *store));
    return {};
  });
}

void close_ranks(OpenedModel& opened) {
  opened.profile.reset();
  opened.model.reset();
  opened.store.reset();
  opened.backend.reset();
  opened.other_ranks.clear();
}

// Backends, weight stores and models of all ranks. `auto` changes to the CPU where the GPUs do not start or the weights do not fit.
Result<void> declare_ranks(OpenedModel& opened, const OpenOptions& options, const WeightPolicy& policy) {
  const int ranks = options.tensor_parallel;
  if (ranks > 1 && options.backend.starts_with("checked"))
    return input_error(fmt::format("--backend {} runs on one device: leave --tensor-parallel-size out", options.backend));
  OpenOptions cpu = options;
  cpu.backend = "cpu";
  Result<void> declared = declare_with(opened, options, policy);
  const bool automatic = options.backend == "auto";
  if (!declared.ok()) {
    if (!automatic || ranks == 1 || opened.store || options.batch_invariant || !gpu_present()) return declared;
    log_warning(fmt::format("{}; using the CPU", declared.error().message));
    close_ranks(opened);
    return declare_with(opened, cpu, policy);
  }
  for (int rank = 0; automatic && rank < ranks; rank++) {
    const int64_t free = opened.rank(rank).backend->memory().free, bytes = opened.rank(rank).store->bytes();
    if (free == 0 || bytes <= free / 10 * 9) continue;
    log_warning(
        fmt::format("{} of weights are more than 90 % of the {} free on the GPU; using the CPU", format_bytes(bytes), format_bytes(free)));
    close_ranks(opened);
    return declare_with(opened, cpu, policy);
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<OpenedModel>> open_model(const std::string& name_or_path, const OpenOptions& options) {
  auto opened = std::make_unique<OpenedModel>();
  DG_ASSIGN(opened->path, resolve_model(name_or_path));
  const std::string& path = opened->path;
  DG_ASSIGN(WeightPolicy policy, weight_policy(options));
  DG_ASSIGN(Dtype kv_dtype, kv_cache_dtype(options));
  DG_ASSIGN(const std::vector<std::string> gguf_files, find_gguf_files(path));
  std::unique_ptr<GgufModel> gguf;  // opened once for all its readers; outlives `text`
  TextLoader text;
  if (!gguf_files.empty()) {
    DG_ASSIGN(GgufModel model, open_gguf(gguf_files));
    gguf = std::make_unique<GgufModel>(std::move(model));
    DG_ASSIGN(opened->config, gguf_model_config(*gguf));
    DG_ASSIGN(opened->generation, gguf_generation_config(*gguf));
    if (!options.dummy_weights) {
      DG_ASSIGN(TensorIndex index, TensorIndex::from_gguf(*gguf));
      opened->index = std::make_unique<TensorIndex>(std::move(index));
    }
  } else {
    DG_ASSIGN(opened->config, read_model_config(path));
    DG_ASSIGN(opened->generation, read_generation_config(path));
    if (!options.dummy_weights) {
      DG_ASSIGN(TensorIndex index, TensorIndex::open(path));
      opened->index = std::make_unique<TensorIndex>(std::move(index));
    }
  }
  if (options.load_text) text.start([&opened = *opened, &options, gguf = gguf.get()] { return load_text(opened, options, gguf); });
  const int ranks = options.tensor_parallel;
  DG_TRY(declare_ranks(*opened, options, policy));
  auto start = std::chrono::steady_clock::now();
  const LoadPlacement placement =
      ranks == 1 ? LoadPlacement(Topology::load(), opened->backend->host_workers()) : LoadPlacement();  // ranks are not bound to nodes
  Result<void> loaded = for_ranks(
      ranks, opened->group.get(),
      [&](int rank) {
        WeightStore& store = *opened->rank(rank).store;
        const LoadOptions load{.threads = threads_of_rank(options),
                               .progress = options.progress && rank == 0,
                               .placement = placement,
                               .cancelled = &text.failed()};
        return opened->index ? store.load(load) : store.load_dummy(load);
      },
      [&] { text.give_up(); });
  opened->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  DG_TRY(text.finish());
  if (!loaded.ok()) return loaded.error();
  for (int rank = 0; rank < ranks; rank++) DG_TRY(opened->rank(rank).backend->status());
  std::vector<int64_t> ids = opened->generation.eos.empty() ? opened->config.eos : opened->generation.eos;
  if (opened->tokenizer && opened->tokenizer->eos_id()) ids.push_back(*opened->tokenizer->eos_id());
  for (int64_t id : ids)
    if (std::find(opened->eos.begin(), opened->eos.end(), id) == opened->eos.end()) opened->eos.push_back(static_cast<int32_t>(id));

  int64_t longest = opened->config.max_position;
  if (options.max_model_len > longest)
    return input_error(
        fmt::format("--max-model-len {}: the model takes at most {} tokens (max_position_embeddings)", options.max_model_len, longest));
  bool limited = options.kv_memory_share > 0 || options.kv_bytes > 0;
  int64_t length = options.max_model_len > 0 ? options.max_model_len : limited ? longest : std::min<int64_t>(longest, 8192);
  ExecutorOptions executor;
  executor.kv_dtype = kv_dtype;
  executor.block_tokens = options.block_tokens;
  executor.kv_tokens = (length + executor.block_tokens) * options.max_sequences;
  executor.max_step_sequences = options.max_sequences;
  executor.max_step_tokens = std::max({options.max_step_tokens, options.max_sequences, int64_t{1}});
  executor.max_logit_rows = options.max_logit_rows > 0 ? options.max_logit_rows : options.max_sequences;
  executor.max_decode_rows = options.max_decode_rows;
  executor.mtp_drafts = options.mtp_drafts && opened->model->mtp_modules() > 0;
  executor.draft_tokens = executor.mtp_drafts || !options.mtp_drafts ? options.draft_tokens : 0;
  auto arena_bytes = [&](Model& model, int64_t longest_context) {
    return measure_arena_bytes(model, executor.max_step_tokens, executor.max_step_sequences, longest_context, executor.max_logit_rows,
                               options.max_decode_rows);
  };
  if (limited) {
    // Every rank holds the same blocks: as many as the one with the least room has. The largest steps run on all ranks at once.
    for (int rank = 0; rank < ranks; rank++)
      executor.arena_bytes = std::max(executor.arena_bytes, arena_bytes(*opened->rank(rank).model, length));
    const ExecutorOptions wanted = executor;
    const int64_t wanted_length = length;
    std::vector<DeviceUse> uses(static_cast<size_t>(ranks));
    DG_TRY(for_ranks(ranks, opened->group.get(), [&](int rank) -> Result<void> {
      const OpenedModel::Rank own = opened->rank(rank);
      DG_ASSIGN(uses[static_cast<size_t>(rank)], measure_device_use(*own.backend, *own.model, own.store->bytes(), wanted, wanted_length));
      return {};
    }));
    if (opened->profile) opened->profile->restart();
    for (int rank = 0; rank < ranks; rank++) {
      ExecutorOptions own = wanted;
      int64_t own_length = wanted_length;
      DG_TRY(limit_cache(*opened->rank(rank).model, options, uses[static_cast<size_t>(rank)], &own, &own_length));
      executor.kv_tokens = std::min(executor.kv_tokens, own.kv_tokens);
      length = std::min(length, own_length);
    }
    executor.arena_bytes = 0;  // of the length that there is
  }
  std::vector<ExecutorRank> parts;
  for (int rank = 0; rank < ranks; rank++) {
    parts.push_back({*opened->rank(rank).backend, *opened->rank(rank).model});
    executor.arena_bytes = std::max(executor.arena_bytes, arena_bytes(*opened->rank(rank).model, length));
  }
  DG_ASSIGN(opened->executor, Executor::create(parts, opened->group.get(), executor));
  std::unique_ptr<Progress> capturing;
  DG_TRY(opened->executor->prepare_replays(length, [&](int64_t, int64_t all) {
    if (!capturing)
      capturing = std::make_unique<Progress>("capturing decode steps", static_cast<uint64_t>(all),
                                             ProgressOptions{.silent = !options.progress, .unit = "graphs"});
    capturing->add(1);
  }));
  if (capturing) capturing->finish();
  return opened;
}

}  // namespace dg
