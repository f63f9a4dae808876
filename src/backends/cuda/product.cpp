// linear, linear_glu, embed, and the layouts of weights. Three ways to multiply:
//   few rows of x (up to few_rows_limit): product_kernel, which streams the weight in its own layout
//   more: the weight decoded to bf16 (unless it is) and cuBLASLt, bf16 x bf16 -> f32
//   more, FP8 weights with scales of 128 x 128: fp8_product.cpp
//   f32 weights: exact, by f32_product.cu or cuBLASLt in f32
// f16 weights and the GGUF formats without a layout of their own are rounded to bf16 at load.
#include <algorithm>
#include <cstdlib>
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

WeightKind CudaBackend::Products::product_kind(const Weight& w) {
  return in_place(w) ? weight_kind(published(*w.format)) : WeightKind::kBf16;
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

bool CudaBackend::Products::takes_f32(const Tensor& x, const WeightGeometry& g) {
  // The same address arithmetic as in the kernel: whole chunks, 16-byte rows.
  return x.rows() <= 4 && g.padded_in() == x.cols() && x.stride[0] % 4 == 0 && aligned(x.data, 16);
}

bool CudaBackend::Products::need_no_workspace(const Tensor& x, std::span<const Weight* const> weights) {
  return std::all_of(weights.begin(), weights.end(),
                     [&](const Weight* w) {
                       const Published format = published(*w->format);
                       return format != Published::kF32 && !w->columns && in_place(*w) &&
                              weight_geometry(weight_kind(format), w->out, w->in).padded_in() == w->in;
                     }) &&
         x.rows() <= 4 && x.stride[0] % 4 == 0 && aligned(x.data, 16) && !std::getenv("DOUGONG_CUDA_PRODUCT");
}

ProductProblem CudaBackend::Products::problem_of(int64_t tokens, const FewRows& what) const {
  const WeightGeometry& g = what.parts[0].weight.geometry;
  ProductProblem problem{.kind = g.kind, .glu = what.glu, .tiles_n = tiles_n(tokens), .out = 0, .in = g.in};
  for (int i = 0; i < (what.glu ? 1 : what.count); i++) problem.out += what.parts[i].weight.geometry.tiles * kTileRows;
  return problem;
}

void CudaBackend::Products::few_rows(const Rows& x, int64_t rows, const FewRows& what) {
  const WeightGeometry& g = what.parts[0].weight.geometry;
  for (int64_t first = 0; first < rows; first += kProductMostTokens) {
    const int64_t tokens = std::min<int64_t>(kProductMostTokens, rows - first);
    const ProductProblem problem = problem_of(tokens, what);
    const ProductChoice& choice = this->choice(problem);
    ProductArgs args{};
    args.segment_count = what.count;
    for (int i = 0; i < what.count; i++) {
      const FewPart& part = what.parts[i];
      const WeightGeometry& own = part.weight.geometry;
      const bool target = !what.glu || i == 0;
      args.segments[i] = {.data = part.weight.data,
                          .aux = part.weight.aux(),
                          .to = target ? part.out.f32(first) : nullptr,
                          .ld_to = target ? part.out.stride[0] : 0,
                          .bias = part.bias,
                          .out = static_cast<int32_t>(own.out),
                          .first = what.glu ? 0 : args.tiles};
      if (target) args.tiles += static_cast<int32_t>(own.tiles);
    }
    args.tile_bytes = g.tile_bytes;
    args.chunks = static_cast<int32_t>(g.chunks);
    args.x = static_cast<const std::byte*>(x.data) + first * x.ld * (x.f32 ? 4 : 2);
    args.ldx = static_cast<uint32_t>(x.ld);
    args.tokens = static_cast<int32_t>(tokens);
    args.row_tiles = choice.row_tiles;
    args.early = what.early;
    if (choice.splits > 1)
      args.partial = static_cast<float*>(backend.workspace(
          Workspace::kProduct, static_cast<size_t>(choice.splits * (what.glu ? 2 : 1) * tokens * args.tiles * kTileRows) * sizeof(float)));
    launch_product({.kind = g.kind, .glu = what.glu, .f32_x = x.f32, .tiles_n = problem.tiles_n, .splits = choice.splits}, args,
                   backend.stream_);
    if (choice.splits > 1) launch_finish_product(args, what.glu, choice.splits, backend.stream_);
  }
}

bool CudaBackend::Products::many_rows(const Tensor& out, const Rows& x, const ProductWeight& w) {
  const WeightGeometry& g = w.geometry;
  const bool f32 = g.kind == WeightKind::kF32;
  const cudaDataType_t type = f32 ? CUDA_R_32F : CUDA_R_16BF, out_type = out.dtype == Dtype::kBf16 ? CUDA_R_16BF : CUDA_R_32F;
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
  DG_BLAS(cublasLtMatrixLayoutCreate(&d, out_type, static_cast<uint64_t>(m), static_cast<uint64_t>(n), ldd));

  const LtKey key{m,
                  n,
                  k,
                  lda,
                  ldb,
                  ldd,
                  static_cast<int>(align_a),
                  static_cast<int>(align_b),
                  static_cast<int>(align_d),
                  static_cast<int>(type) * 256 + static_cast<int>(out_type)};
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

void CudaBackend::Products::linear(const Linear& op, const Rows* shared) {
  const Weight& w = op.weight;
  CHECK(op.x.cols() == w.in && op.out.cols() == w.out && op.out.rows() == op.x.rows());
  const bool bf16_x = op.x.dtype == Dtype::kBf16;  // of linear_glu: inner_type()
  CHECK((bf16_x || dense_rows(op.x)) && dense_rows(op.out));
  CHECK(!op.bias.valid() || op.bias.cols() == w.out);
  const int64_t tokens = op.x.rows();
  const float* bias = op.bias.valid() ? op.bias.f32() : nullptr;
  if (tokens == 0 || w.out == 0) return;
  if (published(*w.format) == Published::kF32) return f32_linear(op.out, op.x, w, bias);
  if (fp8_takes(w, tokens) && fp8_linear(op.out, op.x, w)) {
    if (bias) launch_add_bias(op.out.f32(), op.out.stride[0], bias, tokens, w.out, backend.stream_);
    return;
  }

  const WeightKind kind = product_kind(w);
  const bool few = tokens <= few_rows_limit(kind);
  const bool decoded = !in_place(w) || (!few && has_blocks(kind));
  void* space = decoded ? backend.workspace(Workspace::kWeights, static_cast<size_t>(decoded_bytes(w))) : nullptr;
  const ProductWeight from = weight(w, space, !few);
  const FewRows alone{.parts = {{op.out, from, bias}}, .count = 1, .early = !decoded};
  if (few && !w.columns && takes_f32(op.x, from.geometry)) return few_rows({op.x.data, op.x.stride[0], true}, tokens, alone);
  const int64_t padded = from.geometry.padded_in();
  CHECK(!bf16_x || (!few && !w.columns && op.x.cols() == padded));
  const Rows x = bf16_x                                         ? Rows{op.x.data, op.x.stride[0], false}
                 : shared && !w.columns && shared->ld == padded ? *shared
                                                                : bf16_rows(op.x, w.columns, padded);
  if (few || !many_rows(op.out, x, from)) return few_rows(x, tokens, alone);
  if (bias) launch_add_bias(op.out.f32(), op.out.stride[0], bias, tokens, w.out, backend.stream_);
}

bool CudaBackend::Products::linear_joined(const LinearSeveral& op) {
  const WeightKind kind = product_kind(op.parts[0].weight);
  if (op.x.rows() > few_rows_limit(kind)) return false;
  CHECK(dense_rows(op.x));
  FewRows what{.parts = {}, .count = 0, .early = true};
  for (int i = 0; i < op.count; i++) {
    const LinearPart& part = op.parts[i];
    const Weight& w = part.weight;
    CHECK(op.x.cols() == w.in && part.out.cols() == w.out && part.out.rows() == op.x.rows() && dense_rows(part.out));
    if (published(*w.format) == Published::kF32 || w.columns || !in_place(w) || product_kind(w) != kind) return false;
    if (w.out > 0) what.parts[what.count++] = {part.out, weight(w, nullptr), part.bias.valid() ? part.bias.f32() : nullptr};
  }
  if (op.x.rows() == 0 || what.count == 0) return true;
  const WeightGeometry& g = what.parts[0].weight.geometry;
  few_rows(takes_f32(op.x, g) ? Rows{op.x.data, op.x.stride[0], true} : bf16_rows(op.x, nullptr, g.padded_in()), op.x.rows(), what);
  return true;
}

void CudaBackend::Products::linear_several(const LinearSeveral& op) {
  if (linear_joined(op)) return;
  // One conversion of x for all whose product reads it as bf16 rows of one width.
  Rows shared{};
  const int64_t padded = round_up(op.x.cols(), 32);
  bool wanted = op.x.rows() > 0;
  for (int i = 0; i < op.count; i++) {
    const Weight& w = op.parts[i].weight;
    wanted = wanted && published(*w.format) != Published::kF32 && !w.columns && !fp8_takes(w, op.x.rows()) &&
             op.x.rows() > few_rows_limit(product_kind(w));
  }
  if (wanted) shared = bf16_rows(op.x, nullptr, padded);
  for (int i = 0; i < op.count; i++) {
    const LinearPart& part = op.parts[i];
    linear({.out = part.out, .x = op.x, .weight = part.weight, .bias = part.bias}, wanted ? &shared : nullptr);
  }
}

bool CudaBackend::Products::glu_joined(const LinearGlu& op) {
  const WeightKind kind = product_kind(op.up);
  const bool f32 = published(*op.gate.format) == Published::kF32 || published(*op.up.format) == Published::kF32;
  if (f32 || op.gate.columns || op.up.columns || product_kind(op.gate) != kind || op.x.rows() > few_rows_limit(kind)) return false;
  const int64_t gate_bytes = in_place(op.gate) ? 0 : decoded_bytes(op.gate), up_bytes = in_place(op.up) ? 0 : decoded_bytes(op.up);
  auto* space = gate_bytes + up_bytes > 0
                    ? static_cast<std::byte*>(backend.workspace(Workspace::kWeights, static_cast<size_t>(gate_bytes + up_bytes)))
                    : nullptr;
  const FewRows what{
      .parts = {{op.out, weight(op.gate, space)}, {{}, weight(op.up, space + gate_bytes)}}, .count = 2, .glu = true, .early = !space};
  const WeightGeometry& g = what.parts[0].weight.geometry;
  few_rows(takes_f32(op.x, g) ? Rows{op.x.data, op.x.stride[0], true} : bf16_rows(op.x, nullptr, g.padded_in()), op.x.rows(), what);
  return true;
}

void CudaBackend::Products::linear_glu_bf16(const LinearGlu& op) {
  const int64_t tokens = op.x.rows(), inner = op.up.out, padded = round_up(op.x.cols(), 32);
  Arena::Scope scope(*op.scratch);
  const Tensor gate = op.scratch->alloc(Dtype::kBf16, {tokens, inner});
  const Rows x = bf16_rows(op.x, nullptr, padded);
  const auto rows_of = [&](const Weight& w) {
    const bool decoded = !in_place(w) || has_blocks(product_kind(w));
    return weight(w, decoded ? backend.workspace(Workspace::kWeights, static_cast<size_t>(decoded_bytes(w))) : nullptr, true);
  };
  if (!many_rows(gate, x, rows_of(op.gate)) || !many_rows(op.out, x, rows_of(op.up)))
    return fail_device(backend.device_, "cuBLASLt has no product of bf16 for this shape");
  launch_silu_mul_bf16(op.out.data, op.out.stride[0], gate.data, gate.stride[0], tokens, inner, backend.stream_);
}

Dtype CudaBackend::inner_type(int64_t rows, const Weight& gate, const Weight& up, const Weight& down) const {
  if (exact_ || down.in % 32 != 0) return Dtype::kF32;
  for (const Weight* w : {&gate, &up, &down}) {
    const Published format = published(*w->format);
    // FP8 with squares has products of its own.
    if (format == Published::kF32 || format == Published::kFp8Block || w->columns) return Dtype::kF32;
    if (rows <= few_rows_limit(Products::product_kind(*w))) return Dtype::kF32;
  }
  return Dtype::kBf16;
}

void CudaBackend::Products::linear_glu(const LinearGlu& op) {
  if (op.out.dtype == Dtype::kBf16 && op.x.rows() > 0) return linear_glu_bf16(op);
  CHECK(op.x.cols() == op.up.in && op.out.cols() == op.up.out && op.out.rows() == op.x.rows());
  CHECK(op.gate.in == op.up.in && op.gate.out == op.up.out);
  CHECK(dense_rows(op.x) && dense_rows(op.out));
  const int64_t tokens = op.x.rows();
  if (tokens == 0 || op.up.out == 0 || fp8_linear_glu(op) || glu_joined(op)) return;
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

void CudaBackend::linear_several(const LinearSeveral& op) { Products::of(*this).linear_several(op); }

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
