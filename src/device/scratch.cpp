#include "device/scratch.h"

#include <algorithm>

namespace dg {
namespace {

constexpr int64_t kMoeBytes = int64_t{256} << 20;
constexpr int64_t kMoeLeastTokens = 32;

// What Arena::alloc takes for n four-byte elements.
size_t arena_bytes(int64_t n) { return (static_cast<size_t>(n) * 4 + 63) / 64 * 64; }

}  // namespace

size_t linear_glu_scratch_bytes(const LinearGlu& op) { return arena_bytes(op.x.rows() * op.gate.out); }

size_t attention_scratch_bytes(const Attention&) { return 0; }

size_t mla_attention_scratch_bytes(const MlaAttention& op) {
  int64_t tokens = 0;
  for (const SequenceSlice& s : op.sequences)
    if (s.decode) tokens += s.q_len;
  const int64_t pairs = tokens * op.q.dim(1);
  return arena_bytes(pairs * (op.kv_lora + op.rope)) + arena_bytes(pairs * op.kv_lora) + arena_bytes(tokens);
}

int64_t moe_experts_chunk(const MoeExperts& op) {
  if (op.experts.empty()) return op.x.rows();
  const int64_t per_token = std::max<int64_t>(1, op.ids.cols() * (op.experts[0].gate.out + op.x.cols()) * 4);
  return std::min(op.x.rows(), std::max(kMoeLeastTokens, kMoeBytes / per_token));
}

size_t moe_experts_scratch_bytes(const MoeExperts& op) {
  if (op.experts.empty()) return 0;
  const int64_t pairs = moe_experts_chunk(op) * op.ids.cols(), experts = static_cast<int64_t>(op.experts.size());
  return arena_bytes(pairs * op.experts[0].gate.out) + arena_bytes(pairs * op.x.cols()) + arena_bytes(experts + 1) + arena_bytes(experts) +
         2 * arena_bytes(pairs);
}

}  // namespace dg
