// Sampling's ops on the GPU: shapes are checked here, the work is in kernels/sample_*.cu.
#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/kernels/sample_kernels.h"

namespace dg::cuda {
namespace {

constexpr int64_t kMostRows = 65535;  // gridDim.y

void check_logits(const Tensor& logits, const Tensor& specs) {
  CHECK(logits.dtype == Dtype::kF32 && logits.rank == 2 && (logits.cols() <= 1 || logits.stride[1] == 1) && logits.rows() <= kMostRows)
      << logits.rows() << " rows of " << logits.cols();
  CHECK(specs.dtype == Dtype::kI32 && specs.contiguous() && specs.rows() == logits.rows() && specs.cols() * 4 == sizeof(PickSpec))
      << specs.rows() << " specs of " << specs.cols() << " words";
}

}  // namespace

void CudaBackend::adjust_logits(const AdjustLogits& op) {
  check_logits(op.logits, op.specs);
  CHECK(op.changes.dtype == Dtype::kI32 && op.changes.cols() * 4 == sizeof(LogitChange) && op.masks.dtype == Dtype::kI32);
  CHECK(op.changes.contiguous() && op.masks.contiguous());
  if (op.logits.elements() == 0) return;
  launch_adjust_logits({.logits = op.logits.f32(),
                        .stride = op.logits.stride[0],
                        .rows = op.logits.rows(),
                        .columns = static_cast<int32_t>(op.logits.cols()),
                        .first_id = op.first_id,
                        .specs = static_cast<const PickSpec*>(op.specs.data),
                        .changes = static_cast<const LogitChange*>(op.changes.data),
                        .masks = static_cast<const uint32_t*>(op.masks.data),
                        .mask_words = op.masks.cols()},
                       stream_);
  DG_CUDA(cudaPeekAtLastError());
}

void CudaBackend::pick_rows(const PickRows& op) {
  check_logits(op.logits, op.specs);
  const int64_t rows = op.logits.rows(), columns = op.logits.cols();
  CHECK(columns <= kMostPickColumns && op.most >= 1 && op.most <= kMostCandidates) << columns << " columns, " << op.most << " candidates";
  CHECK(op.out.dtype == Dtype::kI32 && op.out.contiguous() && op.out.rows() == rows && op.out.cols() == pick_words(op.most, op.draw));
  if (op.logits.elements() == 0) return;
  const int64_t chunks = (columns + static_cast<int64_t>(kChunk) - 1) / static_cast<int64_t>(kChunk);
  CHECK(op.scratch.contiguous() && op.scratch.elements() >= 3 * rows * chunks) << op.scratch.elements() << " floats of scratch";
  float* const scan = op.scratch.f32();
  launch_pick_rows({.logits = op.logits.f32(),
                    .stride = op.logits.stride[0],
                    .rows = rows,
                    .columns = static_cast<int32_t>(columns),
                    .first_id = op.first_id,
                    .specs = static_cast<const PickSpec*>(op.specs.data),
                    .out = op.out.i32(),
                    .words = static_cast<int32_t>(op.out.cols()),
                    .most = op.most,
                    .chunk_max = scan,
                    .chunk_sum = scan + rows * chunks,
                    .chunk_sum_at_one = scan + 2 * rows * chunks,
                    .chunks = static_cast<int32_t>(chunks)},
                   stream_);
  DG_CUDA(cudaPeekAtLastError());
}

}  // namespace dg::cuda
