// The list of weight formats. A new format is one header and one line in formats.cpp.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "quant/format.h"

namespace dg {

std::span<const Format* const> all_formats();
const Format* find_format(std::string_view name);  // nullptr when unknown
std::string format_names();                        // "f32, bf16, ..." for messages

}  // namespace dg
