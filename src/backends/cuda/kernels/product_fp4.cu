// Products with weights of e2m1 with exponents per 32 columns: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kFp4)
DG_STREAM_KIND(kFp4)
}  // namespace dg::cuda
