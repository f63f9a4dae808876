// Products with FP8 weights (e4m3, f32 scales of 128 x 128) and many rows: x is quantised to e4m3 by 128 columns, as DeepSeek-V3's own
// inference does, and multiplied in e4m3 at twice bf16's rate. Dense products go to cuBLASLt's block-scaled FP8 or to the kernel of
// grouped_wgmma.cu, experts to the kernel. Hopper only; elsewhere, for few rows and for `exact` backends x is rounded to bf16 as in
// product.cpp.
//
// What it costs: a code has 3 bits of mantissa, so an element is off by at most 2^-4 of itself, 0.026 root mean square; a sum of n such
// products with independent errors by 0.026 |w| |x| / sqrt(n). The op table allows eight of these deviations.
//
// At its first use each way is compared with products in bf16 (fp8_check.cpp); one that differs is not used.
// DOUGONG_CUDA_FP8: 0 off, kernel or blas for dense products.
#include <algorithm>
#include <vector>

#include "backends/cuda/kernels/fp8_kernels.h"
#include "backends/cuda/products.h"

namespace dg::cuda {
namespace {

constexpr int64_t kLeastRows = 128;                       // above: fewer are bound by the weight's bytes
constexpr int64_t kLeastPairs = 8;                        // of an expert, on average
constexpr int64_t kMostChunkBytes = int64_t{1536} << 20;  // of the intermediate results of a chunk of tokens

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

bool quantisable(const Weight& w) {
  return w.prepared && !w.columns && w.in % kFp8TileColumns == 0 && published(*w.format) == Published::kFp8Block;
}

// Pieces of one workspace: sizes first (memory null), then addresses.
struct Pieces {
  std::byte* memory = nullptr;
  int64_t used = 0;

