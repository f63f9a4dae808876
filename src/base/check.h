// CHECK(condition) << context: a bug in this program, never a user's mistake. Prints file, line, condition and
// context to stderr and aborts. Active in every build type.
#pragma once
#include <sstream>

namespace dg::detail {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

struct CheckVoidify {
  void operator&(std::ostream&) {}
};

}  // namespace dg::detail

#define CHECK(condition)                       \
  __builtin_expect(!!(condition), 1) ? (void)0 \
                                     : dg::detail::CheckVoidify() & dg::detail::CheckFailure(__FILE__, __LINE__, #condition).stream()
