// The first use of products in e4m3: whether they give on this GPU what the kernels for bf16 give. Small products on data that e4m3 holds
// exactly, so that dense results agree to the matrix unit's own rounding and experts to that of their hidden values.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "backends/cuda/kernels/fp8_kernels.h"
#include "backends/cuda/products.h"
#include "base/log.h"
#include "quant/formats.h"

namespace dg::cuda {
namespace {

constexpr int64_t kTokens = 160, kTopK = 2, kDim = 256, kInner = 128;
constexpr int kExperts = 4;

// Freed when it goes.
struct DeviceBytes {
  explicit DeviceBytes(size_t bytes) { DG_CUDA(cudaMalloc(&data, bytes)); }
  ~DeviceBytes() { cudaFree(data); }
  DeviceBytes(const DeviceBytes&) = delete;
  template <class T>
  T* put(const std::vector<T>& from) {
    DG_CUDA(cudaMemcpy(data, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    DG_CUDA(cudaDeviceSynchronize());  // from pageable memory it may still be on its way, and the backend's stream does not wait
    return static_cast<T*>(data);
  }
  void* data = nullptr;
};

float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float v =
      exponent ? std::ldexp(1.0f + static_cast<float>(mantissa) / 8, exponent - 7) : std::ldexp(static_cast<float>(mantissa) / 8, -6);
  return code & 0x80 ? -v : v;
}

// A random matrix as the loader prepares it.
std::vector<std::byte> random_weight(int64_t out, int64_t in, std::mt19937& random) {
  std::vector<std::byte> codes(static_cast<size_t>(out * in)), scales(static_cast<size_t>((out + 127) / 128 * ((in + 127) / 128) * 4));
  for (std::byte& c : codes) c = static_cast<std::byte>((random() & 0x80) | 0x28 | (random() & 0x17));  // of like size, no NaN
  for (size_t i = 0; i < scales.size(); i += 4) {
    const float scale = std::ldexp(1.0f, -4 - static_cast<int>(random() % 3));  // codes times scales are exact in bf16
    std::memcpy(&scales[i], &scale, 4);
  }
  std::vector<std::byte> block(static_cast<size_t>(weight_geometry(WeightKind::kFp8Block128, out, in).bytes));
  for (int64_t first = 0; first < out; first += 128) {
    Weight rows{.format = find_format("fp8_block"),
                .data = codes.data() + first * in,
                .scales = scales.data() + first / 128 * ((in + 127) / 128) * 4};
    rows.out = std::min<int64_t>(128, out - first), rows.in = in;
    pack_weight(rows, first, out,
                [&](int64_t offset, const void* from, size_t bytes) { std::memcpy(&block[static_cast<size_t>(offset)], from, bytes); });
  }
  return block;
}

// The largest |a - b| of a row or of a column of (rows, columns) matrices, in norms of b's.
double difference(const std::vector<float>& a, const std::vector<float>& b, int64_t columns) {
  const auto n = static_cast<size_t>(columns), rows = a.size() / n;
  std::vector<double> error(n + rows), size(n + rows);
  for (size_t i = 0; i < a.size(); i++) {
    const double e = double{a[i]} - b[i], s = double{b[i]} * b[i];
    error[i % n] += e * e, size[i % n] += s;
    error[n + i / n] += e * e, size[n + i / n] += s;
  }
  double worst = 0;
  for (size_t i = 0; i < error.size(); i++) {
    if (!std::isfinite(error[i])) return HUGE_VAL;
    worst = std::max(worst, std::sqrt(error[i] / (size[i] + 1e-30)));
  }
  return worst;
}

}  // namespace

bool CudaBackend::Products::fp8_checked() {
  if (fp8.checked) return fp8.kernel || fp8.blas;
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  DG_CUDA(cudaStreamIsCapturing(backend.stream_, &capturing));
  if (capturing != cudaStreamCaptureStatusNone) return false;  // decided by the next op
  fp8.checked = true;
  const char* wanted = std::getenv("DOUGONG_CUDA_FP8");
  if (backend.exact_ || backend.properties_.major != 9 || (wanted && std::strcmp(wanted, "0") == 0)) return false;

  std::mt19937 random(17);
  std::vector<std::unique_ptr<DeviceBytes>> memory;
  const auto put = [&](const auto& values) {
    memory.push_back(std::make_unique<DeviceBytes>(values.size() * sizeof(values[0])));
    return memory.back()->put(values);
  };
  const auto weight = [&](int64_t out, int64_t in) {
    Weight w{.format = find_format("fp8_block"), .data = put(random_weight(out, in, random))};
    w.out = out, w.in = in, w.prepared = true;
    return w;
  };
  std::vector<Expert> experts;
  for (int e = 0; e < kExperts; e++)
    experts.push_back({.gate = weight(kInner, kDim), .up = weight(kInner, kDim), .down = weight(kDim, kInner)});
  // Codes times 2^-8, and in each 128 columns the largest code: the scale is a power of two.
  std::vector<float> x(kTokens * kDim), weights(kTokens * kTopK, 0.5f);
  for (size_t i = 0; i < x.size(); i++) {
    const auto code = static_cast<uint8_t>((random() & 0x80) | 0x60 | (random() & 0x17));
    x[i] = std::ldexp(e4m3_value(i % 128 == i / kDim % 128 ? 0x7e : code), -8);
  }
  // 130, 31, 65 and 94 pairs.
  std::vector<int32_t> ids;
  for (int t = 0; t < kTokens; t++) ids.push_back(t < 130 ? 0 : 1), ids.push_back(t < 65 ? 2 : t < 66 ? 1 : 3);
  const Tensor x_view = Tensor::of(put(x), Dtype::kF32, {kTokens, kDim});
  const std::vector<float> zeros(kTokens * kDim);
  const auto result = [&](int64_t columns, const auto& compute) {
    const Tensor out = Tensor::of(put(zeros), Dtype::kF32, {kTokens, columns});
    const bool done = compute(out);
    std::vector<float> values(static_cast<size_t>(kTokens * columns));
    DG_CUDA(cudaStreamSynchronize(backend.stream_));
    DG_CUDA(cudaMemcpy(values.data(), out.data, values.size() * 4, cudaMemcpyDeviceToHost));
    if (!done) values.assign(values.size(), NAN);
    return values;
  };
  MoeExperts moe{.out = {},
                 .x = x_view,
                 .ids = Tensor::of(put(ids), Dtype::kI32, {kTokens, kTopK}),
                 .weights = Tensor::of(put(weights), Dtype::kF32, {kTokens, kTopK}),
                 .experts = experts,
                 .first = 0,
                 .scratch = nullptr};
  const Weight& w = experts[0].gate;
  const auto bf16_linear = [&](const Tensor& out) { return linear({.out = out, .x = x_view, .weight = w}), true; };
  const auto bf16_experts = [&](const Tensor& out) { return moe.out = out, moe_experts(moe), true; };
  const std::vector<float> dense = result(kInner, bf16_linear),
                           sums = result(kDim, bf16_experts);  // fp8.kernel and fp8.blas are false still

  // The matrix unit adds with about 14 bits: 2^-13 of the largest product for each of 128, in a random walk.
  constexpr double kDenseTolerance = 2e-3, kExpertsTolerance = 0.1;  // hidden values: 0.026 expected
  const double by_blas = difference(result(kInner, [&](const Tensor& out) { return fp8_by_blas(out, x_view, w); }), dense, kInner);
  const double by_kernel =
      difference(result(kInner, [&](const Tensor& out) { return fp8_by_kernel(out, x_view, w), true; }), dense, kInner);
  fp8.kernel = true;
  const double by_experts = difference(result(kDim, [&](const Tensor& out) { return moe.out = out, fp8_experts(moe); }), sums, kDim);
  fp8.kernel = by_kernel <= kDenseTolerance && by_experts <= kExpertsTolerance;
  fp8.blas = by_blas <= kDenseTolerance;
  log_debug(
      fmt::format("cuda: products in FP8 against bf16: cuBLASLt {:.2g}, kernel {:.2g}, experts {:.2g}", by_blas, by_kernel, by_experts));
  if (!fp8.kernel)
    log_warning(fmt::format("cuda: the FP8 kernels differ from those for bf16 on this GPU (dense {:.2g}, experts {:.2g}) and are not used",
                            by_kernel, by_experts));
  if (wanted && std::strcmp(wanted, "kernel") == 0) fp8.blas = false;
  if (wanted && std::strcmp(wanted, "blas") == 0) fp8.kernel = false;
  return fp8.kernel || fp8.blas;
}

}  // namespace dg::cuda
