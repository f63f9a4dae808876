// Pieces of one-line error messages: text from untrusted files made printable, and errno in words.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "base/result.h"

namespace dg {

// `text` in double quotes; quotes, control bytes and bytes that are not UTF-8 escaped; cut after `max_bytes` with "...".
std::string quote_text(std::string_view text, size_t max_bytes = 200);

// "path: action: reason" of a failed system call; running out of memory or descriptors is a resource error.
Error system_error(std::string_view path, std::string_view action, int error_number);

}  // namespace dg
