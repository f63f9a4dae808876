// The ops that sum over the ranks of the group.
#include "backends/cuda/collectives.h"
#include "backends/cuda/cuda_backend.h"

namespace dg::cuda {

void CudaBackend::all_reduce(const AllReduce& op) {
  CHECK(op.x.dtype == Dtype::kF32 && op.x.contiguous());
  if (collectives_ && op.x.elements() > 0) collectives_->all_reduce(op.x.f32(), op.x.elements(), stream_);
}

bool CudaBackend::reduce_norm(const AddRmsNorm& op) {
  const int64_t rows = op.residual.rows(), dim = op.residual.cols();
  // What decides must be the same on all ranks: shapes, never addresses.
  for (const Tensor* t : {&op.out, &op.residual, &op.delta}) {
    CHECK(t->dtype == Dtype::kF32 && t->rank == 2 && t->rows() == rows && t->cols() == dim && (dim <= 1 || t->stride[1] == 1));
    if (rows == 0 || dim == 0 || dim > INT32_MAX || dim % 4 != 0 || t->stride[0] % 4 != 0) return false;
    CHECK(reinterpret_cast<uintptr_t>(t->data) % 16 == 0) << "rows of " << dim << " numbers at an odd address";
  }
  CHECK(op.weight.dtype == Dtype::kF32 && op.weight.elements() >= dim && op.weight.stride[0] == 1 &&
        reinterpret_cast<uintptr_t>(op.weight.data) % 16 == 0);
  return collectives_->add_rms_norm({.out = op.out.f32(),
                                     .residual = op.residual.f32(),
                                     .delta = op.delta.f32(),
                                     .weight = op.weight.f32(),
                                     .out_stride = op.out.stride[0],
                                     .residual_stride = op.residual.stride[0],
                                     .delta_stride = op.delta.stride[0],
                                     .rows = rows,
                                     .groups = static_cast<int>(dim / 4),
                                     .eps = op.eps},
                                    stream_);
}

}  // namespace dg::cuda
