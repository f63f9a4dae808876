#include "device/plugin.h"

#include <dlfcn.h>
#include <fmt/core.h>
#include <unistd.h>

#include <climits>
#include <vector>

namespace dg {
namespace {

std::string program_directory() {
  char path[PATH_MAX];
  const ssize_t length = ::readlink("/proc/self/exe", path, sizeof path);
  std::string directory(path, length > 0 ? static_cast<size_t>(length) : 0);
  const size_t slash = directory.find_last_of('/');
  return slash == std::string::npos ? "." : directory.substr(0, slash);
}

std::vector<std::string> places() {
  const std::string bin = program_directory();
  return {bin, bin + "/../lib/dougong", bin + "/../lib"};
}

std::string library_name(const std::string& name) { return "libdougong_" + name + ".so"; }

std::string find_library(const std::string& name) {
  for (const std::string& place : places()) {
    std::string path = place + "/" + library_name(name);
    if (::access(path.c_str(), R_OK) == 0) return path;
  }
  return {};
}

}  // namespace

bool backend_installed(const std::string& name) { return !find_library(name).empty(); }

Result<std::unique_ptr<Backend>> load_backend(const std::string& name, const BackendOptions& options) {
  const std::string path = find_library(name);
  if (path.empty())
    return input_error(fmt::format("--backend {}: no {} beside the program or in {}; it is built where the vendor's compiler is installed",
                                   name, library_name(name), places()[1]));
  // Never closed: its kernels and threads may outlive any object of ours.
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return resource_error(fmt::format("--backend {}: {} cannot be loaded: {}", name, path, ::dlerror()));
  const auto* plugin = static_cast<const BackendPlugin*>(::dlsym(library, "dougong_backend_plugin"));
  if (!plugin) return resource_error(fmt::format("--backend {}: {} is not a backend of dougong", name, path));
  if (std::string(plugin->interface) != DG_PLUGIN_INTERFACE)
    return resource_error(
        fmt::format("--backend {}: {} belongs to another build of dougong ({}; this is {}): install both from one release", name, path,
                    plugin->interface, DG_PLUGIN_INTERFACE));
  return plugin->create(options);
}

}  // namespace dg
