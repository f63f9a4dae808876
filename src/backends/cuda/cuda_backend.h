// CudaBackend: the op vocabulary on one NVIDIA GPU. An op checks its shapes on the host, fills a plain argument struct and launches
// kernels (kernels/*.cu) on the backend's stream; nothing waits for the device except synchronise() and download().
//
// Memory is the GPU's own (cudaMalloc), or, with BackendOptions::mapped, pinned host memory that the GPU reads over PCIe: slow, but
// tests and `checked` can then run host code on the same tensors.
//
// Scratch: what depends on the batch comes from the op's arena where it has one; everything else from workspace(), blocks that grow
// at the first op that needs more (never while a graph is captured) and then stay. Engine thread only, but for prepare() and write().
//
// With a group, this is one rank on one GPU: its thread may be any, the device is made current where it is used (Stream, use_device).
// A failure (cuda_status.h) makes status() an error; ops then go on without effect, and synchronise() waits for nothing any more.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "backends/cuda/cuda_status.h"
#include "base/thread_pool.h"
#include "device/backend.h"
#include "device/plugin.h"

namespace dg::cuda {

enum class Workspace { kActivations, kWeights, kProduct, kAttention, kExperts, kSequences, kCounters, kCount };

// The step's sequences on the device, as the attention kernels take them.
struct DeviceSequences {
  const int32_t* q_begin = nullptr;  // (count)
  const int32_t* q_len = nullptr;
  const int32_t* kv_len = nullptr;
  const int32_t* decode = nullptr;       // 0 or 1
  const int32_t* first_block = nullptr;  // (count) index into `blocks` of the sequence's first block
  const int32_t* blocks = nullptr;
  const int32_t* row_sequence = nullptr;  // (tokens) sequence of each query row
  int count = 0, tokens = 0;
  int longest_kv = 0;                               // host figures of the same step; with graphs upper bounds
  int longest_prefill_q = 0, longest_decode_q = 0;  // the same of sequences without and with decode
  int decode_count = 0;                             // sequences with decode != 0
};

class Collectives;

class CudaBackend : public Backend {
 public:
  static Result<std::unique_ptr<Backend>> create(const BackendOptions& options);
  ~CudaBackend() override;