  template <class T>
  T* take(int64_t n) {
    auto* piece = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += round_up(n * static_cast<int64_t>(sizeof(T)), 1024);
    return piece;
  }
  Fp8Rows take_rows(int64_t rows, int64_t columns) {
    auto* codes = take<uint8_t>(fp8_code_bytes(rows, columns));
    return {codes, take<float>(fp8_scale_count(rows, columns))};
  }
};

Fp8ProductArgs dense_args(const WeightGeometry& g, const uint8_t* first, const uint8_t* second, const Fp8Rows& x, const Tensor& out) {
  Fp8ProductArgs a{};
  a.data[0] = first, a.data[1] = second;
  a.aux_offset = g.aux_offset, a.tile_bytes = g.tile_bytes;
  a.out = static_cast<int32_t>(g.out), a.columns = static_cast<int32_t>(g.in), a.rows = static_cast<int32_t>(out.rows());
  a.x = x, a.to = out.f32(), a.ld_to = out.stride[0];
  return a;
}

const uint8_t* bytes_of(const Weight& w) { return reinterpret_cast<const uint8_t*>(w.data); }

}  // namespace

bool CudaBackend::Products::fp8_takes(const Weight& w, int64_t rows) { return rows > kLeastRows && quantisable(w) && fp8_checked(); }

Fp8Rows CudaBackend::Products::fp8_rows(const Tensor& x) {
  Pieces sizes;
  sizes.take_rows(x.rows(), x.cols());
  Pieces pieces{static_cast<std::byte*>(backend.workspace(Workspace::kActivations, static_cast<size_t>(sizes.used)))};
  const Fp8Rows rows = pieces.take_rows(x.rows(), x.cols());
  launch_fp8_quantise(
      {.to = rows, .x = x.f32(), .ldx = x.stride[0], .rows = x.rows(), .columns = x.cols(), .place_of = nullptr, .copies = 1},
      backend.stream_);
  return rows;
}

void CudaBackend::Products::fp8_by_kernel(const Tensor& out, const Tensor& x, const Weight& w) {
  const WeightGeometry g = weight_geometry(WeightKind::kFp8Block128, w.out, w.in);
  launch_fp8_product(Fp8Output::kRows, dense_args(g, bytes_of(w), nullptr, fp8_rows(x), out), backend.multiprocessors(), backend.stream_);
}

// out (column-major: w.out, rows) = weight (in, w.out)^T x (in, rows). The scales' layouts: cuBLAS documentation, "128-element 1D and
// 128x128 2D block scaling": of x rows fastest, of the weight columns fastest with a distance that is a multiple of 4; sizes multiples
// of 4.
bool CudaBackend::Products::fp8_by_blas(const Tensor& out, const Tensor& x, const Weight& w) {
#if CUBLAS_VERSION >= 120900
  const int64_t m = w.out, n = x.rows(), k = w.in, blocks = k / kFp8TileColumns, ld_squares = round_up(blocks, 4), ldd = out.stride[0];
  if (m % 4 != 0 || n % 4 != 0 || ldd < m || ldd % 4 != 0 || reinterpret_cast<uintptr_t>(out.data) % 16 != 0) return false;
  const WeightGeometry g = weight_geometry(WeightKind::kFp8Block128, m, k);
  Pieces weight_sizes, x_sizes;
  weight_sizes.take<uint8_t>(m * k), weight_sizes.take<float>((m + 127) / 128 * ld_squares);
  x_sizes.take<uint8_t>(n * k), x_sizes.take<float>(n * blocks);

  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  bool works =
      cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&a, CUDA_R_8F_E4M3, static_cast<uint64_t>(k), static_cast<uint64_t>(m), k) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&b, CUDA_R_8F_E4M3, static_cast<uint64_t>(k), static_cast<uint64_t>(n), k) == CUBLAS_STATUS_SUCCESS &&
      cublasLtMatrixLayoutCreate(&d, CUDA_R_32F, static_cast<uint64_t>(m), static_cast<uint64_t>(n), ldd) == CUBLAS_STATUS_SUCCESS;
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    works = works && cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(value)) == CUBLAS_STATUS_SUCCESS;
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
  set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F});
  set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, int32_t{CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F});
  Pieces weight_pieces{static_cast<std::byte*>(backend.workspace(Workspace::kWeights, static_cast<size_t>(weight_sizes.used)))};
  Pieces x_pieces{static_cast<std::byte*>(backend.workspace(Workspace::kActivations, static_cast<size_t>(x_sizes.used)))};
  auto* w_codes = weight_pieces.take<uint8_t>(m * k);
  auto* w_scales = weight_pieces.take<float>((m + 127) / 128 * ld_squares);
  auto* x_codes = x_pieces.take<uint8_t>(n * k);
  auto* x_scales = x_pieces.take<float>(n * blocks);
  set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, static_cast<const void*>(w_scales));
  set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, static_cast<const void*>(x_scales));
  const LtKey key{m, n, k, k, k, ldd, 256, 256, 16, 0};
  auto known = fp8_algorithms.find(key);
  if (works && known == fp8_algorithms.end()) {
    cublasLtMatmulPreference_t preference = nullptr;
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const size_t most = kLtWorkspaceBytes;
    const uint32_t align_d = 16;
    const bool asked = cublasLtMatmulPreferenceCreate(&preference) == CUBLAS_STATUS_SUCCESS &&
                       cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof(most)) ==
                           CUBLAS_STATUS_SUCCESS &&
                       cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_d,
                                                            sizeof(align_d)) == CUBLAS_STATUS_SUCCESS &&
                       cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_d,
                                                            sizeof(align_d)) == CUBLAS_STATUS_SUCCESS &&
                       cublasLtMatmulAlgoGetHeuristic(handle, product, a, b, d, d, preference, 1, &found, &count) == CUBLAS_STATUS_SUCCESS;
    if (preference) cublasLtMatmulPreferenceDestroy(preference);
    known = fp8_algorithms.emplace(key, Algorithm{asked && count > 0, found.algo}).first;
  }
  works = works && known->second.found;
  if (works) {
    launch_fp8_weight_rows(w_codes, w_scales, ld_squares, bytes_of(w), g.aux_offset, g.tile_bytes, m, k, backend.stream_);
    launch_fp8_quantise_rows(x_codes, x_scales, n, x.f32(), x.stride[0], n, k, backend.stream_);
    const float one = 1, zero = 0;
    works = works && cublasLtMatmul(handle, product, &one, w_codes, a, x_codes, b, &zero, out.data, d, out.data, d,
                                    &known->second.algorithm, lt_workspace, kLtWorkspaceBytes, backend.stream_) == CUBLAS_STATUS_SUCCESS;
  }
  if (d) cublasLtMatrixLayoutDestroy(d);
  if (b) cublasLtMatrixLayoutDestroy(b);
  if (a) cublasLtMatrixLayoutDestroy(a);
  if (product) cublasLtMatmulDescDestroy(product);
  return works;
#else
  return false;
#endif
}

bool CudaBackend::Products::fp8_linear(const Tensor& out, const Tensor& x, const Weight& w) {
  if (fp8.blas && fp8_by_blas(out, x, w)) return true;
  if (fp8.kernel) fp8_by_kernel(out, x, w);
  return fp8.kernel;
}

bool CudaBackend::Products::fp8_linear_glu(const LinearGlu& op) {
  if (!fp8_takes(op.gate, op.x.rows()) || !quantisable(op.up) || !fp8.kernel) return false;
  const WeightGeometry g = weight_geometry(WeightKind::kFp8Block128, op.up.out, op.up.in);
  launch_fp8_product(Fp8Output::kGluRows, dense_args(g, bytes_of(op.gate), bytes_of(op.up), fp8_rows(op.x), op.out),
                     backend.multiprocessors(), backend.stream_);
  return true;
}

