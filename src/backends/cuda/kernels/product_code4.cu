// Products with weights of 4 bits with scales per 32 columns: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kCode4)
}  // namespace dg::cuda
