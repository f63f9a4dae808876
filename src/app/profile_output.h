// What --profile prints when a model is closed.
#pragma once
#include <memory>
#include <string>

#include "base/result.h"
#include "device/backend.h"

namespace dg {

class ProfileBackend;

// Destroyed before the backend: prints the table to standard error and writes the trace; a file that cannot be written is one
// line there, because the command itself did its work.
class ProfileOutput {
 public:
  static constexpr size_t kMaxTraceEvents = size_t{1} << 20;  // 48 MB

  // Measures the limits of the backend's device, or those of the machine for `threads` unless they are known, now, so that nothing else
  // runs beside it. `trace` "": none; else it must be writable.
  static Result<std::unique_ptr<ProfileOutput>> create(Backend& backend, std::string isa, int threads, std::string trace);
  ~ProfileOutput();
  ProfileOutput(const ProfileOutput&) = delete;
  ProfileOutput& operator=(const ProfileOutput&) = delete;

  void attach(ProfileBackend* profile) { profile_ = profile; }
  void restart();  // forgets what ran so far: steps that only found out how much memory there must be
  size_t max_events() const { return trace_.empty() ? 0 : kMaxTraceEvents; }

 private:
  ProfileOutput(std::string isa, std::string trace, MachineLimits limits)
      : isa_(std::move(isa)), trace_(std::move(trace)), limits_(std::move(limits)) {}

  std::string isa_, trace_;
  MachineLimits limits_;
  ProfileBackend* profile_ = nullptr;
};

}  // namespace dg
