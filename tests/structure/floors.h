// The floors of src/, highest first: the one table that the include graph is held against. docs/structure.md shows the
// same table to people, and a test compares the two.
#pragma once
#include <string>
#include <vector>

namespace dg::structure {

struct Floor {
  std::string folder;                      // below src/
  std::vector<std::string> may_use;        // and what those may use in turn; "*" = every floor
  std::vector<std::string> tests_may_use;  // additionally, in *_test.cpp
};

inline std::vector<Floor> floors() {
  const std::vector<std::string> backends = {"backends/cpu", "backends/dry", "backends/checked", "backends/profile"};
  return {
      {"base", {}, {}},
      {"config", {"base"}, {}},
      {"tensor", {"base"}, {}},
      {"quant", {"tensor"}, {}},
      {"device", {"tensor", "quant"}, {}},
      {"backends/cpu", {"device"}, {}},
      {"backends/cuda", {"device"}, {}},
      {"backends/dry", {"device"}, {}},
      {"backends/checked", {"device"}, {"backends/cpu"}},
      {"backends/profile", {"device"}, {"backends/cpu"}},
      {"io", {"tensor", "quant"}, {}},
      {"text", {"base"}, {}},
      {"kv", {"device"}, {}},
      {"model", {"device", "io", "kv"}, backends},
      {"engine", {"model", "text"}, backends},
      {"plan", {"model", "backends/dry"}, backends},
      {"server", {"engine", "text"}, backends},
      {"app", {"*"}, {}},
  };
}

}  // namespace dg::structure
