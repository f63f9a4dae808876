// What this GPU can do: sustained reads and bf16 products, measured as benchmarks are (events, medians, random data larger than L2).
#include <cublasLt.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/measure.h"

namespace dg::cuda {
namespace {

double median_seconds(cudaStream_t stream, int repeats, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  DG_CUDA(cudaEventCreate(&begin));
  DG_CUDA(cudaEventCreate(&end));
  std::vector<float> ms;
  for (int i = 0; i < repeats + 2; i++) {
    DG_CUDA(cudaEventRecord(begin, stream));
    work();
    DG_CUDA(cudaEventRecord(end, stream));
    DG_CUDA(cudaEventSynchronize(end));
    float t = 0;
    DG_CUDA(cudaEventElapsedTime(&t, begin, end));
    if (i >= 2) ms.push_back(t);
  }
  DG_CUDA(cudaEventDestroy(begin));
  DG_CUDA(cudaEventDestroy(end));
  std::nth_element(ms.begin(), ms.begin() + repeats / 2, ms.end());
  return static_cast<double>(ms[static_cast<size_t>(repeats / 2)]) * 1e-3;
}

}  // namespace

Backend::Rates CudaBackend::measure() {
  constexpr size_t kBytes = size_t{4} << 30, kSide = 8192;
  Rates rates;
  void* data = nullptr;
  if (mapped_ || cudaMalloc(&data, kBytes) != cudaSuccess) {
    cudaGetLastError();
    return rates;
  }
  launch_random_bf16(data, kBytes / 2, 1, stream_);
  auto* sink = static_cast<uint32_t*>(workspace(Workspace::kProduct, 1 << 20));
  rates.read_bytes_per_s = kBytes / median_seconds(stream_, 9, [&] { launch_read(data, kBytes, sink, stream_); });

  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t layout = nullptr, out = nullptr;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const float one = 1, zero = 0;
  auto* at = static_cast<char*>(data);
  bool works =
      cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&layout, CUDA_R_16BF, kSide, kSide, kSide) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&out, CUDA_R_16BF, kSide, kSide, kSide) == CUBLAS_STATUS_SUCCESS;
  if (works) {
    void* c = at + (size_t{1} << 30);
    const double seconds = median_seconds(stream_, 9, [&] {
      works = works && cublasLtMatmul(handle, product, &one, at, layout, at + (size_t{512} << 20), layout, &zero, c, out, c, out, nullptr,
                                      nullptr, 0, stream_) == CUBLAS_STATUS_SUCCESS;
    });
    if (works) rates.bf16_flops_per_s = 2.0 * kSide * kSide * kSide / seconds;
  }
  if (out) cublasLtMatrixLayoutDestroy(out);
  if (layout) cublasLtMatrixLayoutDestroy(layout);
  if (product) cublasLtMatmulDescDestroy(product);
  if (handle) cublasLtDestroy(handle);
  DG_CUDA(cudaFree(data));
  return rates;
}

}  // namespace dg::cuda
