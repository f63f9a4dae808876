// linear, linear_glu, embed, and the layouts of weights. Three ways to multiply:
//   few rows of x (up to few_rows_limit): product_kernel, which streams the weight in its own layout
//   more: the weight decoded to bf16 (unless it is) and cuBLASLt, bf16 x bf16 -> f32
//   more, FP8 weights with scales of 128 x 128: fp8_product.cpp
//   f32 weights: exact, by f32_product.cu or cuBLASLt in f32
// f16 weights and the GGUF formats without a layout of their own are rounded to bf16 at load.
#include <algorithm>
#include <cstring>

#include "backends/cuda/kernels/decode_rows.h"
#include "backends/cuda/products.h"
#include "base/log.h"

namespace dg::cuda {
namespace {

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }
bool aligned(const void* p, uintptr_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

void check_blas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  int device = 0;
  cudaGetDevice(&device);
  fail_device(device, std::string("cuBLASLt: ") + cublasLtGetStatusString(status) + " in " + what);
}
#define DG_BLAS(call) check_blas((call), #call)

// Beyond these many rows decoding the weight once and cuBLASLt is faster than another pass of 64 rows. 4 bits: a pass reads 0.56 bytes per
// weight, decoding moves 0.56 + 2 + 2; but at 64 rows product_kernel is bound by its mma.
int64_t few_rows_limit(WeightKind kind) { return kind == WeightKind::kBf16 ? 64 : 128; }

int tiles_n(int64_t tokens) { return tokens <= 8 ? 1 : tokens <= 16 ? 2 : tokens <= 32 ? 4 : 8; }

uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  for (uint32_t a = 256; a > 1; a /= 2)
    if (address % a == 0) return a;
  return 1;
}

bool dense_rows(const Tensor& t) { return t.rank == 2 && t.dtype == Dtype::kF32 && (t.stride[1] == 1 || t.cols() == 1); }

}  // namespace

CudaBackend::Products::Products(CudaBackend& owner) : backend(owner) {
  use_device(owner.device_);
  DG_BLAS(cublasLtCreate(&handle));
  DG_CUDA(cudaMalloc(&lt_workspace, kLtWorkspaceBytes));
}

CudaBackend::Products::~Products() {
  for (auto& [key, table] : tables) cudaFree(table.device);
  cudaFree(lt_workspace);
  cublasLtDestroy(handle);
}

CudaBackend::Products& CudaBackend::Products::of(CudaBackend& backend) {
  if (!backend.products_) backend.products_ = std::make_shared<Products>(backend);
  return *backend.products_;
}

bool CudaBackend::Products::in_place(const Weight& w) {
  if (w.prepared) return true;
  const Published format = published(*w.format);
  if (format == Published::kF32) return aligned(w.data, 4);
  return format == Published::kBf16 && w.in % 32 == 0 && aligned(w.data, 16);
}

int64_t CudaBackend::Products::decoded_bytes(const Weight& w) {
  const bool f32 = published(*w.format) == Published::kF32;
  return round_up(weight_geometry(f32 ? WeightKind::kF32 : WeightKind::kBf16, w.out, w.in).bytes, 256);
}

ProductWeight CudaBackend::Products::weight(const Weight& w, void* space, bool as_rows) const {
  const WeightKind kind = weight_kind(published(*w.format));
  if (in_place(w) && (!as_rows || !has_blocks(kind))) return {weight_geometry(kind, w.out, w.in), reinterpret_cast<const uint8_t*>(w.data)};
  const bool f32 = kind == WeightKind::kF32;
  const WeightGeometry g = weight_geometry(f32 ? WeightKind::kF32 : WeightKind::kBf16, w.out, w.in);
  launch_decode_rows(w, {.to = space, .bf16 = !f32, .ld = g.padded_in(), .columns = g.padded_in(), .rows = w.out}, backend.stream_);
  return {g, static_cast<const uint8_t*>(space)};
}

