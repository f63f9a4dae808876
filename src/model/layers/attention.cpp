#include "model/layers/attention.h"

#include <cmath>

#include "model/split.h"

namespace dg {

void Rotary::declare(WeightStore& store, const RopeConfig& config, int64_t dim) {
  RopeTable table = make_rope_table(config, dim);
  magnitude = table.magnitude;
  store.constant(&inv_freq, std::move(table.inv_freq));
}

namespace {

// Where an attention matrix can be cut, when it has to be.
WeightCuts cuts_of(const WeightStore& store, const ModelConfig& config, const std::string& name, int64_t out, int64_t in) {
  return config.parallel.size == 1 ? WeightCuts{} : store.cuts(name, out, in, WeightClass::kAttention);
}

}  // namespace

void GqaAttention::declare(WeightStore& store, const std::string& prefix, const ModelConfig& config, Options options) {
  head_dim = config.head_dim;
  const int64_t q_dim = config.heads * head_dim, kv_dim = config.kv_heads * head_dim;
  const HeadShare share = share_heads(store, config,
                                      {{head_dim, cuts_of(store, config, prefix + "q_proj.weight", q_dim, config.hidden).rows},
                                       {head_dim, cuts_of(store, config, prefix + "k_proj.weight", kv_dim, config.hidden).rows, true},
                                       {head_dim, cuts_of(store, config, prefix + "v_proj.weight", kv_dim, config.hidden).rows, true},
                                       {head_dim, cuts_of(store, config, prefix + "o_proj.weight", config.hidden, q_dim).columns}});
  heads = share.q.count;
  kv_heads = share.kv.count;
  if (heads == 0) return;
  eps = config.rms_eps;
  scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  const WeightPart q_rows = share.q.rows(head_dim), kv_rows = share.kv.rows(head_dim);
  store.matrix(&q, prefix + "q_proj.weight", q_dim, config.hidden, WeightClass::kAttention, WeightUse::kProduct, q_rows);
  store.matrix(&k, prefix + "k_proj.weight", kv_dim, config.hidden, WeightClass::kAttention, WeightUse::kProduct, kv_rows);
  store.matrix(&v, prefix + "v_proj.weight", kv_dim, config.hidden, WeightClass::kAttention, WeightUse::kProduct, kv_rows);
  store.matrix(&o, prefix + "o_proj.weight", config.hidden, q_dim, WeightClass::kAttention, WeightUse::kProduct, share.q.columns(head_dim));
  if (options.qkv_bias) {
    store.vector(&q_bias, prefix + "q_proj.bias", q_dim, q_rows.first_row, q_rows.rows);
    store.vector(&k_bias, prefix + "k_proj.bias", kv_dim, kv_rows.first_row, kv_rows.rows);
    store.vector(&v_bias, prefix + "v_proj.bias", kv_dim, kv_rows.first_row, kv_rows.rows);
  }
  if (options.o_bias) partial_bias(store, &o_bias, prefix + "o_proj.bias", config);
  if (options.head_norm) {
    store.vector(&q_norm, prefix + "q_norm.weight", head_dim);
    store.vector(&k_norm, prefix + "k_norm.weight", head_dim);
  }
}

void GqaAttention::register_cache(CacheLayout& layout, const std::string& name) {
  k_part = layout.add(name + ".k", kv_heads * head_dim);
  v_part = layout.add(name + ".v", kv_heads * head_dim);
}

Tensor GqaAttention::forward(Ctx& c, const Batch& batch, Tensor x, const Rotary& rotary) const {
  Tensor out = c.arena.alloc({x.rows(), o.out});
  Arena::Scope scope(c.arena);
  const auto [queries, keys, values] = linear(c, x, {{q, q_bias}, {k, k_bias}, {v, v_bias}});
  Tensor q_heads = queries.split_last(heads);
  c.backend.rope_kv_write({.q = q_heads,
                           .k = keys,
                           .v = values,
                           .q_weight = q_norm,
                           .k_weight = k_norm,
                           .eps = eps,
                           .positions = batch.positions,
                           .inv_freq = rotary.inv_freq,
                           .slots = batch.slots,
                           .magnitude = rotary.magnitude,
                           .k_cache = c.kv.part(k_part),
                           .v_cache = c.kv.part(v_part)});
  Tensor attended = c.arena.alloc({x.rows(), heads, head_dim});
  c.backend.attention({.out = attended,
                       .q = q_heads,
                       .k_cache = c.kv.part(k_part),
                       .v_cache = c.kv.part(v_part),
                       .sequences = batch.sequences,
                       .kv_heads = static_cast<int>(kv_heads),
                       .scale = scale,
                       .scratch = &c.arena});
  c.backend.linear({.out = out, .x = attended.reshaped({x.rows(), heads * head_dim}), .weight = o, .bias = o_bias});
  return out;
}

// The norms of the q and kv latents use 1e-6 whatever rms_norm_eps says (transformers; all released configs agree).
static constexpr float kLatentEps = 1e-6f;

void MlaBlock::declare(WeightStore& store, const std::string& prefix, const ModelConfig& config) {
  dims = config.mla;
  const int64_t q_dim = dims.nope + dims.rope, kv_dim = dims.nope + dims.v_dim;
  const std::string query = prefix + (dims.q_lora > 0 ? "q_b_proj.weight" : "q_proj.weight");
  const int64_t query_in = dims.q_lora > 0 ? dims.q_lora : config.hidden;
  const Share share =
      share_heads(store, config,
                  {{q_dim, cuts_of(store, config, query, config.heads * q_dim, query_in).rows},
                   {kv_dim, cuts_of(store, config, prefix + "kv_b_proj.weight", config.heads * kv_dim, dims.kv_lora).rows},
                   {dims.v_dim, cuts_of(store, config, prefix + "o_proj.weight", config.hidden, config.heads * dims.v_dim).columns}})
          .q;
  heads = share.count;
  if (heads == 0) return;
  scale = mla_softmax_scale(config.rope, q_dim);
  if (dims.q_lora > 0) {
    store.matrix(&q_a, prefix + "q_a_proj.weight", dims.q_lora, config.hidden, WeightClass::kAttention);
    store.vector(&q_norm, prefix + "q_a_layernorm.weight", dims.q_lora);
    store.matrix(&q_b, prefix + "q_b_proj.weight", config.heads * q_dim, dims.q_lora, WeightClass::kAttention, WeightUse::kProduct,
                 share.rows(q_dim));
    if (config.attention_bias) store.vector(&q_a_bias, prefix + "q_a_proj.bias", dims.q_lora);
  } else {
    store.matrix(&q, prefix + "q_proj.weight", config.heads * q_dim, config.hidden, WeightClass::kAttention, WeightUse::kProduct,
                 share.rows(q_dim));
  }
  store.matrix(&kv_a, prefix + "kv_a_proj_with_mqa.weight", dims.kv_lora + dims.rope, config.hidden, WeightClass::kAttention);
  store.vector(&kv_norm, prefix + "kv_a_layernorm.weight", dims.kv_lora);
  store.matrix(&kv_b, prefix + "kv_b_proj.weight", config.heads * (dims.nope + dims.v_dim), dims.kv_lora, WeightClass::kAttention,
               WeightUse::kRows, share.rows(dims.nope + dims.v_dim));
  store.matrix(&o, prefix + "o_proj.weight", config.hidden, config.heads * dims.v_dim, WeightClass::kAttention, WeightUse::kProduct,
               share.columns(dims.v_dim));
  if (config.attention_bias) {
    store.vector(&kv_a_bias, prefix + "kv_a_proj_with_mqa.bias", dims.kv_lora + dims.rope);
    partial_bias(store, &o_bias, prefix + "o_proj.bias", config);
  }
}

void MlaBlock::register_cache(CacheLayout& layout, const std::string& name) {
  part = layout.add(name + ".latent", dims.kv_lora + dims.rope);
}

Tensor MlaBlock::forward(Ctx& c, const Batch& batch, Tensor x, const Rotary& rotary) const {
  Tensor out = c.arena.alloc({x.rows(), o.out});
  Arena::Scope scope(c.arena);
  const bool low_rank = dims.q_lora > 0;
  // The low-rank query, or the queries themselves; (tokens, kv_lora + rope).
  const auto [first, latent] = linear(c, x, {low_rank ? LinearInput{q_a, q_a_bias} : LinearInput{q, {}}, {kv_a, kv_a_bias}});
  auto rotary_part = [&](Tensor queries) { return queries.split_last(heads).slice(2, dims.nope, dims.rope); };
  c.backend.latent_kv_write({.latent = latent,
                             .weight = kv_norm,
                             .q_low = low_rank ? first : Tensor{},
                             .q_low_weight = q_norm,
                             .q_pe = low_rank ? Tensor{} : rotary_part(first),
                             .eps = kLatentEps,
                             .positions = batch.positions,
                             .inv_freq = rotary.inv_freq,
                             .slots = batch.slots,
                             .magnitude = rotary.magnitude,
                             .cache = c.kv.part(part)});
  Tensor queries = first;
  if (low_rank) {
    queries = linear(c, first, q_b);
    c.backend.rope({.x = rotary_part(queries),
                    .positions = batch.positions,
                    .inv_freq = rotary.inv_freq,
                    .interleaved = true,
                    .magnitude = rotary.magnitude});
  }
  Tensor q_heads = queries.split_last(heads);
  Tensor attended = c.arena.alloc({x.rows(), heads, dims.v_dim});
  c.backend.mla_attention({.out = attended,
                           .q = q_heads,
                           .cache = c.kv.part(part),
                           .kv_b = kv_b,
                           .sequences = batch.sequences,
                           .nope = static_cast<int>(dims.nope),
                           .rope = static_cast<int>(dims.rope),
                           .v_dim = static_cast<int>(dims.v_dim),
                           .kv_lora = static_cast<int>(dims.kv_lora),
                           .scale = scale,
                           .scratch = &c.arena});
  c.backend.linear({.out = out, .x = attended.reshaped({x.rows(), heads * dims.v_dim}), .weight = o, .bias = o_bias});
  return out;
}

}  // namespace dg
