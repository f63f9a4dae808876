// Backend: the one interface between a model's forward and whatever computes it. The same forward runs on the executing
// backends (cpu, reference, later cuda), on `dry` (counts) and on `checked` (compares two).
//
// Op contract: asynchronous on the backend's stream, no allocation, no host synchronisation, fixed addresses; synchronise()
// waits. Scratch an op needs comes from the arena passed with it. Fused ops (* in ops.h) have a default body made of
// primitives, so a new backend starts correct and becomes fast one override at a time.
#pragma once
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "device/machine.h"
#include "device/ops.h"

namespace dg {

// Device memory, freed with the backend that made it.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 protected:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  virtual std::string description() const { return name(); }  // instruction set, threads, device: for people

  // Zeroed memory of at least `bytes`, 64-byte aligned, huge pages where it pays. The error names bytes and purpose.
  virtual Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) = 0;
  // Bytes free and in all of the memory that allocate() takes from; {0, 0}: that of the host.
  struct Memory {
    int64_t free = 0, total = 0;
  };
  virtual Memory memory() const { return {}; }
  // What the device can do at most, measured now (about a second), of one instruction set, its peaks[0].isa. Without peaks: not
  // measured here (the CPU's: machine_measure.h).
  virtual MachineLimits measure() { return {}; }
  // An error once the device failed: what was computed in this step is lost, and later ops do nothing. Ask after synchronise() or
  // download(), which never wait for ever.
  virtual Result<void> status() const { return {}; }
  // Host memory that upload() and download() are fast with (pinned); same errors.
  virtual Result<std::unique_ptr<DeviceMemory>> allocate_host(size_t bytes, const char* purpose) { return allocate(bytes, purpose); }
  // False when tensors must not be read or written by anyone (dry run: addresses only).
  virtual bool executes() const { return true; }
  // Whether host code may read and write memory of allocate(), after synchronise(). Else only these three do:
  virtual bool host_memory() const { return true; }
  // Behind the ops issued so far and before later ones; `from` may change when it returns.
  virtual void upload(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
  // Waits for the ops issued so far.
  virtual void download(void* to, const void* from, size_t bytes) {
    synchronise();
    std::memcpy(to, from, bytes);
  }
  // Rows of `row_bytes` that lie behind each other on the device, to rows `stride` bytes apart. Waits as download() does.
  virtual void download_rows(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows);
  // Complete when it returns and in no order with ops: for loading. Any thread, several at a time.
  virtual void write(void* to, const void* from, size_t bytes) const { std::memcpy(to, from, bytes); }
  // Whether `linear`, `linear_glu`, `moe_experts` and `mla_attention` take weights of this format.
  virtual bool supports(const Format& format) const = 0;
  // Repacking at load. A backend that wants the weights of `linear`, `linear_glu` and `moe_experts` in a layout of its own
  // says how many bytes (a multiple of 64) such a matrix takes; 0: it is used as published. `prepare` packs rows
  // [first, first + rows.out) of the (out, rows.in) matrix, given in their published layout, to their place in the block `to`
  // of the whole matrix; `first` is a multiple of kPrepareRows. Any thread may call it, several at a time.
  static constexpr int64_t kPrepareRows = 128;
  virtual int64_t prepared_bytes(const Format&, int64_t /*out*/, int64_t /*in*/) const { return 0; }
  virtual void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const;
  // Waits for all ops issued so far.
  virtual void synchronise() {}
  // Steps of one shape can be issued once and replayed (CUDA graphs): begin_step() with the step's sequences and an upper bound of
  // their kv_len, then replay() of ops that depend on nothing of the host but those sequences. `key` names shape and bound;
  // `issue` is called the first times and later not at all.
  virtual bool replays() const { return false; }
  virtual void begin_step(std::span<const SequenceSlice>, int64_t /*block_tokens*/, int64_t /*longest_kv*/) {}
  virtual void replay(uint64_t /*key*/, const std::function<void()>& issue) { issue(); }
  virtual void forget_replays() {}  // all of them, with their memory
  // Between these the device had nothing to do because the host was busy: for whoever draws it.
  virtual void note_wait(std::chrono::steady_clock::time_point /*from*/, std::chrono::steady_clock::time_point /*to*/) {}
  // Work of the host beside the ops, as sampling: calls fn(i, worker) for i in [0, n), worker below host_workers(), on the
  // threads that the backend has anyway. fn must not throw or call the backend.
  virtual void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) {
    for (int64_t i = 0; i < n; i++) fn(i, 0);
  }
  virtual int host_workers() const { return 1; }

  // The type of what lies between linear_glu and the product behind it, `down`, for so many rows: f32, or bf16 where that is what the
  // product reads anyway; linear_glu then takes such an `out` and linear such an x.
  virtual Dtype inner_type(int64_t /*rows*/, const Weight& /*gate*/, const Weight& /*up*/, const Weight& /*down*/) const {
    return Dtype::kF32;
  }

  // Ops issued between begin_beside() and end_beside() may run at the same time as those issued after end_beside(), until the next
  // moe_experts, which waits for them before it touches its `out`. For the products of `weights` with up to kMostBesideRows rows like x and
  // what follows from them; what they read and write, scratch included, is left alone until then. False: not so, and no end_beside().
  static constexpr int64_t kMostBesideRows = 4;
  virtual bool begin_beside(const Tensor& /*x*/, std::span<const Weight* const> /*weights*/) { return false; }
  virtual void end_beside() {}

  virtual void embed(const Embed&) = 0;
  virtual void linear(const Linear&) = 0;
  virtual void linear_several(const LinearSeveral&);
  virtual void linear_glu(const LinearGlu&);
  virtual void rms_norm(const RmsNorm&) = 0;
  virtual void all_reduce(const AllReduce&) {}  // of a backend without a group
  virtual void add_rms_norm(const AddRmsNorm&);
  virtual void rope(const Rope&) = 0;
  virtual void head_norm_rope(const HeadNormRope&);
  virtual void act_mul(const ActMul&) = 0;
  virtual void add(const Add&) = 0;
  virtual void gather_rows(const GatherRows&) = 0;
  virtual void fill(const Fill&) = 0;
  virtual void copy(const Copy&) = 0;
  virtual void kv_write(const KvWrite&) = 0;
  virtual void rope_kv_write(const RopeKvWrite&);
  virtual void latent_kv_write(const LatentKvWrite&);
  virtual void attention(const Attention&) = 0;
  virtual void mla_attention(const MlaAttention&) = 0;
  virtual void moe_route(const MoeRoute&) = 0;
  virtual void moe_experts(const MoeExperts&) = 0;
  // Whether a host that samples should ask for pick_rows() instead of rows of logits. The default bodies are host code.
  virtual bool picks_rows() const { return false; }
  virtual void adjust_logits(const AdjustLogits&);
  virtual void pick_rows(const PickRows&);
};

}  // namespace dg
