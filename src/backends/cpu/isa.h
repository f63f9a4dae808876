// The instruction sets the kernels were compiled for, and which of them this machine runs.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace dg {

struct KernelTable;

std::vector<std::string> usable_isas();  // best first
// `name` "auto": the best one. Errors: unknown here, or not supported by this processor or operating system.
Result<const KernelTable*> find_kernels(std::string_view name);

}  // namespace dg
