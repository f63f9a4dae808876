// What a profile says: a table for people, and a trace for chrome://tracing and ui.perfetto.dev.
#pragma once
#include <string>

#include "backends/profile/profile.h"
#include "device/machine.h"

namespace dg {

// One line for each class, the longest time first, at most `max_rows` and the rest together: calls, time, share of all time,
// time per call, bytes, GB/s, GFLOP/s and the percentage of the roofline: the time that memory bandwidth or multipliers of the
// fastest type need at least (`limits` for the instruction set `isa`), over the time it took. Above 100: the data came from caches.
std::string profile_table(const ProfileBackend& profile, const MachineLimits& limits, const std::string& isa, size_t max_rows = 40);

// Chrome's trace event format (JSON object form): one complete event (ph X) for each op, each step, and each wait of the device for the
// host between two steps. Errors: not writable.
Result<void> write_profile_trace(const ProfileBackend& profile, const std::string& path);

}  // namespace dg