  const char* name() const override { return "cuda"; }
  std::string description() const override;
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override;
  Result<std::unique_ptr<DeviceMemory>> allocate_host(size_t bytes, const char* purpose) override;
  Memory memory() const override;
  MachineLimits measure() override;
  Result<void> status() const override;
  bool host_memory() const override { return mapped_; }
  void upload(void* to, const void* from, size_t bytes) override;
  void download(void* to, const void* from, size_t bytes) override;
  void download_rows(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows) override;
  void write(void* to, const void* from, size_t bytes) const override;
  void synchronise() override;
  bool replays() const override { return !mapped_; }
  void begin_step(std::span<const SequenceSlice> slices, int64_t block_tokens, int64_t longest_kv) override;
  void replay(uint64_t key, const std::function<void()>& issue) override;
  void forget_replays() override;
  void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) override {
    pool_.parallel_for(n, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; i++) fn(i, worker);
    });
  }
  int host_workers() const override { return pool_.threads(); }

  // Products: product.cpp.
  bool supports(const Format& format) const override;
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override;
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override;
  void embed(const Embed& op) override;
  void linear(const Linear& op) override;
  Dtype inner_type(int64_t rows, const Weight& gate, const Weight& up, const Weight& down) const override;
  void linear_several(const LinearSeveral& op) override;
  void linear_glu(const LinearGlu& op) override;
  // moe.cpp
  void moe_route(const MoeRoute& op) override;
  void moe_experts(const MoeExperts& op) override;
  // rows.cpp
  void rms_norm(const RmsNorm& op) override;
  void all_reduce(const AllReduce& op) override;
  void add_rms_norm(const AddRmsNorm& op) override;
  void rope(const Rope& op) override;
  void head_norm_rope(const HeadNormRope& op) override;
  void act_mul(const ActMul& op) override;
  void add(const Add& op) override;
  void gather_rows(const GatherRows& op) override;
  void fill(const Fill& op) override;
  void copy(const Copy& op) override;
  void kv_write(const KvWrite& op) override;
  void rope_kv_write(const RopeKvWrite& op) override;
  void latent_kv_write(const LatentKvWrite& op) override;
  // sample.cpp
  bool picks_rows() const override { return !mapped_; }
  bool begin_beside(const Tensor& x, std::span<const Weight* const> weights) override;
  void end_beside() override;
  void adjust_logits(const AdjustLogits& op) override;
  void pick_rows(const PickRows& op) override;
  // attention.cpp
  void attention(const Attention& op) override;
  void mla_attention(const MlaAttention& op) override;

 private:
  CudaBackend(const BackendOptions& options, const cudaDeviceProp& properties);
  static Result<std::unique_ptr<Backend>> create_alone(const BackendOptions& options);  // without meeting the other ranks
  // Until `query` says something else than cudaErrorNotReady. After the limit of a step, or when another rank failed and this one does not
  // end, the device counts as failed.
  void wait_for(const char* what, const std::function<cudaError_t()>& query);
  // A block of at least `bytes`, 256-byte aligned; its content is that of the last use. kCounters starts as zeros, and every launch that
  // counts leaves zeros.
  void* workspace(Workspace which, size_t bytes);
  // The sequences of an op on the device: uploaded when they differ from those of the op before.
  const DeviceSequences& sequences(std::span<const SequenceSlice> slices, int64_t block_tokens);
  // kv_b row by row as bf16 or f32; `settled` false: a kernel just launched makes it.
  const void* latent_weight(const Weight& kv_b, bool bf16, bool& settled);
  // One long prefill with keys and values made for it; the rows [first, last) of the batch in absorbed form.
  void mla_made(const MlaAttention& op, const SequenceSlice& slice, const int32_t* blocks, const void* weight);
  void mla_absorbed(const MlaAttention& op, const void* weight, bool exact, bool settled, int64_t first, int64_t last);
  void join_beside();  // what follows waits for what was issued beside
  int multiprocessors() const { return properties_.multiProcessorCount; }

  // add_rms_norm with partial sums in one kernel; false: not for this shape, the same on all ranks.
  bool reduce_norm(const AddRmsNorm& op);

  struct Products;  // cuBLASLt handle and chosen algorithms: product.cpp
  struct Staging;   // pinned ring for upload(): cuda_memory.cpp

  const int device_;
  const bool mapped_, exact_;
  const cudaDeviceProp properties_;
  ThreadPool pool_;
  Stream stream_, beside_;  // stream_: where ops go
  cudaEvent_t forked_ = nullptr, beside_done_ = nullptr;
  bool beside_pending_ = false;
  struct Block {
    void* data = nullptr;
    size_t bytes = 0;
  };
  Block workspaces_[static_cast<size_t>(Workspace::kCount)];
  std::shared_ptr<Products> products_;
  std::unique_ptr<Staging> staging_;
  RankGroup* const group_;
  const int rank_;
  std::unique_ptr<Collectives> collectives_;   // with a group of several
  mutable std::atomic<bool> reported_{false};  // status() told of the failure
  DeviceSequences sequences_;
  // Between begin_step() and the end of replay(): attention takes sequences_ as they are, with the bound of the contexts
  // as longest_kv.
  bool step_begun_ = false;
  struct Graph {
    int runs = 0;
    cudaGraphExec_t exec = nullptr;
  };
  std::unordered_map<uint64_t, Graph> graphs_;
  std::vector<int32_t> sequence_words_, uploaded_words_;
  struct LatentWeights;  // kv_b as bf16, one for each layer, made at its first use: mla_attention.cpp
  std::shared_ptr<LatentWeights> latent_weights_;
  // Counts blocks of device memory that were given back (DeviceMemory's destructor adds one): what was made from a weight at some
  // address is then made anew, as another weight may stand there.
  std::shared_ptr<std::atomic<uint64_t>> freed_ = std::make_shared<std::atomic<uint64_t>>(0);
};

}  // namespace dg::cuda
