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

Result<std::unique_ptr<Backend>> make_fast_backend(const OpenOptions& options) {
  const bool cuda = options.backend == "cuda" || options.backend == "checked-cuda";
  // What must not depend on the batch runs on the CPU.
  if (cuda || (options.backend == "auto" && !options.batch_invariant && gpu_present())) {
    auto made = load_backend("cuda", {.device = options.gpu,
                                      .mapped = options.backend == "checked-cuda",
                                      .exact = options.backend == "checked-cuda",
                                      .threads = options.threads});
    if (made.ok() || cuda) return made;
    log_warning(fmt::format("{}; using the CPU", made.error().message));
  }
  return make_cpu_backend({.threads = options.threads, .isa = options.isa, .batch_invariant = options.batch_invariant});
}

// With --profile, the backend that executes is decorated, so that with `checked` the reference beside it is not counted.
Result<std::unique_ptr<Backend>> make_backend(const OpenOptions& options, CheckedBackend** checked,
                                              std::unique_ptr<ProfileOutput>* output) {
  *checked = nullptr;
  const bool reference = options.backend == "reference";
  std::unique_ptr<Backend> backend;
  if (reference) {
    backend = make_reference_backend();
  } else {
    DG_ASSIGN(backend, make_fast_backend(options));
  }
  if (options.profile) {
    std::string isa = reference ? "generic" : options.isa == "auto" ? usable_cpu_isas().front() : options.isa;
    DG_ASSIGN(*output, ProfileOutput::create(std::move(isa), options.threads, options.profile_trace));
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

// What steps allocate on a device beside the arena: workspaces of the kernels and captured graphs.
constexpr int64_t kDeviceReserveBytes = int64_t{1} << 30;

// The KV cache within the memory that --kv-cache-memory-bytes, --gpu-memory-utilization or a share of what is free allows.
Result<void> limit_cache(const Backend& backend, Model& model, const OpenOptions& options, int64_t arena_bytes, ExecutorOptions* executor,
                         int64_t* length) {
  CacheLayout layout;
  model.register_cache(layout);
  int64_t token_bytes = layout.bytes_per_token(executor->kv_dtype);
  int64_t bytes = options.kv_bytes;
  const Backend::Memory memory = backend.memory();
  if (bytes == 0 && memory.total > 0) {
    const auto kept_free = static_cast<int64_t>((1 - options.gpu_memory_utilization) * static_cast<double>(memory.total));
    bytes = std::max<int64_t>(0, memory.free - kept_free - arena_bytes - kDeviceReserveBytes);
  } else if (bytes == 0) {
    bytes = static_cast<int64_t>(options.kv_memory_share * static_cast<double>(read_memory_info().available_bytes));
  }
  int64_t tokens = bytes / token_bytes / executor->block_tokens * executor->block_tokens;
  executor->kv_tokens = std::min(executor->kv_tokens, tokens);
  if (executor->kv_tokens >= *length) return {};
  if (options.max_model_len > 0 || executor->kv_tokens < 16 * executor->block_tokens)
    return resource_error(fmt::format(
        "KV cache: {} hold {} tokens ({} each), less than one context of {} tokens; lower --max-model-len or raise "
        "--kv-cache-memory-bytes{}",
        format_bytes(bytes), tokens, format_bytes(token_bytes), *length, memory.total > 0 ? " or --gpu-memory-utilization" : ""));
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
  const std::atomic<bool>& failed() const { return failed_; }
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
  auto declare = [&](const OpenOptions& chosen) -> Result<void> {
    DG_ASSIGN(opened->backend, make_backend(chosen, &opened->checked, &opened->profile));
    opened->store =
        std::make_unique<WeightStore>(*opened->backend, opened->index.get(), policy, &assumed_format(opened->config.quantization));
    DG_ASSIGN(opened->model, make_model(opened->config, *opened->store));
    return {};
  };
  DG_TRY(declare(options));
  if (const int64_t free = opened->backend->memory().free;
      options.backend == "auto" && free > 0 && opened->store->bytes() > free / 10 * 9) {
    log_warning(fmt::format("{} of weights are more than 90 % of the {} free on the GPU; using the CPU",
                            format_bytes(opened->store->bytes()), format_bytes(free)));
    OpenOptions cpu = options;
    cpu.backend = "cpu";
    opened->model.reset();
    opened->store.reset();
    DG_TRY(declare(cpu));
  }
  auto start = std::chrono::steady_clock::now();
  const LoadOptions load{.threads = options.threads,
                         .progress = options.progress,
                         .placement = LoadPlacement(Topology::load(), opened->backend->host_workers()),
                         .cancelled = &text.failed()};
  Result<void> loaded = opened->index ? opened->store->load(load) : opened->store->load_dummy(load);
  opened->load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  DG_TRY(text.finish());
  if (!loaded.ok()) return loaded.error();
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
  if (limited) {
    const size_t arena = measure_arena_bytes(*opened->model, executor.max_step_tokens, executor.max_step_sequences, length,
                                             executor.max_logit_rows, options.max_decode_rows);
    DG_TRY(limit_cache(*opened->backend, *opened->model, options, static_cast<int64_t>(arena), &executor, &length));
  }
  executor.arena_bytes = measure_arena_bytes(*opened->model, executor.max_step_tokens, executor.max_step_sequences, length,
                                             executor.max_logit_rows, options.max_decode_rows);
  DG_ASSIGN(opened->executor, Executor::create(*opened->backend, *opened->model, executor));
  std::unique_ptr<Progress> capturing;
  opened->executor->prepare_replays(length, [&](int64_t, int64_t all) {
    if (!capturing)
      capturing = std::make_unique<Progress>("capturing decode steps", static_cast<uint64_t>(all),
                                             ProgressOptions{.silent = !options.progress, .unit = "graphs"});
    capturing->add(1);
  });
  if (capturing) capturing->finish();
  return opened;
}

}  // namespace dg
