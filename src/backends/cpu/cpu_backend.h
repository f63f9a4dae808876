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
  bool supports(const Format& format) const override;

  void embed(const Embed& op) override;
  void linear(const Linear& op) override;
  void linear_glu(const LinearGlu& op) override;
  void rms_norm(const RmsNorm& op) override;
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

  Matrix matrix(const Weight& weight) const;
  void reserve_scratch(int64_t floats);
  float* scratch(int worker) const { return reinterpret_cast<float*>(scratch_[static_cast<size_t>(worker)].data()); }
  void matmul(const MatmulArgs& args);
  // fn(row) for every row of `width` elements; small ops stay on the calling thread.
  template <class F>
  void for_rows(int64_t rows, int64_t width, F fn) {
    constexpr int64_t kElementsPerPiece = 16384;
    pool_.parallel_for(rows, std::max<int64_t>(1, kElementsPerPiece / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i++) fn(i);
    });
  }
  void update_rotary(const Tensor& positions, const Tensor& inv_freq, float magnitude);
  void mla_prefill(const MlaAttention& op);
  void mla_decode(const MlaAttention& op);

  const KernelTable* kernels_;
  Topology topology_;
  ThreadPool pool_;
  std::vector<HugeMemory> scratch_;  // per worker
  RotaryTable rotary_;
  std::vector<AttentionTask> attention_tasks_;
  std::vector<MlaPrefillTask> prefill_tasks_;
  std::vector<MlaDecodeTask> decode_tasks_;
};

}  // namespace dg
