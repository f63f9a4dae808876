// Experts of few tokens by few_experts.cuh: whether, and how a layer's work is shared out.
//
// For benchmarks, DOUGONG_CUDA_EXPERTS: "sorted" (pairs sorted by expert, moe.cpp; "sorted,TILES" forces the tiles of a CTA there) or
// "UP,DOWN[,CTAS]": warps of a CTA of either kernel, 0 what the backend chooses; CTAs of `up` per multiprocessor, 0: one for each unit.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "backends/cuda/products.h"

namespace dg::cuda {
namespace {

constexpr int kResidentWarps = 16;  // of a multiprocessor: registers and rings

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Warps of a CTA of `up`: the fewest with which no multiprocessor has more chunks to take one after another than with others.
int choose_up_warps(const WeightGeometry& g, int64_t units, int multiprocessors) {
  int best = 2;
  int64_t least = INT64_MAX;
  for (int warps : {2, 4, 8}) {
    const int64_t slots = int64_t{multiprocessors} * (kResidentWarps / warps), time = ceil_div(units, slots) * ceil_div(g.chunks, warps);
    if (time < least) least = time, best = warps;
  }
  return best;
}

// All CTAs at once, one for each tile, and warps enough on each multiprocessor.
int choose_down_warps(const WeightGeometry& g, int multiprocessors) {
  const int64_t ctas = ceil_div(g.tiles, multiprocessors);
  return ctas == 1 ? 16 : ctas == 2 ? 8 : 4;
}

}  // namespace

CudaBackend::Products::ExpertsChoice CudaBackend::Products::read_experts_choice() {
  ExpertsChoice choice;
  const char* text = std::getenv("DOUGONG_CUDA_EXPERTS");
  if (!text) return choice;
  if (std::string_view(text).starts_with("sorted")) {
    choice.sorted = true;
    int tiles = 0;
    if (std::sscanf(text, "sorted,%d", &tiles) == 1 && (tiles == 1 || tiles == 2 || tiles == 4 || tiles == 8)) choice.row_tiles = tiles;
    return choice;
  }
  int up = 0, down = 0, ctas = -1;
  if (std::sscanf(text, "%d,%d,%d", &up, &down, &ctas) < 2) return choice;
  if (up == 2 || up == 4 || up == 8) choice.up_warps = up;
  if (down == 4 || down == 8 || down == 16) choice.down_warps = down;
  choice.ctas = ctas;
  return choice;
}

bool CudaBackend::Products::takes_few_experts(const MoeExperts& op, const WeightGeometry& up) const {
  return !experts_choice.sorted && op.x.rows() <= kFewTokens && op.x.rows() * op.ids.cols() <= kFewPairs && up.padded_in() == op.x.cols() &&
         op.x.stride[0] % 4 == 0 && reinterpret_cast<uintptr_t>(op.x.data) % 16 == 0;
}

void CudaBackend::Products::few_experts(const MoeExperts& op, const ExpertMatrices* table, const WeightGeometry& up,
                                        const WeightGeometry& down, bool early) {
  const int64_t tokens = op.x.rows(), pairs = tokens * op.ids.cols(), width = down.padded_in();
  void* hidden = backend.workspace(Workspace::kExperts, static_cast<size_t>(pairs * width) * 2);
  const cudaStream_t stream = backend.stream_;
  if (width != down.in) DG_CUDA(cudaMemsetAsync(hidden, 0, static_cast<size_t>(pairs * width) * 2, stream));
  FewExpertsArgs a{.experts = table,
                   .ids = op.ids.ptr<int32_t>(),
                   .ld_ids = op.ids.stride[0],
                   .weights = op.weights.f32(),
                   .ld_weights = op.weights.stride[0],
                   .tokens = static_cast<int32_t>(tokens),
                   .top_k = static_cast<int32_t>(op.ids.cols()),
                   .first = op.first,
                   .count = static_cast<int32_t>(op.experts.size())};
  const auto set = [&](const WeightGeometry& g) {
    a.aux_offset = g.aux_offset, a.tile_bytes = g.tile_bytes;
    a.out = static_cast<int32_t>(g.out), a.chunks = static_cast<int32_t>(g.chunks), a.tiles = static_cast<int32_t>(g.tiles);
  };
  set(up);
  a.x = op.x.data, a.ldx = static_cast<uint32_t>(op.x.stride[0]), a.to = hidden, a.ld_to = width;
  const int multiprocessors = backend.multiprocessors();
  const int warps = experts_choice.up_warps ? experts_choice.up_warps : choose_up_warps(up, pairs * up.tiles, multiprocessors);
  launch_few_experts({.kind = up.kind, .down = false, .warps = warps, .ctas = experts_choice.ctas, .multiprocessors = multiprocessors}, a,
                     stream);
  backend.join_beside();  // `down` adds to the results
  set(down);
  a.x = hidden, a.ldx = static_cast<uint32_t>(width), a.to = op.out.data, a.ld_to = op.out.stride[0];
  a.early = early;
  launch_few_experts({.kind = down.kind,
                      .down = true,
                      .warps = experts_choice.down_warps ? experts_choice.down_warps : choose_down_warps(down, multiprocessors),
                      .ctas = 0,
                      .multiprocessors = multiprocessors},
                     a, stream);
}

#define DG_KINDS(X) \
  X(kBf16) X(kFp8Block128) X(kFp8Block32) X(kFp8Row) X(kInt8Row) X(kCode8) X(kCode8Offset) X(kCode4) X(kCode4Offset) X(kFp4) X(kIq4)

void launch_few_experts(const FewExpertsShape& shape, const FewExpertsArgs& args, cudaStream_t stream) {
  switch (shape.kind) {
#define DG_CASE(kind) \
  case WeightKind::kind: return launch_few_experts_kind<WeightKind::kind>(shape, args, stream);
    DG_KINDS(DG_CASE)
#undef DG_CASE
    default: CHECK(false) << "no kernel for experts of " << weight_kind_name(shape.kind);
  }
}

}  // namespace dg::cuda
