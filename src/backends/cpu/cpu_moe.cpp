// Mixture of experts: routing, and the experts with each active expert's weights read once per chunk of tokens.
#include <algorithm>
#include <cmath>

#include "backends/cpu/cpu_backend.h"
#include "device/scratch.h"

namespace dg {
namespace {

// Moves the indices of the `n` largest of values[0, count) to order[0, n), best first, the lower index first among equals.
void best(const float* values, int64_t count, int64_t n, int32_t* order) {
  for (int64_t i = 0; i < count; i++) order[i] = static_cast<int32_t>(i);
  std::partial_sort(order, order + n, order + count,
                    [values](int32_t a, int32_t b) { return values[a] > values[b] || (!(values[b] > values[a]) && a < b); });
}

struct RouteScratch {
  float *score, *choice, *group;
  int32_t *order, *group_order;
};

int64_t route_scratch_floats(int64_t experts, int64_t groups) { return 3 * pad16(experts) + 2 * pad16(groups); }

RouteScratch route_scratch(float* p, int64_t experts, int64_t groups) {
  const int64_t e = pad16(experts), g = pad16(groups);
  return {.score = p,
          .choice = p + e,
          .group = p + 2 * e,
          .order = reinterpret_cast<int32_t*>(p + 2 * e + g),
          .group_order = reinterpret_cast<int32_t*>(p + 3 * e + g)};
}

void route_token(const MoeRoute& op, int64_t t, const RouteScratch& s) {
  const int64_t experts = op.logits.cols(), top_k = op.ids.cols(), per_group = experts / op.groups;
  const float* x = op.logits.f32(t);
  if (op.score == RouterScore::kSoftmax) {
    const float top = *std::max_element(x, x + experts);
    float total = 0;
    for (int64_t e = 0; e < experts; e++) total += s.score[e] = std::exp(x[e] - top);
    for (int64_t e = 0; e < experts; e++) s.score[e] /= total;
  } else {
    for (int64_t e = 0; e < experts; e++) s.score[e] = 1.0f / (1.0f + std::exp(-x[e]));
  }
  // NaN logits (a broken checkpoint) must not break the ordering: they are never chosen before a number.
  for (int64_t e = 0; e < experts; e++) {
    const float c = s.score[e] + (op.bias.valid() ? op.bias.f32()[e] : 0.0f);
    s.choice[e] = std::isnan(c) ? -INFINITY : c;
  }
  if (op.groups > 1) {
    for (int64_t g = 0; g < op.groups; g++) {
      float first = -INFINITY, second = -INFINITY;
      for (int64_t e = g * per_group; e < (g + 1) * per_group; e++) {
        const float c = s.choice[e];
        if (c > first) second = first, first = c;
        else second = std::max(second, c);
      }
      s.group[g] = op.group_score == GroupScore::kMax ? first : first + (per_group > 1 ? second : 0.0f);
    }
    best(s.group, op.groups, op.top_groups, s.group_order);
    std::sort(s.group_order, s.group_order + op.top_groups);
    for (int64_t g = 0; g < op.groups; g++)
      if (!std::binary_search(s.group_order, s.group_order + op.top_groups, static_cast<int32_t>(g)))
        std::fill_n(s.choice + g * per_group, per_group, -INFINITY);
  }
  best(s.choice, experts, top_k, s.order);
  float sum = 0;
  for (int64_t k = 0; k < top_k; k++) sum += s.score[s.order[k]];
  for (int64_t k = 0; k < top_k; k++) {
    op.ids.ptr<int32_t>(t)[k] = s.order[k];
    const float w = s.score[s.order[k]];
    op.weights.f32(t)[k] = (op.normalise ? w / (sum + 1e-20f) : w) * op.routed_scale;
  }
}

}  // namespace

void CpuBackend::moe_route(const MoeRoute& op) {
  const int64_t experts = op.logits.cols(), tokens = op.logits.rows();
  CHECK(op.groups >= 1 && experts % op.groups == 0 && op.top_groups >= 1 && op.top_groups <= op.groups);
  CHECK(op.ids.cols() <= experts && op.weights.cols() == op.ids.cols() && op.ids.rows() == tokens && op.weights.rows() == tokens);
  CHECK(op.ids.dtype == Dtype::kI32 && op.ids.stride[1] == 1 && op.weights.stride[1] == 1 && op.logits.stride[1] == 1);
  CHECK(!op.bias.valid() || op.bias.cols() == experts);
  reserve_scratch(route_scratch_floats(experts, op.groups));
  pool_.parallel_for(tokens, std::max<int64_t>(1, 1024 / experts), [&](int64_t begin, int64_t end, int worker) {
    const RouteScratch s = route_scratch(scratch(worker), experts, op.groups);
    for (int64_t t = begin; t < end; t++) route_token(op, t, s);
  });
}

// x has a row per token (x_rows names it for every pair) or per pair; out has a row per pair.
void CpuBackend::published_product(const ExpertGroups& groups, std::span<const Expert> experts, bool down, const float* x,
                                   const int32_t* x_rows, int64_t x_stride, float* out) {
  constexpr int64_t kRowsPerPiece = 32;
  const int64_t rows = down ? experts[0].down.out : experts[0].up.out, pieces = (rows + kRowsPerPiece - 1) / kRowsPerPiece;
  pool_.parallel_for(groups.count * pieces, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t e = groups.active[i / pieces], row = i % pieces * kRowsPerPiece, pair = groups.begin_of[e];
      const Expert& expert = experts[static_cast<size_t>(e)];
      MatmulArgs args{};
      args.w = matrix(down ? expert.down : expert.up);
      if (!down) args.gate = matrix(expert.gate);
      args.x = x_rows ? x : x + pair * x_stride, args.x_rows = x_rows ? x_rows + pair : nullptr, args.x_stride = x_stride;
      args.out = out + pair * rows, args.out_stride = rows;
      args.tokens = groups.begin_of[e + 1] - pair;
      args.scratch = scratch(worker);
      kernels_->matmul(args, row, std::min(rows, row + kRowsPerPiece));
    }
  });
}

