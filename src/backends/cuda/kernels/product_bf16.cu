// Products with weights of bf16 rows: product_tile.cuh, product_stream.cuh.
#include "backends/cuda/kernels/product_kernel.cuh"
#include "backends/cuda/kernels/product_stream.cuh"

namespace dg::cuda {
DG_PRODUCT_KIND(kBf16)
DG_STREAM_KIND(kBf16)
}  // namespace dg::cuda