CudaBackend::Products::Rows CudaBackend::Products::bf16_rows(const Tensor& x, const int32_t* columns, int64_t padded) {
  void* to = backend.workspace(Workspace::kActivations, static_cast<size_t>(x.rows() * padded) * 2);
  launch_to_bf16(x.f32(), x.stride[0], x.rows(), x.cols(), columns, to, padded, backend.stream_);
  return {to, padded, false};
}

const ProductChoice& CudaBackend::Products::choice(const ProductProblem& problem) {
  auto known = choices.find(problem);
  if (known == choices.end()) {
    known = choices.emplace(problem, choose_product(problem, backend.multiprocessors())).first;
    log_debug(to_string(problem, known->second));
  }
  return known->second;
}

void CudaBackend::Products::few_rows(const Tensor& out, const Rows& x, const ProductWeight* weights, int count, const float* bias,
                                     bool early) {
  const WeightGeometry& g = weights[0].geometry;
  for (int64_t first = 0; first < out.rows(); first += kProductMostTokens) {
    const int64_t tokens = std::min<int64_t>(kProductMostTokens, out.rows() - first);
    ProductProblem problem{.kind = g.kind, .glu = count == 2, .tiles_n = tiles_n(tokens), .out = g.out, .in = g.in};
    const ProductChoice& choice = this->choice(problem);
    ProductArgs args{};
    for (int m = 0; m < count; m++) args.data[m] = weights[m].data, args.aux[m] = weights[m].aux();
    args.tile_bytes = g.tile_bytes;
    args.out = static_cast<int32_t>(g.out), args.chunks = static_cast<int32_t>(g.chunks), args.tiles = static_cast<int32_t>(g.tiles);
    args.x = static_cast<const std::byte*>(x.data) + first * x.ld * (x.f32 ? 4 : 2);
    args.ldx = static_cast<uint32_t>(x.ld);
    args.tokens = static_cast<int32_t>(tokens);
    args.to = out.f32(first), args.ld_to = out.stride[0];
    args.bias = bias;
    args.row_tiles = choice.row_tiles;
    args.early = early;
    if (choice.splits > 1)
      args.partial = static_cast<float*>(backend.workspace(
          Workspace::kProduct, static_cast<size_t>(choice.splits * count * tokens * g.tiles * kTileRows) * sizeof(float)));
    launch_product({.kind = g.kind, .glu = count == 2, .f32_x = x.f32, .tiles_n = problem.tiles_n, .splits = choice.splits}, args,
                   backend.stream_);
    if (choice.splits > 1) launch_finish_product(args, count == 2, choice.splits, backend.stream_);
  }
}

bool CudaBackend::Products::many_rows(const Tensor& out, const Rows& x, const ProductWeight& w) {
  const WeightGeometry& g = w.geometry;
  const bool f32 = g.kind == WeightKind::kF32;
  const cudaDataType_t type = f32 ? CUDA_R_32F : CUDA_R_16BF;
  // As column-major matrices: out (g.out, rows) = weight (k, g.out)^T x (k, rows).
  const int64_t m = g.out, n = out.rows(), k = g.padded_in();
  const int64_t lda = k, ldb = x.ld, ldd = std::max(out.stride[0], m);
  const uint32_t align_a = alignment_of(w.data), align_b = alignment_of(x.data), align_d = alignment_of(out.data);
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;
  DG_BLAS(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  DG_BLAS(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)));
  DG_BLAS(cublasLtMatrixLayoutCreate(&a, type, static_cast<uint64_t>(k), static_cast<uint64_t>(m), lda));
  DG_BLAS(cublasLtMatrixLayoutCreate(&b, type, static_cast<uint64_t>(k), static_cast<uint64_t>(n), ldb));
  DG_BLAS(cublasLtMatrixLayoutCreate(&d, CUDA_R_32F, static_cast<uint64_t>(m), static_cast<uint64_t>(n), ldd));

  const LtKey key{m, n, k, lda, ldb, ldd, static_cast<int>(align_a), static_cast<int>(align_b), static_cast<int>(align_d), f32};
  auto known = algorithms.find(key);
  if (known == algorithms.end()) {
    cublasLtMatmulPreference_t preference = nullptr;
    DG_BLAS(cublasLtMatmulPreferenceCreate(&preference));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      DG_BLAS(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kLtWorkspaceBytes});
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_a);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_b);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_d);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_d);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, product, a, b, d, d, preference, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    known = algorithms.emplace(key, Algorithm{status == CUBLAS_STATUS_SUCCESS && count > 0, found.algo}).first;
  }
  if (known->second.found) {
    const float one = 1, zero = 0;
    DG_BLAS(cublasLtMatmul(handle, product, &one, w.data, a, x.data, b, &zero, out.data, d, out.data, d, &known->second.algorithm,
                           lt_workspace, kLtWorkspaceBytes, backend.stream_));
  }
  cublasLtMatrixLayoutDestroy(d);
  cublasLtMatrixLayoutDestroy(b);
  cublasLtMatrixLayoutDestroy(a);
  cublasLtMatmulDescDestroy(product);
  return known->second.found;
}

