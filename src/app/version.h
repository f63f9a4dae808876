#pragma once

namespace dg {

inline constexpr const char* kVersion = "0.1.0";  // that of project() in CMakeLists.txt; a test compares

}  // namespace dg
