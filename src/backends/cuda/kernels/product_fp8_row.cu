// Products with weights of e4m3 with scales per row: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kFp8Row)
DG_STREAM_KIND(kFp8Row)
}  // namespace dg::cuda
