// Python's two string formatting languages, as far as templates use them.
#pragma once
#include <string>
#include <string_view>

#include "text/jinja_value.h"

namespace dg::jinja {

// format % args: conversions s r d i u f F e g x X o c %, flags - + 0 space, width, precision; names with a dict.
std::string percent_format(Heap& heap, std::string_view format, const Value& args);

// format.format(...): {} {0} {name}, doubled braces, specification [<>^][0][width][.precision][d|f|s|x].
std::string brace_format(Heap& heap, std::string_view format, const Args& args);

// Digits of d with a fixed number of decimals, independent of the locale.
std::string fixed_text(double d, int decimals);

}  // namespace dg::jinja
