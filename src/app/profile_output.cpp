#include "app/profile_output.h"

#include <fmt/core.h>

#include "app/terminal.h"
#include "backends/cpu/machine_measure.h"
#include "backends/profile/report.h"
#include "base/file.h"

namespace dg {

Result<std::unique_ptr<ProfileOutput>> ProfileOutput::create(Backend& backend, std::string isa, int threads, std::string trace) {
  if (!trace.empty()) DG_TRY(write_file(trace, ""));  // better to learn now that it cannot be written
  MachineLimits limits = backend.measure();
  if (!limits.peaks.empty()) {
    isa = limits.peaks[0].isa;
  } else {
    DG_ASSIGN(limits, machine_limits(threads));
  }
  return std::unique_ptr<ProfileOutput>(new ProfileOutput(std::move(isa), std::move(trace), std::move(limits)));
}

ProfileOutput::~ProfileOutput() {
  if (!profile_ || profile_->rows().empty()) return;
  print_error(profile_table(*profile_, limits_, isa_));
  if (trace_.empty()) return;
  Result<void> written = write_profile_trace(*profile_, trace_);
  if (!written.ok()) print_error(fmt::format("--profile: {}\n", written.error().message));
  else if (profile_->dropped_events() > 0)
    print_error(
        fmt::format("{}: the first {} events; {} more were left out\n", trace_, profile_->events().size(), profile_->dropped_events()));
}

void ProfileOutput::restart() {
  if (profile_) profile_->reset();
}

}  // namespace dg
