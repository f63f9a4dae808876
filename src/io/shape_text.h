// Shapes of checkpoint tensors: size in bytes without overflow, and as text for messages.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "tensor/dtype.h"

namespace dg {

// Bytes of a contiguous tensor; nothing when a dimension is negative or a partial product exceeds 2^63 - 1.
std::optional<uint64_t> tensor_bytes(Dtype dtype, std::span<const int64_t> shape);

std::string shape_text(std::span<const int64_t> shape);  // "[7168, 2048]"

}  // namespace dg
