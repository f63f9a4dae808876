// What linear, linear_glu and moe_experts share: weights as the kernels take them, the choice of kernels, cuBLASLt. Engine thread only.
#pragma once
#include <cublasLt.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/fp8_kernels.h"
#include "backends/cuda/kernels/moe_kernels.h"
#include "backends/cuda/kernels/product_kernels.h"
#include "backends/cuda/weight_layout.h"

namespace dg::cuda {

// A weight in device memory in one of the layouts of weight_layout.h (prepared, decoded for this op, or published in such a layout).
struct ProductWeight {
  WeightGeometry geometry;
  const uint8_t* data = nullptr;
  const uint8_t* aux() const { return data + geometry.aux_offset; }
};

// One product with few rows of x, and how it is shared out among CTAs.
struct ProductProblem {
  WeightKind kind;
  bool glu;
  int tiles_n;  // of 8 rows of x
  int64_t out, in;

  auto operator<=>(const ProductProblem&) const = default;
};
struct ProductChoice {
  int row_tiles, splits;
  double clocks;  // by the model of product_choice.cpp
};
std::string to_string(const ProductProblem& problem, const ProductChoice& choice);
ProductChoice choose_product(const ProductProblem& problem, int multiprocessors);
// Of grouped products: `items` work items are expected to have rows.
int choose_grouped_row_tiles(const WeightGeometry& g, bool glu, int tiles_n, int64_t items, int multiprocessors);

void launch_product(const ProductShape& shape, const ProductArgs& args, cudaStream_t stream);
void launch_grouped(const GroupedShape& shape, const GroupedArgs& args, cudaStream_t stream);

struct CudaBackend::Products {
  explicit Products(CudaBackend& backend);
  ~Products();
  Products(const Products&) = delete;
  static Products& of(CudaBackend& backend);

  // The choice for a problem, made once.
  const ProductChoice& choice(const ProductProblem& problem);
  // Whether the kernels take `w` where it lies; else bytes of space that weight() decodes it to.
  static bool in_place(const Weight& w);
  static WeightKind product_kind(const Weight& w);  // as which the kernels for few rows read it
  static int64_t decoded_bytes(const Weight& w);
  // `as_rows`: as rows of bf16 or f32.
  ProductWeight weight(const Weight& w, void* space, bool as_rows = false) const;

  // Rows of x as the kernels take them.
  struct Rows {
    const void* data;
    int64_t ld;
    bool f32;
  };
  Rows bf16_rows(const Tensor& x, const int32_t* columns, int64_t padded);

  // Products of one x with up to three weights of one kind and width, as one launch of product_kernel for 64 rows at a time; or
  // out = silu(x weights[0]^T) * (x weights[1]^T). `early`: no weight was decoded for this op.
  struct FewPart {
    Tensor out;  // with glu that of the first
    ProductWeight weight;
    const float* bias = nullptr;
  };
  struct FewRows {
    FewPart parts[3];
    int count;
    bool glu = false, early = false;
  };
  void few_rows(const Rows& x, int64_t tokens, const FewRows& what);
  // Whether few_rows() takes so many rows of x as they are, in f32.
  static bool takes_f32(const Tensor& x, const WeightGeometry& g);
  // Whether products of these weights with such rows write to their result alone.
  static bool need_no_workspace(const Tensor& x, std::span<const Weight* const> weights);
  ProductProblem problem_of(int64_t tokens, const FewRows& what) const;
  // By cuBLASLt, to f32 or bf16; false when it has no way. Weight and x: both bf16 rows or both f32 rows, columns beyond `in` zeros.
  bool many_rows(const Tensor& out, const Rows& x, const ProductWeight& weight);
  void f32_linear(const Tensor& out, const Tensor& x, const Weight& weight, const float* bias);
  // `shared`: x as bf16 rows, where they have been made.
  void linear(const Linear& op, const Rows* shared = nullptr);
  // False: not as one launch.
  bool linear_joined(const LinearSeveral& op);
  void linear_several(const LinearSeveral& op);
  void linear_glu(const LinearGlu& op);
  // The same to bf16 (inner_type), for many rows.
  void linear_glu_bf16(const LinearGlu& op);
  bool glu_joined(const LinearGlu& op);

  // Experts: moe.cpp.
  void moe_experts(const MoeExperts& op);
  const ExpertMatrices* expert_table(const void* key, const std::vector<ExpertMatrices>& host);

  // Products in e4m3, for many rows: fp8_product.cpp, fp8_check.cpp.
  struct Fp8Ways {
    bool checked = false, kernel = false, blas = false;
  };
  Fp8Ways fp8;
  bool fp8_checked();  // whether there is a way; finds out at the first call
  bool fp8_takes(const Weight& w, int64_t rows);
  // What follows is for weights that fp8_takes(). False: not this way.
  bool fp8_linear(const Tensor& out, const Tensor& x, const Weight& w);
  bool fp8_by_blas(const Tensor& out, const Tensor& x, const Weight& w);
  void fp8_by_kernel(const Tensor& out, const Tensor& x, const Weight& w);
  Fp8Rows fp8_rows(const Tensor& x);
  // False: not by e4m3.
  bool fp8_linear_glu(const LinearGlu& op);
  bool fp8_experts(const MoeExperts& op);

  CudaBackend& backend;
  cublasLtHandle_t handle = nullptr;
  void* lt_workspace = nullptr;
  static constexpr size_t kLtWorkspaceBytes = 32 << 20;
  struct Algorithm {
    bool found;
    cublasLtMatmulAlgo_t algorithm;
  };
  using LtKey = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, int>;
  std::map<LtKey, Algorithm> algorithms, fp8_algorithms;
  std::map<ProductProblem, ProductChoice> choices;
  struct Table {
    std::vector<ExpertMatrices> host;
    void* device = nullptr;
    size_t bytes = 0;
  };
  std::map<const void*, Table> tables;
};

}  // namespace dg::cuda
