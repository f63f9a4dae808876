#include "backends/profile/op_shape.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace dg {
namespace {

// Attention reads a 16-bit or 8-bit cache: its products can be made in bf16.
MathType cache_math(const PagedCache& cache) { return cache.data.dtype == Dtype::kF32 ? MathType::kF32 : MathType::kBf16; }

void add_sequences(OpShape& shape, std::span<const SequenceSlice> sequences) {
  shape.decode = !sequences.empty();
  for (const SequenceSlice& s : sequences) {
    shape.context += s.kv_len;
    shape.decode = shape.decode && s.decode;
  }
}

OpShape rows_op(const char* name, const Tensor& t) {
  OpShape shape{.op = name, .rows = t.rows()};
  for (int d = 1; d < t.rank && d < 4; d++) shape.dims[d - 1] = t.dim(d);
  return shape;
}

OpShape product(const char* name, const Weight& w, int64_t rows) {
  return {.op = name, .format = w.format, .type = math_type_of(*w.format), .dims = {w.in, w.out}, .rows = rows};
}

std::string range(const char* name, int64_t low, int64_t high) {
  if (high <= 0) return "";
  return low == high ? fmt::format(" {}={}", name, low) : fmt::format(" {}={}-{}", name, low, high);
}

}  // namespace

int size_class(int64_t n) { return n <= 1 ? static_cast<int>(std::max<int64_t>(n, 0)) : std::bit_width(static_cast<uint64_t>(n - 1)) + 1; }

bool OpShape::operator==(const OpShape& o) const {
  // Names are literals of this file and of the dtype table: one address each.
  return op == o.op && format == o.format && cache == o.cache && decode == o.decode && std::memcmp(dims, o.dims, sizeof dims) == 0 &&
         size_class(rows) == size_class(o.rows) && size_class(context) == size_class(o.context);
}

size_t OpShape::hash() const {
  uint64_t h = reinterpret_cast<uintptr_t>(op) ^ reinterpret_cast<uintptr_t>(format) * 3;
  for (int64_t d : dims) h = (h ^ static_cast<uint64_t>(d)) * 0x9e3779b97f4a7c15u;
  h = (h ^ static_cast<uint64_t>(size_class(rows) * 64 + size_class(context))) * 0x9e3779b97f4a7c15u;
  return static_cast<size_t>(h ^ h >> 29);
}

OpShape shape_of(const Embed& op) { return {.op = "embed", .format = op.table.format, .dims = {op.table.in}, .rows = op.out.rows()}; }
OpShape shape_of(const Linear& op) { return product("linear", op.weight, op.x.rows()); }
OpShape shape_of(const LinearSeveral& op) {
  OpShape shape = product("linear_several", op.parts[0].weight, op.x.rows());
  for (int i = 1; i < op.count; i++) shape.dims[1 + i] = op.parts[i].weight.out;
  return shape;
}
OpShape shape_of(const LinearGlu& op) { return product("linear_glu", op.gate, op.x.rows()); }
OpShape shape_of(const RmsNorm& op) { return rows_op("rms_norm", op.x); }
OpShape shape_of(const AllReduce& op) { return rows_op("all_reduce", op.x); }
OpShape shape_of(const AddRmsNorm& op) { return rows_op("add_rms_norm", op.out); }
OpShape shape_of(const Rope& op) { return rows_op("rope", op.x); }
OpShape shape_of(const HeadNormRope& op) { return rows_op("head_norm_rope", op.x); }
OpShape shape_of(const ActMul& op) { return rows_op("act_mul", op.out); }
OpShape shape_of(const Add& op) { return rows_op("add", op.out); }
OpShape shape_of(const GatherRows& op) { return rows_op("gather_rows", op.out); }
OpShape shape_of(const Fill& op) { return rows_op("fill", op.out); }
OpShape shape_of(const Copy& op) { return rows_op("copy", op.out); }

OpShape shape_of(const KvWrite& op) {
  OpShape shape = rows_op("kv_write", op.values);
  shape.cache = dtype_name(op.cache.data.dtype);
  return shape;
}

OpShape shape_of(const RopeKvWrite& op) {
  OpShape shape{.op = "rope_kv_write", .cache = dtype_name(op.k_cache.data.dtype), .rows = op.q.rows()};
  shape.dims[0] = op.q.dim(1), shape.dims[1] = op.k.cols() / op.q.cols(), shape.dims[2] = op.q.cols();
  return shape;
}

