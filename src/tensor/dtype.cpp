#include "tensor/dtype.h"

#include <iterator>

namespace dg {
namespace {
struct Row {
  const char* name;
  size_t bytes;
};
// Order of enum Dtype.
constexpr Row kRows[] = {{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}, {"I8", 1},  {"U8", 1},
                         {"I16", 2}, {"U16", 2}, {"I32", 4},  {"U32", 4},     {"I64", 8},     {"U64", 8},     {"F64", 8}, {"BOOL", 1}};
static_assert(std::size(kRows) == kDtypeCount);
}  // namespace

size_t dtype_bytes(Dtype dtype) { return kRows[static_cast<int>(dtype)].bytes; }
const char* dtype_name(Dtype dtype) { return kRows[static_cast<int>(dtype)].name; }

bool parse_dtype(std::string_view name, Dtype* out) {
  for (int i = 0; i < kDtypeCount; i++)
    if (name == kRows[i].name) {
      *out = static_cast<Dtype>(i);
      return true;
    }
  return false;
}

}  // namespace dg
