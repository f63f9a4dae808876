// Products with weights of int8 with scales per row: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kInt8Row)
DG_STREAM_KIND(kInt8Row)
}  // namespace dg::cuda