// The pairs of an expert begin at a tile of packed activations of their own.
void CpuBackend::prepared_product(const ExpertGroups& groups, std::span<const Expert> experts, bool down, const float* x,
                                  const int32_t* x_rows, int64_t x_stride, float* out) {
  constexpr int64_t kPanelsPerPiece = 8;
  const Weight& shape = down ? experts[0].down : experts[0].up;
  const PanelKind kind = panel_kind(*shape.format);
  const int64_t rows = shape.out, in = shape.in, panels = (rows + kPanelRows - 1) / kPanelRows;
  const int64_t pieces = (panels + kPanelsPerPiece - 1) / kPanelsPerPiece, tile_bytes = kernels_->activation_bytes(kind, in);
  expert_tiles_.clear();
  int64_t tiles = 0, pairs = 0;
  for (int64_t i = 0; i < groups.count; i++) {
    const int64_t e = groups.active[i], count = groups.begin_of[e + 1] - groups.begin_of[e];
    expert_tiles_.push_back(tiles);
    tiles += (count + 15) / 16, pairs += count;
  }
  std::byte* packed = reserve_activations(tiles * tile_bytes);
  reserve_scratch(std::max(kPanelScratchFloats, in));
  const int64_t first_pair = groups.begin_of[groups.active[0]];
  pool_.parallel_for(pairs, std::max<int64_t>(1, 32768 / in), [&](int64_t begin, int64_t end, int worker) {
    // The active expert of pair `begin`; pairs of inactive experts do not exist.
    int64_t i = 0;
    while (i + 1 < groups.count && groups.begin_of[groups.active[i + 1]] - first_pair <= begin) i++;
    for (int64_t p = begin + first_pair; p < end + first_pair; p++) {
      while (groups.begin_of[groups.active[i] + 1] <= p) i++;
      const int64_t e = groups.active[i], row = p - groups.begin_of[e];
      const Expert& expert = experts[static_cast<size_t>(e)];
      kernels_->pack_row({.kind = kind,
                          .x = x + (x_rows ? x_rows[p] : p) * x_stride,
                          .in = in,
                          .columns = down ? expert.down.columns : expert.up.columns,
                          .scratch = scratch(worker),
                          .tile = packed + (expert_tiles_[static_cast<size_t>(i)] + row / 16) * tile_bytes,
                          .row = row % 16});
    }
  });
  pool_.parallel_for(groups.count * pieces, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t slot = i / pieces, e = groups.active[slot], panel = i % pieces * kPanelsPerPiece, pair = groups.begin_of[e];
      const Expert& expert = experts[static_cast<size_t>(e)];
      kernels_->panel_product({.kind = kind,
                               .table = shape.format->table4,
                               .w = (down ? expert.down : expert.up).data,
                               .gate = down ? nullptr : expert.gate.data,
                               .rows = rows,
                               .in = in,
                               .x = packed + expert_tiles_[static_cast<size_t>(slot)] * tile_bytes,
                               .tokens = groups.begin_of[e + 1] - pair,
                               .out = out + pair * rows,
                               .out_rows = nullptr,
                               .out_stride = rows,
                               .bias = nullptr,
                               .scratch = scratch(worker),
                               .batch_invariant = batch_invariant_},
                              panel, std::min(panels, panel + kPanelsPerPiece));
    }
  });
}

