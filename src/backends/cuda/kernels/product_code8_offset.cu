// Products with weights of int8 with scales and offsets per 32 columns: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kCode8Offset)
DG_STREAM_KIND(kCode8Offset)
}  // namespace dg::cuda
