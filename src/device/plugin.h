// Backends in shared libraries of their own, loaded when they are asked for: libdougong_<name>.so beside the program or in
// ../lib/dougong. The program itself needs no driver and no vendor library.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "device/backend.h"
#include "device/rank_group.h"

namespace dg {

struct BackendOptions {
  int device = 0;
  // Memory that host and device both address (slow): for `checked` and tests.
  bool mapped = false;
  RankGroup* group = nullptr;  // with which it computes, as `rank`; outlives the backend
  int rank = 0;
  int threads = 0;  // of the host, for work beside the device (sampling); 0: the physical cores this process may use
};

// A plug-in has its own copies of the floors below (so formats are compared by name, never by address) and is refused when it was
// compiled with other declarations of them than the program.
static constexpr const char* kPluginVersion = DG_BUILD_VERSION;
static constexpr uint32_t kPluginLayout[] = {sizeof(Weight),        sizeof(Tensor),       sizeof(Format),
                                             sizeof(SequenceSlice), sizeof(MlaAttention), sizeof(MoeRoute),
                                             sizeof(MoeExperts),    sizeof(PickRows),     sizeof(BackendOptions)};

// What a plug-in exports, as `extern "C" const dg::BackendPlugin dougong_backend_plugin`.
struct BackendPlugin {
  const char* version = kPluginVersion;
  const uint32_t* layout = kPluginLayout;
  Result<std::unique_ptr<Backend>> (*create)(const BackendOptions& options);
};

// Errors: no such library (names the places looked at), another build, and what the plug-in says: no driver, no device, no memory.
Result<std::unique_ptr<Backend>> load_backend(const std::string& name, const BackendOptions& options);
// Whether the library is there, without loading it.
bool backend_installed(const std::string& name);

}  // namespace dg
