// Products with weights of e4m3 with scales per 32 x 32: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kFp8Block32)
DG_STREAM_KIND(kFp8Block32)
}  // namespace dg::cuda
