// Bytes an op takes from its arena, at most, on any backend: what a dry run reserves so that the real run never runs out.
// Tensors may carry addresses that must not be read (dry run); the host data of a step (sequence slices) is valid.
// Pieces whose size does not depend on the batch are not here: backends own them.
#pragma once
#include <cstddef>
#include <cstdint>

#include "device/ops.h"

namespace dg {

// The default body keeps the gate: tokens x inner floats.
size_t linear_glu_scratch_bytes(const LinearGlu& op);

// None on the CPU: its kernels work tile by tile.
size_t attention_scratch_bytes(const Attention& op);

// Per decode row and head a query and a result in latent space (2 kv_lora + rope floats). Independent of kv_len.
size_t mla_attention_scratch_bytes(const MlaAttention& op);

// Tokens of a call are handled in chunks so that the intermediate results of the experts stay below about 256 MiB (or 32
// tokens); a token's result does not depend on its chunk.
int64_t moe_experts_chunk(const MoeExperts& op);
size_t moe_experts_scratch_bytes(const MoeExperts& op);

}  // namespace dg