void CpuBackend::moe_experts(const MoeExperts& op) {
  if (op.experts.empty()) return;
  const int64_t dim = op.x.cols(), inner = op.experts[0].gate.out, top_k = op.ids.cols();
  const auto experts = static_cast<int64_t>(op.experts.size());
  CHECK(op.out.cols() == dim && op.out.rows() == op.x.rows() && op.ids.rows() == op.x.rows() && op.weights.rows() == op.x.rows());
  CHECK(op.x.stride[1] == 1 && op.out.stride[1] == 1 && op.ids.stride[1] == 1 && op.weights.stride[1] == 1);
  for (const Expert& e : op.experts)
    CHECK(e.up.prepared == op.experts[0].up.prepared && e.gate.prepared == e.up.prepared && e.down.prepared == e.up.prepared &&
          e.up.format == op.experts[0].up.format && e.gate.format == e.up.format && e.down.format == op.experts[0].down.format &&
          e.gate.out == inner && e.up.out == inner && e.down.in == inner && e.gate.in == dim && e.up.in == dim && e.down.out == dim);

  const int64_t chunk = moe_experts_chunk(op);
  reserve_scratch(std::max(matmul_scratch_floats(chunk, dim, true), matmul_scratch_floats(chunk, inner, false)));
  Arena::Scope scope(*op.scratch);
  Tensor hidden = op.scratch->alloc({chunk * top_k, inner});
  Tensor result = op.scratch->alloc({chunk * top_k, dim});
  int32_t* begin_of = op.scratch->alloc(Dtype::kI32, {experts + 1}).i32();  // pairs of expert e: [begin_of[e], begin_of[e + 1])
  int32_t* active = op.scratch->alloc(Dtype::kI32, {experts}).i32();
  int32_t* token_of = op.scratch->alloc(Dtype::kI32, {chunk * top_k}).i32();  // per pair, sorted by expert
  int32_t* pair_of = op.scratch->alloc(Dtype::kI32, {chunk * top_k}).i32();   // per (token, slot); -1: not an expert of ours

  for (int64_t first = 0; first < op.x.rows(); first += chunk) {
    const int64_t tokens = std::min(chunk, op.x.rows() - first);
    auto expert_at = [&](int64_t t, int64_t k) -> int64_t {
      const int64_t e = int64_t{op.ids.ptr<int32_t>(first + t)[k]} - op.first;
      return e >= 0 && e < experts ? e : -1;
    };
    std::fill_n(begin_of, experts + 1, 0);
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t k = 0; k < top_k; k++)
        if (int64_t e = expert_at(t, k); e >= 0) begin_of[e + 1]++;
    int64_t active_count = 0;
    for (int64_t e = 0; e < experts; e++) {
      if (begin_of[e + 1] > 0) active[active_count++] = static_cast<int32_t>(e);
      begin_of[e + 1] += begin_of[e];
    }
    if (active_count == 0) continue;
    // Fill: begin_of[e] moves to its expert's end, which is begin_of[e + 1] of before; shifted back below.
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t k = 0; k < top_k; k++) {
        const int64_t e = expert_at(t, k);
        const int32_t pair = e < 0 ? -1 : begin_of[e]++;
        pair_of[t * top_k + k] = pair;
        if (pair >= 0) token_of[pair] = static_cast<int32_t>(t);
      }
    for (int64_t e = experts; e > 0; e--) begin_of[e] = begin_of[e - 1];
    begin_of[0] = 0;

    // Both products run over (active expert, block of rows) pieces.
    const ExpertGroups groups{active, active_count, begin_of};
    if (op.experts[0].up.prepared) {
      prepared_product(groups, op.experts, false, op.x.f32(first), token_of, op.x.stride[0], hidden.f32());
      prepared_product(groups, op.experts, true, hidden.f32(), nullptr, inner, result.f32());
    } else {
      published_product(groups, op.experts, false, op.x.f32(first), token_of, op.x.stride[0], hidden.f32());
      published_product(groups, op.experts, true, hidden.f32(), nullptr, inner, result.f32());
    }
    for_rows(tokens, dim * top_k, [&](int64_t t) {
      for (int64_t k = 0; k < top_k; k++)
        if (const int32_t pair = pair_of[t * top_k + k]; pair >= 0)
          kernels_->add_scaled(result.f32(pair), op.weights.f32(first + t)[k], dim, op.out.f32(first + t));
    });
  }
}

}  // namespace dg
