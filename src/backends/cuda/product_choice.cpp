// How a product with few rows of x is shared out: tiles and parts of the columns per CTA, CTAs per tile. A model of the time in clocks
// of one multiprocessor decides, once per problem: memory, L2 (weights and x), latency of the loads in flight, second pass.
#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "backends/cuda/products.h"

namespace dg::cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr double kMemoryRate = 20;    // bytes per clock of each multiprocessor when all read: 4.8 TB/s / 132 / 1.8 GHz
constexpr double kL2Rate = 45;        // from L2 to one multiprocessor
constexpr double kLatency = 1000;     // clocks from a load to its data, memory busy
constexpr double kChunk = 350;        // clocks of a warp for a chunk: shared memory and mma one behind the other
constexpr double kXLatency = 400;     // more for x, from L2 or L1
constexpr double kSecondPass = 3000;  // clocks of a kernel that does little
constexpr double kReduction = 150;    // clocks of the sum over the parts within a CTA

// Instructions of a warp for a chunk of a weight.
double chunk_issue(WeightKind kind) { return chunk_groups(kind) == 4 ? 190 : chunk_groups(kind) == 2 ? 110 : 50; }

double clocks(const ProductProblem& p, const WeightGeometry& g, int row_tiles, int splits, int multiprocessors) {
  const int weights = p.glu ? 2 : 1, parts_in_cta = kProductWarps / row_tiles, resident = p.tiles_n >= 4 ? 1 : 2;
  const int ahead = p.glu ? 4 : 8;  // stages of the ring
  const int64_t ctas = ceil_div(g.tiles, row_tiles) * splits, per_warp = ceil_div(g.chunks, static_cast<int64_t>(parts_in_cta) * splits);
  const double busy = static_cast<double>(std::min<int64_t>(ctas, multiprocessors)),
               per_sm = static_cast<double>(ceil_div(ctas, multiprocessors));
  const double waves = static_cast<double>(ceil_div(ctas, static_cast<int64_t>(multiprocessors) * resident));
  const double weight_bytes = static_cast<double>(kProductWarps * per_warp * weights) * block_bytes(p.kind);
  const double x_bytes = static_cast<double>(parts_in_cta * per_warp * chunk_columns(p.kind)) * 2 * 8 * p.tiles_n;
  const double memory = per_sm * weight_bytes / std::min(kL2Rate, kMemoryRate * multiprocessors / busy);
  const double l2 = per_sm * (weight_bytes + x_bytes) / kL2Rate;
  // x comes from L2 for every chunk. 4 bits: instructions of a chunk and weight fill the issue slots of a multiprocessor.
  const double chunk_time = std::max(kChunk + kXLatency, kLatency / ahead);
  const double issue =
      chunk_groups(p.kind) == 4 ? static_cast<double>(kProductWarps * weights * per_warp) * chunk_issue(p.kind) / 4 * 1.2 : 0;
  const double latency = std::max(waves * (kLatency + static_cast<double>(per_warp) * chunk_time), per_sm * issue);
  double total = std::max({memory, l2, latency}) + kLatency;
  if (parts_in_cta > 1) total += kReduction * parts_in_cta * p.tiles_n;
  if (splits > 1)
    total += kSecondPass + static_cast<double>(p.out * 8 * p.tiles_n * weights * splits) * 8 / (kMemoryRate * multiprocessors);
  return total;
}

}  // namespace

std::string to_string(const ProductProblem& p, const ProductChoice& c) {
  const std::string how = fmt::format("{} tiles per CTA, {} parts", c.row_tiles, kProductWarps / c.row_tiles * c.splits);
  return fmt::format("{} {} {} x {}, {} rows: {}, {:.0f} clocks expected", p.glu ? "glu" : "linear", weight_kind_name(p.kind), p.out, p.in,
                     p.tiles_n * 8, how, c.clocks);
}

