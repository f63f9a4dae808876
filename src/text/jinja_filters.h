// The filters, in two tables: text and numbers, sequences.
#pragma once
#include <string_view>

#include "text/jinja_eval.h"

namespace dg::jinja {

using Filter = Value (*)(Interpreter& in, const Value& input, const Args& args);

Filter find_text_filter(std::string_view name);
Filter find_sequence_filter(std::string_view name);

}  // namespace dg::jinja