void CudaBackend::Products::f32_linear(const Tensor& out, const Tensor& x, const Weight& w, const float* bias) {
  const ProductWeight from =
      weight(w, in_place(w) ? nullptr : backend.workspace(Workspace::kWeights, static_cast<size_t>(decoded_bytes(w))), true);
  constexpr int64_t kFewRows = 16;
  if (x.rows() > kFewRows) {
    Rows rows{x.data, x.stride[0], true};
    if (w.columns) {
      auto* to = static_cast<float*>(backend.workspace(Workspace::kActivations, static_cast<size_t>(x.rows() * w.in) * sizeof(float)));
      launch_gather_columns(x.f32(), x.stride[0], x.rows(), w.in, w.columns, to, backend.stream_);
      rows = {to, w.in, true};
    }
    if (rows.ld >= w.in && many_rows(out, rows, from)) {
      if (bias) launch_add_bias(out.f32(), out.stride[0], bias, out.rows(), out.cols(), backend.stream_);
      return;
    }
  }
  launch_f32_product(reinterpret_cast<const float*>(from.data), w.out, w.in, w.columns, x.f32(), x.stride[0], x.rows(), out.f32(),
                     out.stride[0], bias, in_place(w), backend.stream_);
}

void CudaBackend::Products::linear(const Linear& op) {
  const Weight& w = op.weight;
  CHECK(op.x.cols() == w.in && op.out.cols() == w.out && op.out.rows() == op.x.rows());
  CHECK(dense_rows(op.x) && dense_rows(op.out));
  CHECK(!op.bias.valid() || op.bias.cols() == w.out);
  const int64_t tokens = op.x.rows();
  const float* bias = op.bias.valid() ? op.bias.f32() : nullptr;
  if (tokens == 0 || w.out == 0) return;
  if (published(*w.format) == Published::kF32) return f32_linear(op.out, op.x, w, bias);
  if (fp8_takes(w, tokens) && fp8_linear(op.out, op.x, w)) {
    if (bias) launch_add_bias(op.out.f32(), op.out.stride[0], bias, tokens, w.out, backend.stream_);
    return;
  }

  const WeightKind kind = in_place(w) ? weight_kind(published(*w.format)) : WeightKind::kBf16;
  const bool few = tokens <= few_rows_limit(kind);
  const bool decoded = !in_place(w) || (!few && has_blocks(kind));
  void* space = decoded ? backend.workspace(Workspace::kWeights, static_cast<size_t>(decoded_bytes(w))) : nullptr;
  const ProductWeight from = weight(w, space, !few);
  // The same address arithmetic as in the kernel: whole chunks, 16-byte rows.
  const int64_t padded = from.geometry.padded_in();
  if (few && tokens <= 4 && !w.columns && padded == w.in && op.x.stride[0] % 4 == 0 && aligned(op.x.data, 16))
    return few_rows(op.out, {op.x.data, op.x.stride[0], true}, &from, 1, bias, !decoded);
  const Rows x = bf16_rows(op.x, w.columns, padded);
  if (few || !many_rows(op.out, x, from)) return few_rows(op.out, x, &from, 1, bias, !decoded);
  if (bias) launch_add_bias(op.out.f32(), op.out.stride[0], bias, tokens, w.out, backend.stream_);
}

