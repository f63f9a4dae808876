// What this GPU can do: sustained reads and bf16 products, measured as benchmarks are (events, medians, random data larger than L2).
#include <cublasLt.h>

#include <functional>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/measure.h"

namespace dg::cuda {
namespace {

std::vector<double> seconds_of(cudaStream_t stream, int repeats, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  DG_CUDA(cudaEventCreate(&begin));
  DG_CUDA(cudaEventCreate(&end));
  std::vector<double> seconds;
  for (int i = 0; i < repeats + 2; i++) {
    DG_CUDA(cudaEventRecord(begin, stream));
    work();
    DG_CUDA(cudaEventRecord(end, stream));
    DG_CUDA(cudaEventSynchronize(end));
    float t = 0;
    DG_CUDA(cudaEventElapsedTime(&t, begin, end));
    if (i >= 2) seconds.push_back(t * 1e-3);
  }
  DG_CUDA(cudaEventDestroy(begin));
  DG_CUDA(cudaEventDestroy(end));
  return seconds;
}

Measured rate_of(double amount, std::vector<double> seconds) {
  for (double& s : seconds) s = s > 0 ? amount / s : 0;
  return measured(std::move(seconds));
}

}  // namespace

MachineLimits CudaBackend::measure() {
  constexpr size_t kBytes = size_t{4} << 30, kSide = 8192;
  MachineLimits limits{.cpu = properties_.name, .topology = description(), .threads = multiprocessors()};
  void* data = nullptr;
  if (mapped_ || cudaMalloc(&data, kBytes) != cudaSuccess) {
    cudaGetLastError();
    return limits;
  }
  launch_random_bf16(data, kBytes / 2, 1, stream_);
  auto* sink = static_cast<uint32_t*>(workspace(Workspace::kProduct, 1 << 20));
  limits.read.push_back({multiprocessors(), rate_of(kBytes, seconds_of(stream_, 9, [&] { launch_read(data, kBytes, sink, stream_); }))});

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
    const std::vector<double> seconds = seconds_of(stream_, 9, [&] {
      works = works && cublasLtMatmul(handle, product, &one, at, layout, at + (size_t{512} << 20), layout, &zero, c, out, c, out, nullptr,
                                      nullptr, 0, stream_) == CUBLAS_STATUS_SUCCESS;
    });
    const Measured peak = rate_of(2.0 * kSide * kSide * kSide, seconds);
    // All codes are multiplied as bf16.
    for (MathType type : {MathType::kBf16, MathType::kInt8})
      if (works) limits.peaks.push_back({.isa = "cuda", .instruction = "cublasLtMatmul, bf16", .type = type, .one = {}, .all = peak});
  }
  if (out) cublasLtMatrixLayoutDestroy(out);
  if (layout) cublasLtMatrixLayoutDestroy(layout);
  if (product) cublasLtMatmulDescDestroy(product);
  if (handle) cublasLtDestroy(handle);
  DG_CUDA(cudaFree(data));
  return limits;
}

}  // namespace dg::cuda
