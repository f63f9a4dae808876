// Backends in shared libraries of their own, loaded when they are asked for: libdougong_<name>.so beside the program or in
// ../lib/dougong. The program itself needs no driver and no vendor library.
#pragma once
#include <memory>
#include <string>

#include "base/result.h"
#include "device/backend.h"

namespace dg {

struct BackendOptions {
  int device = 0;
  // Memory that host and device both address (slow): for `checked` and tests.
  bool mapped = false;
};

// What a plug-in exports, as `extern "C" const dg::BackendPlugin dougong_backend_plugin`.
struct BackendPlugin {
  const char* build;  // plugin_build() of the headers it was compiled with
  Result<std::unique_ptr<Backend>> (*create)(const BackendOptions& options);
};

// Names the version and the layout of the interface: a plug-in of another build is refused.
std::string plugin_build();

// Errors: no such library (names the places looked at), another build, and what the plug-in says: no driver, no device, no memory.
Result<std::unique_ptr<Backend>> load_backend(const std::string& name, const BackendOptions& options);
// Whether the library is there, without loading it.
bool backend_installed(const std::string& name);

}  // namespace dg
