// The ops over rows on the GPU: shapes are checked here, the work is in kernels/rows.cu, kernels/cache_write.cu and kernels/rope_cache.cu.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/row_kernels.h"
#include "device/cache_format.h"

namespace dg::cuda {
namespace {

// Whether every row of the view starts at a multiple of four floats.
bool by_four(const Tensor& t) {
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0) return false;
  for (int i = 0; i + 1 < t.rank; i++)
    if (t.dim(i) > 1 && t.stride[static_cast<size_t>(i)] % 4 != 0) return false;
  return true;
}

void check_rows(const Tensor& t, int64_t rows, int64_t cols) {
  CHECK(t.dtype == Dtype::kF32 && t.rank >= 2 && t.rows() == rows && t.cols() == cols)
      << dtype_name(t.dtype) << " of rank " << t.rank << ", " << t.rows() << " rows of " << t.cols() << "; expected " << rows << " of "
      << cols;
  CHECK(cols <= 1 || t.stride[static_cast<size_t>(t.rank - 1)] == 1) << "columns " << t.stride[static_cast<size_t>(t.rank - 1)] << " apart";
}

void check_vector(const Tensor& t, int64_t count, Dtype dtype) {
  CHECK(t.dtype == dtype && t.elements() >= count && (count <= 1 || t.stride[0] == 1)) << dtype_name(t.dtype) << " of " << t.elements();
}

// (rows, cols) has one head.
FloatRows rows_of(const Tensor& t) { return {t.f32(), t.stride[0], t.rank == 3 ? t.stride[1] : 0}; }

Element element_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kF32: return Element::kF32;
    case Dtype::kBf16: return Element::kBf16;
    case Dtype::kF16: return Element::kF16;
    case Dtype::kF8E4m3: return Element::kE4m3;
    case Dtype::kI8: return Element::kInt8;
    default: CHECK(false) << "elements of " << dtype_name(dtype); return Element::kF32;
  }
}

RopeArgs rope_args(const Tensor& x, const Tensor& positions, const Tensor& inv_freq, bool interleaved, float magnitude) {
  CHECK(x.rank == 3);
  check_rows(x, x.rows(), x.cols());
  check_vector(positions, x.rows(), Dtype::kI32);
  check_vector(inv_freq, x.cols() / 2, Dtype::kF32);
  CHECK(x.cols() <= 12288) << "heads of " << x.cols();
  return {.x = rows_of(x),
          .weight = nullptr,
          .eps = 0,
          .positions = positions.i32(),
          .inv_freq = inv_freq.f32(),
          .rows = x.rows(),
          .heads = x.dim(1),
          .dim = x.cols(),
          .interleaved = interleaved,
          .magnitude = magnitude};
}

CacheRows cache_rows(const PagedCache& c) {
  const Tensor& t = c.data;
  const auto bytes = static_cast<int64_t>(dtype_bytes(t.dtype));
  CHECK(is_cache_dtype(t.dtype) && t.rank == 3 && (c.width() <= 1 || t.stride[2] == 1));
  CHECK(t.stride[1] * bytes >= cache_row_bytes(t.dtype, c.width())) << "cache rows of " << t.stride[1] << " elements";
  return {.data = t.data,
          .element = element_of(t.dtype),
          .block_bytes = t.stride[0] * bytes,
          .row_bytes = t.stride[1] * bytes,
          .block_tokens = static_cast<int>(c.block_tokens()),
          .width = c.width()};
}

void pointwise(Pointwise which, const Tensor& out, const Tensor& a, const Tensor& b, cudaStream_t stream) {
  const int64_t rows = out.rows(), cols = out.cols();
  check_rows(out, rows, cols), check_rows(a, rows, cols), check_rows(b, rows, cols);
  CHECK(out.rank == 2 && a.rank == 2 && b.rank == 2);
  if (rows == 0 || cols == 0) return;
  launch_pointwise(which,
                   {.out = out.f32(),
                    .a = a.f32(),
                    .b = b.f32(),
                    .out_stride = out.stride[0],
                    .a_stride = a.stride[0],
                    .b_stride = b.stride[0],
                    .rows = rows,
                    .cols = cols,
                    .vector = by_four(out) && by_four(a) && by_four(b)},
                   stream);
  DG_CUDA(cudaPeekAtLastError());
}

}  // namespace

