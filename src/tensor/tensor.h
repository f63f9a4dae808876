// Tensor: a trivially copyable, strided view of up to four dimensions. It never owns: the weight store, the KV pool, the
// per-device arena and pinned staging are the only owners (docs/structure.md).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "tensor/dtype.h"

namespace dg {

struct Tensor {
  void* data = nullptr;
  Dtype dtype = Dtype::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> stride{};  // elements, not bytes

  // Contiguous view of `data`.
  static Tensor of(void* data, Dtype dtype, std::initializer_list<int64_t> shape);

  bool valid() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[static_cast<size_t>(i)]; }
  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape[static_cast<size_t>(rank - 1)]; }
  int64_t elements() const;
  size_t bytes() const { return static_cast<size_t>(elements()) * dtype_bytes(dtype); }
  bool contiguous() const;

  // Pointer to element (i) / (i, j) / (i, j, k) along the leading dimensions.
  template <class T>
  T* ptr(int64_t i = 0, int64_t j = 0, int64_t k = 0) const {
    return static_cast<T*>(data) + i * stride[0] + j * stride[1] + k * stride[2];
  }
  float* f32(int64_t i = 0, int64_t j = 0, int64_t k = 0) const {
    CHECK(dtype == Dtype::kF32);
    return ptr<float>(i, j, k);
  }
  int32_t* i32(int64_t i = 0) const {
    CHECK(dtype == Dtype::kI32);
    return ptr<int32_t>(i);
  }

  // Elements [begin, begin + count) of one dimension.
  Tensor slice(int dimension, int64_t begin, int64_t count) const;
  // The same memory under another shape; the view must be contiguous.
  Tensor reshaped(std::initializer_list<int64_t> new_shape) const;
  // Splits the last dimension into (parts, last / parts); works on strided views.
  Tensor split_last(int64_t parts) const;
};

}  // namespace dg
