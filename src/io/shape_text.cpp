#include "io/shape_text.h"

#include <limits>

namespace dg {

std::optional<uint64_t> tensor_bytes(Dtype dtype, std::span<const int64_t> shape) {
  // Overflow is judged with empty dimensions counted as 1: strides of [2^40, 2^40, 0] overflow although it has no bytes.
  auto product = static_cast<int64_t>(dtype_bytes(dtype));
  bool empty = false;
  for (int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim == 0) empty = true;
    else if (__builtin_mul_overflow(product, dim, &product)) return std::nullopt;
  }
  return empty ? 0 : static_cast<uint64_t>(product);
}

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); i++) (out += i == 0 ? "" : ", ") += std::to_string(shape[i]);
  return out += "]";
}

}  // namespace dg