bool CudaBackend::Products::fp8_experts(const MoeExperts& op) {
  const int64_t dim = op.x.cols(), inner = op.experts[0].gate.out, top_k = op.ids.cols(), all = op.x.rows();
  const auto experts = static_cast<int64_t>(op.experts.size());
  if (all <= kLeastRows || all * top_k < kLeastPairs * experts || dim % kFp8TileColumns != 0 || inner % kFp8TileColumns != 0) return false;
  for (const Expert& e : op.experts)
    if (!quantisable(e.gate) || !quantisable(e.up) || !quantisable(e.down)) return false;
  if (!fp8_checked() || !fp8.kernel) return false;

  std::vector<ExpertMatrices> host;
  host.reserve(op.experts.size());
  for (const Expert& e : op.experts) host.push_back({{bytes_of(e.gate), bytes_of(e.up), bytes_of(e.down)}, {}});
  const ExpertMatrices* table = expert_table(op.experts.data(), host);
  const WeightGeometry up = weight_geometry(WeightKind::kFp8Block128, inner, dim),
                       down = weight_geometry(WeightKind::kFp8Block128, dim, inner);

  // Chunks of about one size. Rows of x are not needed any more when the results y come: they share their bytes.
  const int64_t most = std::max<int64_t>(kLeastRows, kMostChunkBytes / (top_k * (2 * dim + inner)));
  const int64_t chunks = (all + most - 1) / most, chunk = (all + chunks - 1) / chunks;
  for (int64_t first = 0; first < all; first += chunk) {
    const int64_t tokens = std::min(chunk, all - first), pairs = tokens * top_k, rows = fp8_most_rows(pairs, experts);
    struct {
      int32_t *place_of, *pair_at, *item_count;
      Fp8Item* items;
      Fp8Rows x, hidden;
      void* y;
    } p{};
    const auto carve = [&](Pieces c) {
      p.place_of = c.take<int32_t>(pairs), p.pair_at = c.take<int32_t>(rows), p.item_count = c.take<int32_t>(1);
      p.items = c.take<Fp8Item>(fp8_most_items(pairs, experts));
      p.hidden = c.take_rows(rows, inner);
      Pieces shared = c;
      p.x = shared.take_rows(rows, dim);
      p.y = c.take<uint16_t>(pairs * dim);
      return std::max(shared.used, c.used);
    };
    carve({static_cast<std::byte*>(backend.workspace(Workspace::kExperts, static_cast<size_t>(carve({}))))});
    const cudaStream_t stream = backend.stream_;
    launch_fp8_sort({.ids = op.ids.ptr<int32_t>(first),
                     .ld_ids = op.ids.stride[0],
                     .tokens = static_cast<int32_t>(tokens),
                     .top_k = static_cast<int32_t>(top_k),
                     .first = op.first,
                     .experts = static_cast<int32_t>(experts),
                     .place_of = p.place_of,
                     .pair_at = p.pair_at,
                     .items = p.items,
                     .item_count = p.item_count},
                    stream);
    launch_fp8_quantise({.to = p.x,
                         .x = op.x.f32(first),
                         .ldx = op.x.stride[0],
                         .rows = tokens,
                         .columns = dim,
                         .place_of = p.place_of,
                         .copies = static_cast<int32_t>(top_k)},
                        stream);
    Fp8ProductArgs a{.experts = table, .items = p.items, .item_count = p.item_count, .x = p.x, .pair_at = p.pair_at};
    a.aux_offset = up.aux_offset, a.tile_bytes = up.tile_bytes;
    a.out = static_cast<int32_t>(inner), a.columns = static_cast<int32_t>(dim);
    a.to = p.hidden.codes, a.to_scales = p.hidden.scales;
    launch_fp8_product(Fp8Output::kGlu, a, backend.multiprocessors(), stream);
    a.matrix = 2;
    a.aux_offset = down.aux_offset, a.tile_bytes = down.tile_bytes;
    a.out = static_cast<int32_t>(dim), a.columns = static_cast<int32_t>(inner);
    a.x = p.hidden, a.to = p.y, a.ld_to = dim;
    launch_fp8_product(Fp8Output::kPairs, a, backend.multiprocessors(), stream);
    launch_fp8_combine({.out = op.out.f32(first),
                        .ld_out = op.out.stride[0],
                        .weights = op.weights.f32(first),
                        .ld_weights = op.weights.stride[0],
                        .place_of = p.place_of,
                        .top_k = static_cast<int32_t>(top_k),
                        .y = p.y,
                        .tokens = tokens,
                        .dim = dim},
                       stream);
  }
  return true;
}

}  // namespace dg::cuda