ProductChoice choose_product(const ProductProblem& p, int multiprocessors) {
  const WeightGeometry g = weight_geometry(p.kind, p.out, p.in);
  // For benchmarks, where possible: DOUGONG_CUDA_PRODUCT=TILES,SPLITS.
  const char* forced = std::getenv("DOUGONG_CUDA_PRODUCT");
  int row_tiles = 0, splits = 0;
  if (forced && std::sscanf(forced, "%d,%d", &row_tiles, &splits) == 2 &&
      (row_tiles == 1 || row_tiles == 2 || row_tiles == 4 || row_tiles == 8) && splits >= 1 && splits <= 16 &&
      product_shared_bytes(row_tiles, p.glu ? 2 : 1, p.tiles_n) <= kProductSharedBytes &&
      (splits == 1 || static_cast<int64_t>(kProductWarps / row_tiles) * splits <= g.chunks))
    return {row_tiles, splits, 0};
  // Measured on an H200 (docs/cuda.md): up to 8 rows one tile for each CTA, its columns shared by all warps, is best whatever the shape.
  if (p.tiles_n == 1) return {1, 1, 0};
  ProductChoice best{};
  for (int tiles : {8, 4, 2, 1}) {
    if (product_shared_bytes(tiles, p.glu ? 2 : 1, p.tiles_n) > kProductSharedBytes) continue;
    for (int parts : {1, 2, 3, 4, 6, 8, 12, 16}) {
      if (parts > 1 && static_cast<int64_t>(kProductWarps / tiles) * parts > g.chunks) continue;
      const double time = clocks(p, g, tiles, parts, multiprocessors);
      if (best.splits == 0 || time < best.clocks) best = {tiles, parts, time};
    }
  }
  return best;
}

int choose_grouped_row_tiles(const WeightGeometry& g, bool glu, int tiles_n, int64_t items, int multiprocessors) {
  // For benchmarks, where possible: DOUGONG_CUDA_EXPERTS=TILES.
  const char* forced = std::getenv("DOUGONG_CUDA_EXPERTS");
  const int wanted = forced ? std::atoi(forced) : 0;
  if ((wanted == 1 || wanted == 2 || wanted == 4 || wanted == 8) &&
      product_shared_bytes(wanted, glu ? 2 : 1, tiles_n) <= kProductSharedBytes)
    return wanted;
  const int least = product_shared_bytes(1, glu ? 2 : 1, tiles_n) > kProductSharedBytes ? 2 : 1;
  const int resident = tiles_n >= 4 ? 1 : 2;
  if (tiles_n == 1) {  // measured on an H200 (docs/cuda.md): short columns want warps with many of them, in one wave and a half
    int row_tiles = 4;
    while (row_tiles > least && 2 * ceil_div(g.tiles, row_tiles) * items < int64_t{3} * multiprocessors) row_tiles /= 2;
    return row_tiles;
  }
  int row_tiles = 8;  // x is shared best; fewer where that leaves multiprocessors idle
  while (row_tiles > least && ceil_div(g.tiles, row_tiles) * items < int64_t{3} * multiprocessors * resident) row_tiles /= 2;
  return row_tiles;
}

#define DG_KINDS(X) \
  X(kBf16) X(kFp8Block128) X(kFp8Block32) X(kFp8Row) X(kInt8Row) X(kCode8) X(kCode8Offset) X(kCode4) X(kCode4Offset) X(kFp4) X(kIq4)

void launch_product(const ProductShape& shape, const ProductArgs& args, cudaStream_t stream) {
  switch (shape.kind) {
#define DG_CASE(kind) \
  case WeightKind::kind: return launch_product_kind<WeightKind::kind>(shape, args, stream);
    DG_KINDS(DG_CASE)
#undef DG_CASE
    default: CHECK(false) << "no product kernel of " << weight_kind_name(shape.kind);
  }
}

void launch_grouped(const GroupedShape& shape, const GroupedArgs& args, cudaStream_t stream) {
  switch (shape.kind) {
#define DG_CASE(kind) \
  case WeightKind::kind: return launch_grouped_kind<WeightKind::kind>(shape, args, stream);
    DG_KINDS(DG_CASE)
#undef DG_CASE
    default: CHECK(false) << "no product kernel of " << weight_kind_name(shape.kind);
  }
}

}  // namespace dg::cuda
