// Products with weights of e2m1 with exponents per 32 columns: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kFp4)
}  // namespace dg::cuda
