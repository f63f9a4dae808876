// CpuBackend: checks an op's shapes, cuts it into independent pieces and hands them to the kernels. Ops run to the end
// before they return, so synchronise() has nothing to do. Engine thread only.
//
// Each worker owns a scratch block for the kernels. Its size depends on the model's dimensions and the length of a
// prefill chunk, never on the length of the context; it grows at the first op that needs more and then stays.
#pragma once
#include <string>
#include <vector>

#include "backends/cpu/cpu.h"
#include "backends/cpu/kernels/kernels.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "base/topology.h"
#include "device/backend.h"

namespace dg {

CacheElement cache_element(const PagedCache& cache);
// Whether two matrices of the same width have their columns in the same order, so that one packing of the input serves both.
bool same_columns(const Weight& a, const Weight& b);

class CpuBackend : public Backend {
 public:
  CpuBackend(const CpuOptions& options, const KernelTable* kernels, Topology topology);

  const char* name() const override { return "cpu"; }
  std::string description() const override;
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override;
  void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) override {
    pool_.parallel_for(n, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t i = begin; i < end; i++) fn(i, worker);
    });
  }
  int host_workers() const override { return pool_.threads(); }
  bool supports(const Format&) const override { return true; }
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override { return panel_bytes(format, out, in); }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override { kernels_->panel_pack(rows, first, out, to); }

  void embed(const Embed& op) override;
  void linear(const Linear& op) override;
  void linear_glu(const LinearGlu& op) override;
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
  void attention(const Attention& op) override;
  void mla_attention(const MlaAttention& op) override;
  void moe_route(const MoeRoute& op) override;
  void moe_experts(const MoeExperts& op) override;

 private:
  // cos and sin of every (token, pair), kept from one op to the next: q and k of all layers share them.
  struct RotaryTable {
    std::vector<int32_t> positions;
    std::vector<float> inv_freq, cosine, sine;
    float magnitude = 0;
  };

  // Some decode rows of a sequence and their ranges of positions; partial results stand at `partials` (floats).
  struct DecodeUnit {
    AttentionTask task;
    int64_t split_tokens, splits, partials;
  };

  Matrix matrix(const Weight& weight) const;
  void reserve_scratch(int64_t floats);
  float* scratch(int worker) const { return reinterpret_cast<float*>(scratch_[static_cast<size_t>(worker)].data()); }
  void matmul(const MatmulArgs& args);
  // out = x w^T (+ bias), or the gated product, with prepared weights.
  void product(const Tensor& out, const Tensor& x, const Weight& w, const Weight* gate, const float* bias);
  void pack(const Weight& w, const float* x, const int32_t* x_rows, int64_t x_stride, int64_t tokens);
  std::byte* reserve_activations(int64_t bytes);
  // (token, expert) pairs sorted by expert: expert e has pairs [begin_of[e], begin_of[e + 1]).
  struct ExpertGroups {
    const int32_t* active;  // experts with pairs, ascending
    int64_t count;
    const int32_t* begin_of;
  };
  void published_product(const ExpertGroups& groups, std::span<const Expert> experts, bool down, const float* x, const int32_t* x_rows,
                         int64_t x_stride, float* out);
  void prepared_product(const ExpertGroups& groups, std::span<const Expert> experts, bool down, const float* x, const int32_t* x_rows,
                        int64_t x_stride, float* out);
  // fn(row) for every row of `width` elements; small ops stay on the calling thread.
  template <class F>
  void for_rows(int64_t rows, int64_t width, F fn) {
    constexpr int64_t kElementsPerPiece = 16384;
    pool_.parallel_for(rows, std::max<int64_t>(1, kElementsPerPiece / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) fn(i);
    });
  }
  void update_rotary(const Tensor& positions, const Tensor& inv_freq, float magnitude);
  void run_attention_tasks();
  void add_decode(const AttentionTask& whole);
  void run_decode();
  void run_decode_units(size_t first, size_t last, int64_t floats);
  void mla_prefill(const MlaAttention& op);
  void mla_decode(const MlaAttention& op);

  const KernelTable* kernels_;
  Topology topology_;
  ThreadPool pool_;
  const bool batch_invariant_;
  RankGroup* const group_;
  const int rank_;
  std::vector<HugeMemory> scratch_;  // per worker
  HugeMemory activations_;           // packed, of the product in progress
  RotaryTable rotary_;
  std::vector<int64_t> expert_tiles_;  // first tile of each active expert
  std::vector<AttentionTask> attention_tasks_;
  std::vector<MlaPrefillTask> prefill_tasks_;
  std::vector<DecodeUnit> decode_units_;
  std::vector<AttentionMerge> merges_;
  HugeMemory partials_;
};

}  // namespace dg
