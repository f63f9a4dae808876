// Element types. Names follow safetensors where it has one. FP4 and other sub-byte packings are Formats (quant/), not
// dtypes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace dg {

enum class Dtype : uint8_t { kF32, kF16, kBf16, kF8E4m3, kF8E5m2, kF8E8m0, kI8, kU8, kI16, kU16, kI32, kU32, kI64, kU64, kF64, kBool };
inline constexpr int kDtypeCount = 16;

size_t dtype_bytes(Dtype dtype);
const char* dtype_name(Dtype dtype);  // "F32", "BF16", "F8_E4M3", ... as safetensors writes it

// The dtype of a safetensors name; false when the name is unknown.
bool parse_dtype(std::string_view name, Dtype* out);

}  // namespace dg
