#include "device/local_group.h"

#include <fmt/core.h>

namespace dg {

LocalGroup::LocalGroup(int size, std::chrono::milliseconds timeout)
    : timeout_(timeout), values_(static_cast<size_t>(size)), came_(static_cast<size_t>(size)), results_(static_cast<size_t>(size)) {
  CHECK(size > 0);
}

Result<std::vector<void*>> LocalGroup::exchange(int rank, void* value) {
  CHECK(rank >= 0 && rank < size()) << "rank " << rank << " of " << size();
  std::unique_lock lock(mutex_);
  if (error_) return *error_;
  CHECK(!came_[static_cast<size_t>(rank)]) << "rank " << rank << " twice in one exchange";
  values_[static_cast<size_t>(rank)] = value;
  came_[static_cast<size_t>(rank)] = true;
  if (++arrived_ == size()) {
    results_ = values_;
    came_.assign(came_.size(), false);
    arrived_ = 0;
    round_++;
    all_came_.notify_all();
    return results_;
  }
  const uint64_t round = round_;
  all_came_.wait_for(lock, timeout_, [&] { return round_ != round || error_; });
  if (round_ != round) return results_;  // complete, whatever failed afterwards
  if (!error_) {
    std::string missing;
    for (size_t r = 0; r < came_.size(); r++)
      if (!came_[r]) missing += fmt::format("{}{}", missing.empty() ? "" : ", ", r);
    fail_locked(resource_error(fmt::format("rank {} waited {} s for rank {}: it hangs or is much slower; see --collective-timeout", rank,
                                           static_cast<double>(timeout_.count()) / 1000, missing)));
  }
  return *error_;
}

void LocalGroup::fail(int rank, const Error& error) {
  std::lock_guard lock(mutex_);
  if (error_) return;
  fail_locked(Error{error.kind, fmt::format("rank {} of {}: {}", rank, size(), error.message)});
}

void LocalGroup::fail_locked(Error error) {
  error_ = std::make_unique<Error>(std::move(error));
  failed_.store(true, std::memory_order_release);
  all_came_.notify_all();
}

Result<void> LocalGroup::status() const {
  std::lock_guard lock(mutex_);
  if (error_) return *error_;
  return {};
}

}  // namespace dg
