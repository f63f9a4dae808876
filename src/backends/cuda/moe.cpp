// Mixture of experts: the router, and the experts without a word from the host. The pairs (token, slot) of a chunk of tokens are sorted
// by expert on the device; work items of an expert and up to 64 of its pairs go through grouped products (gate and up with SiLU, then
// down); the results are added up in the order of the slots. Grids are upper bounds, so that the same launches serve any routing and
// can be captured. Each expert's weights are read once per item. Up to 8 tokens take two kernels instead: product_experts.cpp.
#include <algorithm>
#include <cstring>

#include "backends/cuda/products.h"
#include "device/scratch.h"

namespace dg::cuda {
namespace {

constexpr int64_t kMostChunkTokens = 4096;
constexpr int64_t kMostChunkBytes = int64_t{512} << 20;  // of the intermediate results of a chunk, or 32 tokens

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Pieces of one workspace.
class Carver {
 public:
  explicit Carver(void* memory = nullptr) : memory_(static_cast<std::byte*>(memory)) {}
  template <class T>
  T* take(int64_t n) {
    auto* piece = reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(n * static_cast<int64_t>(sizeof(T)), 256);
    return memory_ ? piece : nullptr;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  std::byte* memory_;
  int64_t used_ = 0;
};

bool same_published(const Weight& a, const Weight& b) { return published(*a.format) == published(*b.format) && a.prepared == b.prepared; }
bool is_f32(const Weight& w) { return published(*w.format) == Published::kF32; }

}  // namespace

void CudaBackend::moe_route(const MoeRoute& op) {
  const int64_t tokens = op.logits.rows(), experts = op.logits.cols(), top_k = op.ids.cols();
  CHECK(op.ids.rows() == tokens && op.weights.rows() == tokens && op.weights.cols() == top_k && top_k <= experts);
  CHECK(experts <= kMostRouteExperts && op.groups >= 1 && experts % op.groups == 0) << experts << " experts in " << op.groups << " groups";
  CHECK(op.ids.dtype == Dtype::kI32 && (top_k == 1 || (op.ids.stride[1] == 1 && op.weights.stride[1] == 1)) &&
        (experts == 1 || op.logits.stride[1] == 1));
  if (tokens == 0) return;
  launch_route({.ids = op.ids.ptr<int32_t>(),
                .ld_ids = op.ids.stride[0],
                .weights = op.weights.f32(),
                .ld_weights = op.weights.stride[0],
                .logits = op.logits.f32(),
                .ld_logits = op.logits.stride[0],
                .bias = op.bias.valid() ? op.bias.f32() : nullptr,
                .tokens = static_cast<int32_t>(tokens),
                .experts = static_cast<int32_t>(experts),
                .top_k = static_cast<int32_t>(top_k),
                .groups = op.groups,
                .top_groups = std::min(op.top_groups, op.groups),
                .sigmoid = op.score == RouterScore::kSigmoid,
                .top_two_sum = op.group_score == GroupScore::kTopTwoSum,
                .normalise = op.normalise,
                .routed_scale = op.routed_scale},
               stream_);
}

void CudaBackend::moe_experts(const MoeExperts& op) {
  Products::of(*this).moe_experts(op);
  join_beside();
}

// Uploaded when it differs from the table that was made of the same span before.
const ExpertMatrices* CudaBackend::Products::expert_table(const void* key, const std::vector<ExpertMatrices>& host) {
  Table& table = tables[key];
  const size_t bytes = host.size() * sizeof(ExpertMatrices);
  if (table.host.size() == host.size() && std::memcmp(table.host.data(), host.data(), bytes) == 0)
    return static_cast<const ExpertMatrices*>(table.device);
  if (bytes > table.bytes) {
    backend.synchronise();
    cudaFree(table.device);
    DG_CUDA(cudaMalloc(&table.device, bytes));
    table.bytes = bytes;
  }
  backend.upload(table.device, host.data(), bytes);
  table.host = host;
  return static_cast<const ExpertMatrices*>(table.device);
}

void CudaBackend::Products::moe_experts(const MoeExperts& op) {
  if (op.experts.empty() || op.x.rows() == 0) return;
  const Expert& any = op.experts[0];
  const int64_t dim = op.x.cols(), inner = any.gate.out, top_k = op.ids.cols();
  const auto experts = static_cast<int64_t>(op.experts.size());
  CHECK(op.out.cols() == dim && op.out.rows() == op.x.rows() && op.ids.rows() == op.x.rows() && op.weights.rows() == op.x.rows());
  CHECK((dim == 1 || (op.x.stride[1] == 1 && op.out.stride[1] == 1)) &&
        (top_k == 1 || (op.ids.stride[1] == 1 && op.weights.stride[1] == 1)));
  CHECK(experts <= kMostLocalExperts && op.ids.dtype == Dtype::kI32);
  if (fp8_experts(op)) return;

  // What has to be decoded first, and which products cannot be fused.
  bool decode_up = false, decode_down = false, columns = false;
  for (const Expert& e : op.experts) {
    CHECK(e.gate.out == inner && e.up.out == inner && e.down.in == inner && e.gate.in == dim && e.up.in == dim && e.down.out == dim);
    CHECK(same_published(e.gate, any.gate) && same_published(e.up, any.up) && same_published(e.down, any.down))
        << "experts of one layer differ";
    decode_up |= !in_place(e.gate) || !in_place(e.up) || published(*e.gate.format) != published(*e.up.format);
    decode_down |= !in_place(e.down);
    columns |= e.gate.columns || e.up.columns || e.down.columns;
  }
  const bool f32_up = is_f32(any.up), f32_down = is_f32(any.down);
  CHECK(is_f32(any.gate) == f32_up) << "gate and up: one f32, one not";
  const bool fused = !columns && !f32_up && !f32_down;

  std::vector<ExpertMatrices> host(static_cast<size_t>(experts));
  WeightGeometry up_geometry{}, down_geometry{};
  {
    const int64_t up_bytes = decode_up ? std::max(decoded_bytes(any.gate), decoded_bytes(any.up)) : 0;
    const int64_t down_bytes = decode_down ? decoded_bytes(any.down) : 0, bytes = experts * (2 * up_bytes + down_bytes);
    auto* space = bytes > 0 ? static_cast<std::byte*>(backend.workspace(Workspace::kWeights, static_cast<size_t>(bytes))) : nullptr;
    for (size_t e = 0; e < host.size(); e++) {
      const Expert& from = op.experts[e];
      const ProductWeight gate = weight(from.gate, space, decode_up), up = weight(from.up, space + up_bytes, decode_up),
                          down = weight(from.down, space + 2 * up_bytes, decode_down);
      host[e] = {{gate.data, up.data, down.data}, {from.gate.columns, from.up.columns, from.down.columns}};
      up_geometry = up.geometry, down_geometry = down.geometry;
      space += 2 * up_bytes + down_bytes;
    }
  }
  const ExpertMatrices* table = expert_table(op.experts.data(), host);

  const int64_t up_in = up_geometry.padded_in(), down_in = down_geometry.padded_in();
  const int64_t pair_bytes = down_in * 2 + dim * 4 + (fused ? 0 : inner * 8 + up_in * 2) + 16;
  const int64_t chunk =
      std::min({op.x.rows(), kMostChunkTokens, std::max<int64_t>(32, kMostChunkBytes / (top_k * pair_bytes + up_in * 2))});

  for (int64_t first = 0; first < op.x.rows(); first += chunk) {
    const int64_t tokens = std::min(chunk, op.x.rows() - first), pairs = tokens * top_k;
    const int tiles_n = tokens <= 8 ? 1 : pairs <= 6 * experts ? 2 : 8, item_pairs = 8 * tiles_n;
    const int64_t most_items = std::min(pairs, pairs / item_pairs + std::min(pairs, experts));

    struct {
      int32_t *token_of, *pair_of, *pair_expert, *counts;
      GroupedItem* items;
      std::byte *x, *hidden;  // bf16
      float *gate, *up, *y;
    } p{};
    const auto carve = [&](Carver c) {
      p.token_of = c.take<int32_t>(pairs), p.pair_of = c.take<int32_t>(pairs), p.pair_expert = c.take<int32_t>(pairs);
      p.counts = c.take<int32_t>(2), p.items = c.take<GroupedItem>(most_items);
      p.x = c.take<std::byte>((fused ? tokens : pairs) * up_in * 2), p.hidden = c.take<std::byte>(pairs * down_in * 2);
      if (!fused) p.gate = c.take<float>(pairs * inner), p.up = c.take<float>(pairs * inner);
      p.y = c.take<float>(pairs * dim);
      return c.used();
    };
    carve(Carver(backend.workspace(Workspace::kExperts, carve(Carver()))));
    const cudaStream_t stream = backend.stream_;

    launch_sort_pairs({.ids = op.ids.ptr<int32_t>(first),
                       .ld_ids = op.ids.stride[0],
                       .tokens = static_cast<int32_t>(tokens),
                       .top_k = static_cast<int32_t>(top_k),
                       .first = op.first,
                       .experts = static_cast<int32_t>(experts),
                       .item_pairs = item_pairs,
                       .token_of = p.token_of,
                       .pair_of = p.pair_of,
                       .pair_expert = fused ? nullptr : p.pair_expert,
                       .items = p.items,
                       .counts = p.counts},
                      stream);

    const auto grouped = [&](const WeightGeometry& g, bool glu, int matrix, const void* x, const int32_t* row_of, void* to, int64_t ld_to) {
      GroupedArgs a{
          .experts = table, .items = p.items, .item_count = p.counts, .most_items = static_cast<int32_t>(most_items), .row_of = row_of};
      a.matrix = matrix;
      a.aux_offset = g.aux_offset, a.tile_bytes = g.tile_bytes;
      a.out = static_cast<int32_t>(g.out), a.chunks = static_cast<int32_t>(g.chunks), a.tiles = static_cast<int32_t>(g.tiles);
      a.x = x, a.ldx = static_cast<uint32_t>(g.padded_in());
      a.to = to, a.ld_to = ld_to;
      a.early = !decode_up && !decode_down;
      a.row_tiles = choose_grouped_row_tiles(g, glu, tiles_n, most_items, backend.multiprocessors());
      launch_grouped({.kind = g.kind, .glu = glu, .tiles_n = tiles_n}, a, stream);
    };
    const auto pair_f32 = [&](int matrix, const int32_t* row_of, const float* x, int64_t ldx, int64_t in, int64_t out, float* to) {
      launch_pair_f32({.experts = table,
                       .matrix = matrix,
                       .pair_expert = p.pair_expert,
                       .row_of = row_of,
                       .pair_count = p.counts + 1,
                       .most_pairs = pairs,
                       .x = x,
                       .ldx = ldx,
                       .in = in,
                       .out = out,
                       .to = to,
                       .ld = out},
                      stream);
    };
    const auto pair_rows = [&](int matrix, const int32_t* row_of, const float* x, int64_t ldx, int64_t in, void* to, int64_t ld) {
      launch_pair_rows({.experts = table,
                        .matrix = matrix,
                        .pair_expert = p.pair_expert,
                        .row_of = row_of,
                        .pair_count = p.counts + 1,
                        .most_pairs = pairs,
                        .x = x,
                        .ldx = ldx,
                        .in = in,
                        .to = to,
                        .ld = ld},
                       stream);
    };

    const float* x = op.x.f32(first);
    const int64_t ldx = op.x.stride[0];
    if (fused) {
      launch_to_bf16(x, ldx, tokens, dim, nullptr, p.x, up_in, stream);
      if (down_in != inner) DG_CUDA(cudaMemsetAsync(p.hidden, 0, static_cast<size_t>(pairs * down_in) * 2, stream));
      grouped(up_geometry, true, 0, p.x, p.token_of, p.hidden, down_in);
      grouped(down_geometry, false, 2, p.hidden, nullptr, p.y, dim);
    } else {
      for (int matrix : {0, 1}) {
        float* to = matrix == 0 ? p.gate : p.up;
        if (f32_up) {
          pair_f32(matrix, p.token_of, x, ldx, dim, inner, to);
        } else {
          pair_rows(matrix, p.token_of, x, ldx, dim, p.x, up_in);
          grouped(up_geometry, false, matrix, p.x, nullptr, to, inner);
        }
      }
      launch_pair_silu_mul(p.gate, p.up, inner, inner, p.counts + 1, pairs, stream);
      if (f32_down) {
        pair_f32(2, nullptr, p.gate, inner, inner, dim, p.y);
      } else {
        pair_rows(2, nullptr, p.gate, inner, inner, p.hidden, down_in);
        grouped(down_geometry, false, 2, p.hidden, nullptr, p.y, dim);
      }
    }
    backend.join_beside();
    launch_combine(op.out.f32(first), op.out.stride[0], op.weights.f32(first), op.weights.stride[0], p.pair_of, static_cast<int32_t>(top_k),
                   p.y, dim, tokens, dim, stream);
  }
}

}  // namespace dg::cuda