void CudaBackend::Products::linear_glu(const LinearGlu& op) {
  CHECK(op.x.cols() == op.up.in && op.out.cols() == op.up.out && op.out.rows() == op.x.rows());
  CHECK(op.gate.in == op.up.in && op.gate.out == op.up.out);
  CHECK(dense_rows(op.x) && dense_rows(op.out));
  const int64_t tokens = op.x.rows();
  if (tokens == 0 || op.up.out == 0 || fp8_linear_glu(op)) return;
  const auto kind_of = [](const Weight& w) { return in_place(w) ? weight_kind(published(*w.format)) : WeightKind::kBf16; };
  const bool f32 = published(*op.gate.format) == Published::kF32 || published(*op.up.format) == Published::kF32;
  const WeightKind kind = kind_of(op.up);
  if (!f32 && !op.gate.columns && !op.up.columns && kind_of(op.gate) == kind && tokens <= few_rows_limit(kind)) {
    const int64_t gate_bytes = in_place(op.gate) ? 0 : decoded_bytes(op.gate), up_bytes = in_place(op.up) ? 0 : decoded_bytes(op.up);
    auto* space = gate_bytes + up_bytes > 0
                      ? static_cast<std::byte*>(backend.workspace(Workspace::kWeights, static_cast<size_t>(gate_bytes + up_bytes)))
                      : nullptr;
    const ProductWeight weights[2] = {weight(op.gate, space), weight(op.up, space + gate_bytes)};
    const bool early = !space;
    const int64_t padded = weights[0].geometry.padded_in();
    if (tokens <= 4 && padded == op.up.in && op.x.stride[0] % 4 == 0 && aligned(op.x.data, 16))
      return few_rows(op.out, {op.x.data, op.x.stride[0], true}, weights, 2, nullptr, early);
    return few_rows(op.out, bf16_rows(op.x, nullptr, padded), weights, 2, nullptr, early);
  }
  Arena::Scope scope(*op.scratch);
  Tensor gate = op.scratch->alloc({tokens, op.gate.out});
  linear({.out = gate, .x = op.x, .weight = op.gate});
  linear({.out = op.out, .x = op.x, .weight = op.up});
  launch_silu_mul(op.out.f32(), op.out.stride[0], gate.f32(), gate.stride[0], op.out.f32(), op.out.stride[0], tokens, op.out.cols(),
                  backend.stream_);
}

bool CudaBackend::supports(const Format& format) const { return published(format) != Published::kCount; }

int64_t CudaBackend::prepared_bytes(const Format& format, int64_t out, int64_t in) const {
  const WeightKind kind = weight_kind(published(format));
  return kind == WeightKind::kF32 ? 0 : weight_geometry(kind, out, in).bytes;
}

void CudaBackend::prepare(const Weight& rows, int64_t first, int64_t out, std::byte* to) const {
  pack_weight(rows, first, out, [&](int64_t offset, const void* from, size_t bytes) { write(to + offset, from, bytes); });
}

void CudaBackend::linear(const Linear& op) { Products::of(*this).linear(op); }

void CudaBackend::linear_glu(const LinearGlu& op) { Products::of(*this).linear_glu(op); }

void CudaBackend::embed(const Embed& op) {
  CHECK(op.out.cols() == op.table.in && op.out.rows() == op.ids.rows() && dense_rows(op.out));
  CHECK(op.ids.rank == 1 && (op.ids.stride[0] == 1 || op.ids.rows() == 1));
  if (op.out.rows() == 0) return;
  launch_decode_rows(
      op.table,
      {.to = op.out.data, .bf16 = false, .ld = op.out.stride[0], .columns = op.table.in, .rows = op.out.rows(), .ids = op.ids.i32()},
      stream_);
}

}  // namespace dg::cuda
