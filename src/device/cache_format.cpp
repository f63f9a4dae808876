#include "device/cache_format.h"

#include "tensor/dtype.h"

namespace dg {

bool is_cache_dtype(Dtype dtype) {
  return dtype == Dtype::kF32 || dtype == Dtype::kBf16 || dtype == Dtype::kF16 || dtype == Dtype::kF8E4m3 || dtype == Dtype::kI8;
}

int64_t cache_row_bytes(Dtype dtype, int64_t width) {
  return dtype == Dtype::kI8 ? int8_cache_row_bytes(width) : width * static_cast<int64_t>(dtype_bytes(dtype));
}

}  // namespace dg
