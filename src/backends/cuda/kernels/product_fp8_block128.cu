// Products with weights of e4m3 with scales per 128 x 128: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kFp8Block128)
}  // namespace dg::cuda
