// RankGroup: where the backends that compute one model together (tensor parallel, one thread each) meet on the host: to hand
// each other addresses when they are made, and to fail together. Steps meet on the devices (Backend::all_reduce), not here.
#pragma once
#include <chrono>
#include <vector>

#include "base/result.h"

namespace dg {

class RankGroup {
 public:
  virtual ~RankGroup() = default;
  virtual int size() const = 0;
  // How long a rank waits for the others, here or in a collective on the device.
  virtual std::chrono::milliseconds timeout() const = 0;
  // Waits until every rank called it with its value; all get all values, by rank. Also serves as a barrier. Error: a rank did not
  // come in time, or fail() was called. Afterwards every call fails.
  virtual Result<std::vector<void*>> exchange(int rank, void* value) = 0;
  // This rank cannot go on: what waits now or later fails with `error`.
  virtual void fail(int rank, const Error& error) = 0;
  virtual bool failed() const = 0;
};

}  // namespace dg
