// Products with weights of int8 with scales and offsets per 32 columns: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kCode8Offset)
}  // namespace dg::cuda
