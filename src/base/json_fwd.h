// Forward declarations of the JSON types; see base/json.h.
#pragma once
#include <nlohmann/json_fwd.hpp>

namespace dg {
using Json = nlohmann::ordered_json;
using SortedJson = nlohmann::json;
}  // namespace dg
