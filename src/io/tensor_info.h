// What a checkpoint says of one tensor: name, type, shape and where its bytes lie.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace dg {

struct TensorInfo {
  std::string name;  // valid UTF-8 without control characters, so it can be printed
  Dtype dtype = Dtype::kF32;
  std::vector<int64_t> shape;  // outermost first; empty for a scalar; the product with dtype_bytes fits 63 bits
  int file = 0;                // index into TensorIndex::file
  uint64_t offset = 0;         // of the first byte, from the start of the file; not necessarily aligned to the dtype
  uint64_t bytes = 0;
};

}  // namespace dg
