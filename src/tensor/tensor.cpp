#include "tensor/tensor.h"

namespace dg {

Tensor Tensor::of(void* data, Dtype dtype, std::initializer_list<int64_t> shape) {
  CHECK(shape.size() >= 1 && shape.size() <= 4);
  Tensor t;
  t.data = data;
  t.dtype = dtype;
  t.rank = static_cast<int>(shape.size());
  size_t i = 0;
  for (int64_t d : shape) t.shape[i++] = d;
  int64_t step = 1;
  for (size_t k = shape.size(); k-- > 0;) {
    t.stride[k] = step;
    step *= t.shape[k];
  }
  return t;
}

int64_t Tensor::elements() const {
  if (rank == 0) return 0;
  int64_t n = 1;
  for (int i = 0; i < rank; i++) n *= dim(i);
  return n;
}

bool Tensor::contiguous() const {
  int64_t step = 1;
  for (int k = rank; k-- > 0;) {
    if (dim(k) != 1 && stride[static_cast<size_t>(k)] != step) return false;
    step *= dim(k);
  }
  return true;
}

Tensor Tensor::slice(int dimension, int64_t begin, int64_t count) const {
  CHECK(dimension < rank && begin >= 0 && count >= 0 && begin + count <= dim(dimension))
      << "slice [" << begin << ", +" << count << ") of dimension " << dimension << " of size " << dim(dimension);
  Tensor t = *this;
  auto d = static_cast<size_t>(dimension);
  t.data = static_cast<std::byte*>(data) + begin * stride[d] * static_cast<int64_t>(dtype_bytes(dtype));
  t.shape[d] = count;
  return t;
}

Tensor Tensor::reshaped(std::initializer_list<int64_t> new_shape) const {
  CHECK(contiguous());
  Tensor t = of(data, dtype, new_shape);
  CHECK(t.elements() == elements());
  return t;
}

Tensor Tensor::split_last(int64_t parts) const {
  CHECK(rank >= 1 && rank < 4 && parts > 0 && cols() % parts == 0);
  Tensor t = *this;
  auto last = static_cast<size_t>(rank - 1);
  t.shape[last] = parts;
  t.shape[last + 1] = shape[last] / parts;
  t.stride[last] = stride[last] * t.shape[last + 1];
  t.stride[last + 1] = stride[last];
  t.rank++;
  return t;
}

}  // namespace dg