OpShape shape_of(const LatentKvWrite& op) {
  OpShape shape = rows_op("latent_kv_write", op.latent);
  if (op.q_low.valid()) shape.dims[1] = op.q_low.cols();
  shape.cache = dtype_name(op.cache.data.dtype);
  return shape;
}

OpShape shape_of(const Attention& op) {
  OpShape shape{.op = "attention", .cache = dtype_name(op.k_cache.data.dtype), .type = cache_math(op.k_cache), .rows = op.q.rows()};
  shape.dims[0] = op.q.dim(1), shape.dims[1] = op.kv_heads, shape.dims[2] = op.q.dim(2);
  add_sequences(shape, op.sequences);
  return shape;
}

OpShape shape_of(const MlaAttention& op) {
  OpShape shape{.op = "mla_attention",
                .format = op.kv_b.format,
                .cache = dtype_name(op.cache.data.dtype),
                .type = cache_math(op.cache),
                .rows = op.q.rows()};
  shape.dims[0] = op.q.dim(1), shape.dims[1] = op.kv_lora, shape.dims[2] = op.rope;
  add_sequences(shape, op.sequences);
  return shape;
}

OpShape shape_of(const MoeRoute& op) {
  OpShape shape{.op = "moe_route", .rows = op.logits.rows()};
  shape.dims[0] = op.logits.cols(), shape.dims[1] = op.ids.cols();
  return shape;
}

OpShape shape_of(const MoeExperts& op) {
  const Weight& gate = op.experts[0].gate;
  OpShape shape = product("moe_experts", gate, op.x.rows());
  shape.dims[2] = static_cast<int64_t>(op.experts.size()), shape.dims[3] = op.ids.cols();
  return shape;
}

OpShape shape_of(const AdjustLogits& op) { return rows_op("adjust_logits", op.logits); }
OpShape shape_of(const PickRows& op) { return rows_op("pick_rows", op.logits); }

std::string shape_label(const OpShape& s, int64_t low_rows, int64_t high_rows, int64_t low_context, int64_t high_context) {
  std::string label = s.op;
  std::string_view op = s.op;
  if (op == "attention" || op == "rope_kv_write") label += fmt::format(" {}/{}x{}", s.dims[0], s.dims[1], s.dims[2]);
  else if (op == "mla_attention") label += fmt::format(" {} heads {}+{}", s.dims[0], s.dims[1], s.dims[2]);
  else if (op == "moe_route") label += fmt::format(" {} top {}", s.dims[0], s.dims[1]);
  else if (op == "moe_experts") label += fmt::format(" {}x{}x{} top {}", s.dims[2], s.dims[0], s.dims[1], s.dims[3]);
  else
    for (size_t i = 0; i < 4 && s.dims[i] > 0; i++) label += fmt::format("{}{}", i ? "x" : " ", s.dims[i]);
  if (s.format) label += fmt::format(" {}", s.format->name);
  if (*s.cache) label += fmt::format(" {} cache", s.cache);
  if (s.decode) label += " decode";
  return label + range("m", low_rows, high_rows) + range("kv", low_context, high_context);
}

template <>
Cost measured_cost(const MoeExperts& op) {
  Cost cost = cost_of(op);
  // Long prefills use nearly all experts, as cost_of expects; short steps are counted, because their time hangs on it.
  const int64_t count = op.ids.rows() * op.ids.cols();
  const auto experts = static_cast<int64_t>(op.experts.size());
  if (count > 1024 || experts > 1024) return cost;
  uint64_t used[16] = {};
  for (int64_t t = 0; t < op.ids.rows(); t++)
    for (int64_t k = 0; k < op.ids.cols(); k++) {
      const int64_t expert = op.ids.i32(t)[k] - op.first;
      if (expert >= 0 && expert < experts) used[expert / 64] |= uint64_t{1} << expert % 64;
    }
  int active = 0;
  for (uint64_t word : used) active += std::popcount(word);
  const Expert& e = op.experts[0];
  cost.weight_bytes = static_cast<double>(active) * static_cast<double>(e.gate.bytes() + e.up.bytes() + e.down.bytes());
  return cost;
}

}  // namespace dg
