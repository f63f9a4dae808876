#include "backends/profile/profile.h"

#include <algorithm>

namespace dg {

ProfileBackend::ProfileBackend(std::unique_ptr<Backend> inner, size_t max_events) : inner_(std::move(inner)), max_events_(max_events) {
  events_.reserve(std::min<size_t>(max_events, 4096));
}

int64_t ProfileBackend::now_ns() {
  Clock::time_point now = Clock::now();
  if (!started_) started_ = true, start_ = now;
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now - start_).count();
}

void ProfileBackend::add_event(const ProfileEvent& event) {
  if (max_events_ == 0) return;
  if (events_.size() < max_events_) events_.push_back(event);
  else dropped_events_++;
}

void ProfileBackend::record(const OpShape& shape, const Cost& cost, int64_t begin_ns, int64_t end_ns) {
  auto [found, is_new] = row_of_.try_emplace(shape, rows_.size());
  if (is_new)
    rows_.push_back(
        {.shape = shape, .low_rows = shape.rows, .high_rows = shape.rows, .low_context = shape.context, .high_context = shape.context});
  ProfileRow& row = rows_[found->second];
  row.calls++;
  row.low_rows = std::min(row.low_rows, shape.rows), row.high_rows = std::max(row.high_rows, shape.rows);
  row.low_context = std::min(row.low_context, shape.context), row.high_context = std::max(row.high_context, shape.context);
  row.seconds += static_cast<double>(end_ns - begin_ns) * 1e-9;
  row.cost += cost;
  last_ns_ = end_ns;
  add_event({.start_ns = begin_ns,
             .duration_ns = end_ns - begin_ns,
             .row = static_cast<int32_t>(found->second),
             .tokens = static_cast<int32_t>(shape.rows),
             .bytes = static_cast<float>(cost.bytes()),
             .flops = static_cast<float>(cost.flops)});
}

template <class Op>
void ProfileBackend::timed(const Op& op, void (Backend::*run)(const Op&)) {
  const OpShape shape = shape_of(op);
  const int64_t begin = now_ns();
  (inner_.get()->*run)(op);
  inner_->synchronise();
  const int64_t end = now_ns();
  if (step_begin_ns_ < 0) step_begin_ns_ = begin, step_tokens_ = shape.rows;
  record(shape, measured_cost(op), begin, end);
}

void ProfileBackend::synchronise() {
  inner_->synchronise();
  end_step();
}

void ProfileBackend::note_wait(Clock::time_point from, Clock::time_point to) {
  if (!started_ || from < start_) return;
  const int64_t duration_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(to - from).count();
  waited_ns_ += duration_ns;
  add_event({.start_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(from - start_).count(),
             .duration_ns = duration_ns,
             .row = ProfileEvent::kWait});
}

void ProfileBackend::end_step() {
  if (step_begin_ns_ < 0) return;  // nothing ran since the last one
  const int64_t duration_ns = now_ns() - step_begin_ns_;
  steps_++;
  steps_ns_ += duration_ns;
  add_event(
      {.start_ns = step_begin_ns_, .duration_ns = duration_ns, .row = ProfileEvent::kStep, .tokens = static_cast<int32_t>(step_tokens_)});
  step_begin_ns_ = -1;
}

void ProfileBackend::host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) {
  const int64_t begin = now_ns();
  inner_->host_parallel(n, fn);
  record({.op = "host_parallel", .rows = n}, {}, begin, now_ns());
}

void ProfileBackend::reset() {
  rows_.clear();
  row_of_.clear();
  events_.clear();
  dropped_events_ = steps_ = steps_ns_ = waited_ns_ = last_ns_ = 0;
  started_ = false;
  step_begin_ns_ = -1;
}

#define DG_PROFILE_OP(method, Op) \
  void ProfileBackend::method(const Op& op) { timed(op, &Backend::method); }
DG_OPS(DG_PROFILE_OP)
#undef DG_PROFILE_OP

}  // namespace dg
