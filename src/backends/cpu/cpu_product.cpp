// Products with prepared weights: activations are packed once per op, then the threads share out the panels.
#include <algorithm>
#include <cstring>

#include "backends/cpu/cpu_backend.h"

namespace dg {
namespace {

constexpr int64_t kTokenTile = 16;  // rows of activations packed together

int64_t tiles_of(int64_t rows) { return (rows + kTokenTile - 1) / kTokenTile; }

PanelProduct product_args(const Weight& w, const Weight* gate) {
  PanelProduct args{};
  args.kind = panel_kind(*w.format), args.table = w.format->table4;
  args.w = w.data, args.gate = gate ? gate->data : nullptr;
  args.rows = w.out, args.in = w.in;
  return args;
}

}  // namespace

bool same_columns(const Weight& a, const Weight& b) {
  if (!a.columns || !b.columns) return a.columns == b.columns;
  return std::memcmp(a.columns, b.columns, static_cast<size_t>(a.in) * sizeof(int32_t)) == 0;
}

std::byte* CpuBackend::reserve_activations(int64_t bytes) {
  if (static_cast<size_t>(bytes) > activations_.bytes()) {
    activations_ = {};
    auto memory = HugeMemory::allocate(static_cast<size_t>(bytes) * 5 / 4, "packed activations of the CPU kernels");
    CHECK(memory.ok()) << memory.error().message;
    activations_ = std::move(memory).value();
  }
  return activations_.data();
}

void CpuBackend::pack(const Weight& w, const float* x, const int32_t* x_rows, int64_t x_stride, int64_t tokens) {
  const PanelKind kind = panel_kind(*w.format);
  const int64_t tile_bytes = kernels_->activation_bytes(kind, w.in);
  std::byte* tiles = reserve_activations(tiles_of(tokens) * tile_bytes);
  if (w.columns) reserve_scratch(w.in);
  // A few microseconds of work are not worth waking the other threads.
  constexpr int64_t kElementsPerPiece = 32768;
  pool_.parallel_for(tokens, std::max<int64_t>(1, kElementsPerPiece / w.in), [&](int64_t begin, int64_t end, int worker) {
    for (int64_t t = begin; t < end; t++)
      kernels_->pack_row({.kind = kind,
                          .x = x + (x_rows ? x_rows[t] : t) * x_stride,
                          .in = w.in,
                          .columns = w.columns,
                          .scratch = scratch(worker),
                          .tile = tiles + t / kTokenTile * tile_bytes,
                          .row = t % kTokenTile});
  });
}

void CpuBackend::product(const Tensor& out, const Tensor& x, const Weight& w, const Weight* gate, const float* bias) {
  CHECK(!gate || same_columns(*gate, w));
  const int64_t tokens = x.rows(), panels = (w.out + kPanelRows - 1) / kPanelRows;
  if (tokens == 0) return;
  reserve_scratch(kPanelScratchFloats);
  pack(w, x.f32(), nullptr, x.stride[0], tokens);
  PanelProduct args = product_args(w, gate);
  args.x = activations_.data(), args.tokens = tokens;
  args.out = out.f32(), args.out_stride = out.stride[0];
  args.bias = bias;
  args.batch_invariant = batch_invariant_;
  // Multiples of the four panels of a pass; small enough that the last piece of a slow thread does not keep the others waiting.
  const int64_t quads = (panels + 3) / 4, work = 64 * w.in * tokens * (gate ? 2 : 1);
  const int64_t grain = std::max<int64_t>({1, (int64_t{1} << 18) / work, quads / (16 * pool_.threads())});
  pool_.parallel_for(quads, grain, [&](int64_t begin, int64_t end, int worker) {
    PanelProduct piece = args;
    piece.scratch = scratch(worker);
    kernels_->panel_product(piece, begin * 4, std::min(panels, end * 4));
  });
}

}  // namespace dg
