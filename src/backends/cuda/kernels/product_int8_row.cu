// Products with weights of int8 with scales per row: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kInt8Row)
}  // namespace dg::cuda
