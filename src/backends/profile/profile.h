// The profile backend: forwards everything to the backend it owns, and takes the time of every op. What it keeps for an op
// class (op_shape.h) is a handful of sums, so a server may run with it for weeks; a trace of single events is kept on demand
// and up to a limit. Costs well below 1 us for each op.
//
// Ops are timed to their end (synchronise() of the backend), on the thread that issues them. One issuing thread; read the
// results from there or after it ended. prepare() and allocate() may be called by any thread.
#pragma once
#include <chrono>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "backends/profile/op_shape.h"
#include "device/backend.h"

namespace dg {

// What was measured of one class.
struct ProfileRow {
  OpShape shape;
  int64_t calls = 0;
  int64_t low_rows = 0, high_rows = 0, low_context = 0, high_context = 0;
  double seconds = 0;
  Cost cost;  // of all calls

  std::string label() const { return shape_label(shape, low_rows, high_rows, low_context, high_context); }
};

struct ProfileEvent {
  int64_t start_ns = 0, duration_ns = 0;  // from the first op on
  int32_t row = 0;                        // index of the ProfileRow, or one of the two below
  static constexpr int32_t kStep = -1;    // from its first op to synchronise() or download()
  static constexpr int32_t kWait = -2;    // between two steps: the device waited for the host (note_wait)
  int32_t tokens = 0;
  float bytes = 0, flops = 0;
};

class ProfileBackend : public Backend {
 public:
  using Clock = std::chrono::steady_clock;
  // `max_events` 0: no trace. Events beyond it are counted and left out.
  explicit ProfileBackend(std::unique_ptr<Backend> inner, size_t max_events = 0);

  const char* name() const override { return inner_->name(); }
  std::string description() const override { return inner_->description(); }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override { return inner_->allocate(bytes, purpose); }
  Result<std::unique_ptr<DeviceMemory>> allocate_host(size_t bytes, const char* purpose) override {
    return inner_->allocate_host(bytes, purpose);
  }
  Memory memory() const override { return inner_->memory(); }
  MachineLimits measure() override { return inner_->measure(); }
  Result<void> status() const override { return inner_->status(); }
  bool host_memory() const override { return inner_->host_memory(); }
  void upload(void* to, const void* from, size_t bytes) override { inner_->upload(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override {
    inner_->download(to, from, bytes);
    end_step();
  }
  void download_rows(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows) override {
    inner_->download_rows(to, stride, from, row_bytes, rows);
    end_step();
  }
  void write(void* to, const void* from, size_t bytes) const override { inner_->write(to, from, bytes); }
  bool executes() const override { return inner_->executes(); }
  bool supports(const Format& format) const override { return inner_->supports(format); }
  int64_t prepared_bytes(const Format& format, int64_t out, int64_t in) const override { return inner_->prepared_bytes(format, out, in); }
  void prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const override { inner_->prepare(rows, first, out, to); }
  bool picks_rows() const override { return inner_->picks_rows(); }
  void synchronise() override;
  void note_wait(Clock::time_point from, Clock::time_point to) override;
  void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) override;
  int host_workers() const override { return inner_->host_workers(); }
  Dtype inner_type(int64_t rows, const Weight& gate, const Weight& up, const Weight& down) const override {
    return inner_->inner_type(rows, gate, up, down);
  }

#define DG_PROFILE_OP(method, Op) void method(const Op& op) override;
  DG_OPS(DG_PROFILE_OP)
#undef DG_PROFILE_OP

  const std::vector<ProfileRow>& rows() const { return rows_; }
  const std::vector<ProfileEvent>& events() const { return events_; }
  int64_t dropped_events() const { return dropped_events_; }
  double elapsed_s() const { return static_cast<double>(last_ns_) * 1e-9; }  // from the first op's begin to the last one's end
  int64_t steps() const { return steps_; }
  double steps_s() const { return static_cast<double>(steps_ns_) * 1e-9; }
  double waited_s() const { return static_cast<double>(waited_ns_) * 1e-9; }  // of the device for the host, between steps
  void reset();

 private:
  struct Hash {
    size_t operator()(const OpShape& shape) const { return shape.hash(); }
  };

  template <class Op>
  void timed(const Op& op, void (Backend::*run)(const Op&));
  int64_t now_ns();
  void record(const OpShape& shape, const Cost& cost, int64_t begin_ns, int64_t end_ns);
  void add_event(const ProfileEvent& event);
  void end_step();

  std::unique_ptr<Backend> inner_;
  const size_t max_events_;
  std::vector<ProfileRow> rows_;
  std::unordered_map<OpShape, size_t, Hash> row_of_;
  std::vector<ProfileEvent> events_;
  int64_t dropped_events_ = 0, steps_ = 0, steps_ns_ = 0, waited_ns_ = 0;
  Clock::time_point start_;
  int64_t last_ns_ = 0;
  bool started_ = false;
  int64_t step_begin_ns_ = -1, step_tokens_ = 0;
};

}  // namespace dg
