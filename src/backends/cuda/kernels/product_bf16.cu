// Products with weights of bf16 rows: product_tile.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kBf16)
}  // namespace dg::cuda
