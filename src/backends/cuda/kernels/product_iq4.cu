// Products with weights of 4-bit indices of kIq4Values with scales per 32 columns: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kIq4)
}  // namespace dg::cuda