void CudaBackend::rms_norm(const RmsNorm& op) {
  const int64_t rows = op.x.rows(), dim = op.x.cols(), heads = op.x.rank == 3 ? op.x.dim(1) : 1;
  check_rows(op.x, rows, dim), check_rows(op.out, rows, dim), check_vector(op.weight, dim, Dtype::kF32);
  CHECK(op.out.rank == op.x.rank && op.x.rank <= 3 && (op.x.rank == 2 || op.out.dim(1) == heads));
  if (rows == 0 || heads == 0 || dim == 0) return;
  launch_rms_norm({.out = rows_of(op.out),
                   .x = rows_of(op.x),
                   .weight = op.weight.f32(),
                   .rows = rows,
                   .heads = heads,
                   .dim = dim,
                   .eps = op.eps,
                   .vector = by_four(op.x) && by_four(op.out) && by_four(op.weight)},
                  stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::add_rms_norm(const AddRmsNorm& op) {
  if (op.partial && collectives_) {
    if (reduce_norm(op)) return;
    all_reduce({op.delta});
  }
  const int64_t rows = op.residual.rows(), dim = op.residual.cols();
  check_rows(op.residual, rows, dim), check_rows(op.delta, rows, dim), check_rows(op.out, rows, dim);
  check_vector(op.weight, dim, Dtype::kF32);
  CHECK(op.residual.rank == 2 && op.delta.rank == 2 && op.out.rank == 2);
  if (rows == 0 || dim == 0) return;
  launch_rms_norm({.out = rows_of(op.out),
                   .x = rows_of(op.residual),
                   .weight = op.weight.f32(),
                   .delta = op.delta.f32(),
                   .delta_stride = op.delta.stride[0],
                   .rows = rows,
                   .heads = 1,
                   .dim = dim,
                   .eps = op.eps,
                   .vector = by_four(op.residual) && by_four(op.out) && by_four(op.delta) && by_four(op.weight)},
                  stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::rope(const Rope& op) {
  const RopeArgs args = rope_args(op.x, op.positions, op.inv_freq, op.interleaved, op.magnitude);
  if (args.rows == 0 || args.heads == 0 || args.dim < 2) return;
  launch_rope(args, stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::head_norm_rope(const HeadNormRope& op) {
  RopeArgs args = rope_args(op.x, op.positions, op.inv_freq, op.interleaved, op.magnitude);
  if (op.weight.valid()) {
    check_vector(op.weight, args.dim, Dtype::kF32);
    args.weight = op.weight.f32();
    args.eps = op.eps;
  }
  if (args.rows == 0 || args.heads == 0 || args.dim == 0) return;
  launch_rope(args, stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::act_mul(const ActMul& op) { pointwise(Pointwise::kSiluMul, op.out, op.gate, op.up, stream_); }

void CudaBackend::add(const Add& op) { pointwise(Pointwise::kAdd, op.out, op.a, op.b, stream_); }

void CudaBackend::gather_rows(const GatherRows& op) {
  const int64_t count = op.out.rows(), cols = op.out.cols();
  check_rows(op.out, count, cols), check_rows(op.x, op.x.rows(), cols), check_vector(op.rows, count, Dtype::kI32);
  CHECK(op.out.rank == 2 && op.x.rank == 2);
  if (count == 0 || cols == 0) return;
  launch_gather({.out = op.out.f32(),
                 .x = op.x.f32(),
                 .rows = op.rows.i32(),
                 .out_stride = op.out.stride[0],
                 .x_stride = op.x.stride[0],
                 .count = count,
                 .cols = cols,
                 .vector = by_four(op.out) && by_four(op.x)},
                stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::fill(const Fill& op) {
  check_rows(op.out, op.out.rows(), op.out.cols());
  CHECK(op.out.rank == 2);
  if (op.out.elements() == 0) return;
  launch_fill(op.out.f32(), op.out.stride[0], op.out.rows(), op.out.cols(), op.value, stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::copy(const Copy& op) {
  CHECK(op.out.rank == 2 && op.x.rank == 2 && op.out.rows() == op.x.rows() && op.out.cols() == op.x.cols());
  const Element to = element_of(op.out.dtype), from = element_of(op.x.dtype);
  CHECK(to <= Element::kF16 && from <= Element::kF16) << dtype_name(op.x.dtype) << " to " << dtype_name(op.out.dtype);
  if (op.out.elements() == 0) return;
  launch_copy({.out = op.out.data,
               .x = op.x.data,
               .to = to,
               .from = from,
               .out_row = op.out.stride[0],
               .out_col = op.out.stride[1],
               .x_row = op.x.stride[0],
               .x_col = op.x.stride[1],
               .rows = op.out.rows(),
               .cols = op.out.cols()},
              stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::kv_write(const KvWrite& op) {
  const int64_t rows = op.values.rows(), width = op.cache.width();
  check_rows(op.values, rows, width);
  check_vector(op.slots, rows, Dtype::kI32);
  CHECK(op.values.rank == 2);
  const CacheRows cache = cache_rows(op.cache);
  if (rows == 0 || width == 0) return;
  launch_cache_write(
      {.cache = cache, .values = op.values.f32(), .values_stride = op.values.stride[0], .rows = rows, .slots = op.slots.i32()}, stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::rope_kv_write(const RopeKvWrite& op) {
  const int64_t rows = op.q.rows(), dim = op.q.cols(), width = op.k_cache.width();
  const CacheRows k_cache = cache_rows(op.k_cache), v_cache = cache_rows(op.v_cache);
  if (!fast_rope_cache(dim) || k_cache.element != v_cache.element) return Backend::rope_kv_write(op);
  CHECK(op.q.rank == 3 && op.k.rank == 2 && op.v.rank == 2 && width % dim == 0 && op.v_cache.width() == width);
  check_rows(op.q, rows, dim), check_rows(op.k, rows, width), check_rows(op.v, rows, width);
  check_vector(op.positions, rows, Dtype::kI32), check_vector(op.slots, rows, Dtype::kI32);
  check_vector(op.inv_freq, dim / 2, Dtype::kF32);
  for (const Tensor* weight : {&op.q_weight, &op.k_weight})
    if (weight->valid()) check_vector(*weight, dim, Dtype::kF32);
  if (rows == 0) return;
  launch_rope_cache({.q = op.q.f32(),
                     .k = op.k.f32(),
                     .v = op.v.f32(),
                     .q_row = op.q.stride[0],
                     .q_head = op.q.stride[1],
                     .k_row = op.k.stride[0],
                     .v_row = op.v.stride[0],
                     .q_weight = op.q_weight.valid() ? op.q_weight.f32() : nullptr,
                     .k_weight = op.k_weight.valid() ? op.k_weight.f32() : nullptr,
                     .inv_freq = op.inv_freq.f32(),
                     .positions = op.positions.i32(),
                     .slots = op.slots.i32(),
                     .k_cache = k_cache,
                     .v_cache = v_cache,
                     .rows = rows,
                     .heads = static_cast<int>(op.q.dim(1)),
                     .kv_heads = static_cast<int>(width / dim),
                     .eps = op.eps,
                     .magnitude = op.magnitude},
                    static_cast<int>(dim), stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::latent_kv_write(const LatentKvWrite& op) {
  const int64_t rows = op.latent.rows(), lora = op.weight.elements(), width = op.latent.cols(), turned = width - lora;
  const bool low = op.q_low.valid(), pe = op.q_pe.valid();
  const bool fast =
      lora % 4 == 0 && turned % 4 == 0 && turned > 0 && width <= kMostLatentColumns && by_four(op.latent) && by_four(op.weight) &&
      (!pe || by_four(op.q_pe)) &&
      (!low || (by_four(op.q_low) && by_four(op.q_low_weight) && op.q_low.cols() % 4 == 0 && op.q_low.cols() <= kMostLatentColumns));
  if (!fast) return Backend::latent_kv_write(op);
  const CacheRows cache = cache_rows(op.cache);
  CHECK(op.latent.rank == 2 && cache.width == width);
  check_rows(op.latent, rows, width), check_vector(op.weight, lora, Dtype::kF32);
  check_vector(op.positions, rows, Dtype::kI32), check_vector(op.slots, rows, Dtype::kI32);
  check_vector(op.inv_freq, turned / 2, Dtype::kF32);
  if (low) check_rows(op.q_low, rows, op.q_low.cols()), check_vector(op.q_low_weight, op.q_low.cols(), Dtype::kF32);
  if (pe) check_rows(op.q_pe, rows, turned);
  CHECK((!low || op.q_low.rank == 2) && (!pe || op.q_pe.rank == 3));
  if (rows == 0) return;
  launch_latent_cache({.latent = op.latent.f32(),
                       .latent_row = op.latent.stride[0],
                       .weight = op.weight.f32(),
                       .q_low = low ? op.q_low.f32() : nullptr,
                       .q_low_row = low ? op.q_low.stride[0] : 0,
                       .q_low_weight = low ? op.q_low_weight.f32() : nullptr,
                       .q_pe = pe ? op.q_pe.f32() : nullptr,
                       .q_row = pe ? op.q_pe.stride[0] : 0,
                       .q_head = pe ? op.q_pe.stride[1] : 0,
                       .inv_freq = op.inv_freq.f32(),
                       .positions = op.positions.i32(),
                       .slots = op.slots.i32(),
                       .cache = cache,
                       .cache_by_four = by_four(cache, static_cast<int64_t>(dtype_bytes(op.cache.data.dtype))),
                       .rows = rows,
                       .kv_lora = static_cast<int>(lora),
                       .rope = static_cast<int>(turned),
                       .q_lora = low ? static_cast<int>(op.q_low.cols()) : 0,
                       .heads = pe ? static_cast<int>(op.q_pe.dim(1)) : 0,
                       .eps = op.eps,
                       .magnitude = op.magnitude},
                      stream_);
  DG_CUDA(cudaPeekAtLastError());
}

}  // namespace dg::cuda
