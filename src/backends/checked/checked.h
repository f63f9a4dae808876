// The checked backend: runs every op on the backend under test and on a reference, compares, and keeps the first op that
// differs. Computation goes on with the tested backend's results, so later ops are checked on its data.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "device/backend.h"

namespace dg {

class CheckedBackend : public Backend {
 public:
  // `tolerance`: allowed |a - b| relative to the root mean square of the reference output.
  CheckedBackend(std::unique_ptr<Backend> tested, std::unique_ptr<Backend> reference, float tolerance = 2e-3f);

  const char* name() const override { return "checked"; }
  std::string description() const override;
  bool supports(const Format& format) const override { return tested_->supports(format); }
  Result<std::unique_ptr<DeviceMemory>> allocate(size_t bytes, const char* purpose) override { return tested_->allocate(bytes, purpose); }
  Result<std::unique_ptr<DeviceMemory>> allocate_host(size_t bytes, const char* purpose) override {
    return tested_->allocate_host(bytes, purpose);
  }
  Memory memory() const override { return tested_->memory(); }
  MachineLimits measure() override { return tested_->measure(); }
  Result<void> status() const override { return tested_->status(); }
  bool host_memory() const override { return tested_->host_memory(); }
  void upload(void* to, const void* from, size_t bytes) override { tested_->upload(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { tested_->download(to, from, bytes); }
  void download_rows(void* to, size_t stride, const void* from, size_t row_bytes, int64_t rows) override {
    tested_->download_rows(to, stride, from, row_bytes, rows);
  }
  void write(void* to, const void* from, size_t bytes) const override { tested_->write(to, from, bytes); }
  void synchronise() override { tested_->synchronise(); }
  void host_parallel(int64_t n, const std::function<void(int64_t, int)>& fn) override { tested_->host_parallel(n, fn); }
  int host_workers() const override { return tested_->host_workers(); }

  int64_t compared() const { return compared_; }
  // "" when all agreed; else the first differing op: its number, name, shape, error and tolerance.
  const std::string& first_difference() const { return first_difference_; }
  double worst() const { return worst_; }

#define DG_CHECKED_OP(method, Op) void method(const Op& op) override;
  DG_OPS(DG_CHECKED_OP)
#undef DG_CHECKED_OP

 private:
  template <class Op>
  void both(const char* name, const Op& op, void (Backend::*run)(const Op&));
  void compare(const char* name, const Tensor& tested, const Tensor& reference);
  void compare_cache(const char* name, const KvWrite& op);  // the rows that the tested backend wrote

  std::unique_ptr<Backend> tested_, reference_;
  float tolerance_;
  int64_t compared_ = 0;
  double worst_ = 0;
  std::string first_difference_;
};

}  // namespace dg
