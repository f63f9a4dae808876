// Shared between the methods and the filters that do the same work.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "text/jinja_eval.h"

namespace dg::jinja {

const Method* find_text_method(std::string_view name);

bool is_lower(std::string_view text);  // str.islower()
bool is_upper(std::string_view text);

// str.replace(), charged for its result before it is built.
std::string replace_checked(Heap& heap, std::string_view text, std::string_view from, std::string_view to, int64_t max_count);

}  // namespace dg::jinja
