// Products with weights of 4-bit indices of kIq4Values with scales per 32 columns: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kIq4)
DG_STREAM_KIND(kIq4)
}  // namespace dg::cuda
