// What this GPU can do: sustained reads and products in bf16 and FP8, measured as benchmarks are (events, medians, random data larger than
// L2).
#include <cublasLt.h>

#include <functional>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/fp8_kernels.h"
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

constexpr size_t kSide = 8192;

// Seconds of c (bf16) = a b^T, matrices of kSide x kSide of `type`; none when cuBLASLt has no such product.
std::vector<double> square_product_seconds(cudaDataType_t type, const void* a, const void* b, void* c, cudaStream_t stream) {
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t in = nullptr, out = nullptr;
  const cublasOperation_t transposed = CUBLAS_OP_T;
  const float one = 1, zero = 0;
  bool works =
      cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&in, type, kSide, kSide, kSide) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&out, CUDA_R_16BF, kSide, kSide, kSide) == CUBLAS_STATUS_SUCCESS;
  std::vector<double> seconds;
  if (works) {
    seconds = seconds_of(stream, 9, [&] {
      works = works && cublasLtMatmul(handle, product, &one, a, in, b, in, &zero, c, out, c, out, nullptr, nullptr, 0, stream) ==
                           CUBLAS_STATUS_SUCCESS;
    });
    if (!works) seconds.clear();
  }
  if (out) cublasLtMatrixLayoutDestroy(out);
  if (in) cublasLtMatrixLayoutDestroy(in);
  if (product) cublasLtMatmulDescDestroy(product);
  if (handle) cublasLtDestroy(handle);
  return seconds;
}

}  // namespace

MachineLimits CudaBackend::measure() {
  constexpr size_t kBytes = size_t{4} << 30;
  MachineLimits limits{.cpu = properties_.name, .topology = description(), .threads = multiprocessors()};
  void* data = nullptr;
  if (mapped_ || cudaMalloc(&data, kBytes) != cudaSuccess) {
    cudaGetLastError();
    return limits;
  }
  launch_random_bf16(data, kBytes / 2, 1, stream_);
  auto* sink = static_cast<uint32_t*>(workspace(Workspace::kProduct, 1 << 20));
  limits.read.push_back({multiprocessors(), rate_of(kBytes, seconds_of(stream_, 9, [&] { launch_read(data, kBytes, sink, stream_); }))});

  auto* at = static_cast<char*>(data);
  const auto peak = [&](cudaDataType_t type, const void* a, const void* b) {
    return rate_of(2.0 * kSide * kSide * kSide, square_product_seconds(type, a, b, at + (size_t{1} << 30), stream_));
  };
  // Codes are multiplied as bf16.
  if (const Measured bf16 = peak(CUDA_R_16BF, at, at + (size_t{512} << 20)); bf16.median > 0)
    for (MathType type : {MathType::kBf16, MathType::kInt8})
      limits.peaks.push_back({.isa = "cuda", .instruction = "cublasLtMatmul, bf16", .type = type, .one = {}, .all = bf16});
  if (properties_.major * 10 + properties_.minor >= 89) {
    // Codes of random numbers, not random codes: what a multiplication costs in power depends on its operands.
    auto* codes = reinterpret_cast<uint8_t*>(at + (size_t{2} << 30));
    auto* scales = reinterpret_cast<float*>(at + (size_t{3} << 30));
    launch_fp8_quantise_rows(codes, scales, 2 * kSide, reinterpret_cast<const float*>(at), kSide, 2 * kSide, kSide, stream_);
    if (const Measured fp8 = peak(CUDA_R_8F_E4M3, codes, codes + kSide * kSide); fp8.median > 0)
      limits.peaks.push_back({.isa = "cuda", .instruction = "cublasLtMatmul, e4m3", .type = MathType::kFp8, .one = {}, .all = fp8});
  }
  DG_CUDA(cudaFree(data));
  return limits;
}

}  // namespace dg::cuda
