// Products with weights of e4m3 with scales per row: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kFp8Row)
}  // namespace dg::cuda
