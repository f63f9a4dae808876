// Small file helpers that answer with a Result naming the path. Paths are UTF-8 byte strings (spaces, Chinese are fine).
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"

namespace dg {

// Whole content of a regular file of at most `max_bytes` bytes.
Result<std::string> read_file(const std::string& path, size_t max_bytes);
Result<void> write_file(const std::string& path, std::string_view content);
bool file_exists(const std::string& path);  // a regular file, symlinks followed
bool directory_exists(const std::string& path);

}  // namespace dg
