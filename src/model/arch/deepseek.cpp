#include "model/arch/deepseek.h"

#include <fmt/core.h>

namespace dg {
namespace {

// One MTP module, stored as layer `layers + k` of the checkpoint. Its embed_tokens and shared_head.head are copies of the
// main model's (DeepSeek-V3 README_WEIGHTS.md), so the main ones are used.
struct MtpModule {
  Tensor embedding_norm, hidden_norm, head_norm;  // enorm, hnorm, shared_head.norm
  Weight combine;                                 // eh_proj (hidden, 2 * hidden), embedding half first
  DecoderLayer<MlaBlock> layer;
};

class DeepseekModel : public Model {
 public:
  DeepseekModel(const ModelConfig& config, WeightStore& store, MoeBlock::Routing routing, bool mtp) : config_(config) {
    if (config.mla.kv_lora == 0)
      store.fail(input_error(fmt::format("{}: kv_lora_rank is missing: this architecture uses MLA", config.origin)));
    decoder_.declare_ends(store, config, std::max<int64_t>(2, config.mla.rope));
    for (int64_t i = 0; i < config.layers; i++)
      declare_layer(store, decoder_.layers[static_cast<size_t>(i)], fmt::format("model.layers.{}.", i), config.is_moe_layer(i), routing);
    count_active(store);
    for (int64_t k = 0; k < config.mtp_modules; k++) {
      std::string prefix = fmt::format("model.layers.{}.", config.layers + k);
      if (!mtp || !store.has(prefix + "eh_proj.weight")) {  // published configs announce MTP even where it was stripped
        store.ignore_prefix(prefix);
        continue;
      }
      modules_.emplace_back(std::make_unique<MtpModule>());
      declare_mtp(store, *modules_.back(), prefix, routing);
    }
  }

  const ModelConfig& config() const override { return config_; }
  void register_cache(CacheLayout& layout) override {
    for (size_t i = 0; i < decoder_.layers.size(); i++) decoder_.layers[i].attention.register_cache(layout, fmt::format("layer.{}", i));
    for (size_t k = 0; k < modules_.size(); k++) modules_[k]->layer.attention.register_cache(layout, fmt::format("mtp.{}", k));
  }
  ForwardResult forward(Ctx& c, const Batch& batch) override { return decoder_.forward(c, batch, config_.rms_eps); }
  int64_t first_logit() const override { return decoder_.first_logit; }
  int64_t active_parameters() const override { return active_; }

  int mtp_modules() const override { return static_cast<int>(modules_.size()); }
  ForwardResult mtp_forward(Ctx& c, const Batch& batch, Tensor hidden) override {
    CHECK(!modules_.empty());
    const MtpModule& m = *modules_[0];
    float eps = config_.rms_eps;
    Tensor x = c.arena.alloc({batch.tokens(), config_.hidden}), normed = c.arena.alloc({batch.tokens(), config_.hidden});
    {
      Arena::Scope scope(c.arena);
      Tensor embedded = embed(c, batch.ids, decoder_.embedding);
      Tensor both = c.arena.alloc({batch.tokens(), 2 * config_.hidden});
      c.backend.rms_norm({.out = both.slice(1, 0, config_.hidden), .x = embedded, .weight = m.embedding_norm, .eps = eps});
      c.backend.rms_norm({.out = both.slice(1, config_.hidden, config_.hidden), .x = hidden, .weight = m.hidden_norm, .eps = eps});
      c.backend.linear({.out = x, .x = both, .weight = m.combine});
    }
    c.backend.rms_norm({.out = normed, .x = x, .weight = m.layer.attention_norm, .eps = eps});
    m.layer.forward(c, batch, x, normed, decoder_.rotary, m.head_norm, eps);
    return {.hidden = normed, .logits = vocabulary_logits(c, normed, batch.logit_rows, decoder_.head)};
  }

 private:
  void declare_layer(WeightStore& store, DecoderLayer<MlaBlock>& layer, const std::string& prefix, bool moe,
                     const MoeBlock::Routing& routing) {
    layer.declare_norms(store, prefix, config_.hidden);
    layer.attention.declare(store, prefix + "self_attn.", config_);
    layer.feed_forward.is_moe = moe;
    if (moe) layer.feed_forward.moe.declare(store, prefix + "mlp.", config_, routing);
    else layer.feed_forward.mlp.declare(store, prefix + "mlp.", config_, config_.intermediate, WeightClass::kMlp);
  }

  void declare_mtp(WeightStore& store, MtpModule& m, const std::string& prefix, const MoeBlock::Routing& routing) {
    store.vector(&m.embedding_norm, prefix + "enorm.weight", config_.hidden);
    store.vector(&m.hidden_norm, prefix + "hnorm.weight", config_.hidden);
    store.vector(&m.head_norm, prefix + "shared_head.norm.weight", config_.hidden);
    store.matrix(&m.combine, prefix + "eh_proj.weight", config_.hidden, 2 * config_.hidden, WeightClass::kMlp);
    store.ignore(prefix + "embed_tokens.weight");
    store.ignore(prefix + "shared_head.head.weight");
    declare_layer(store, m.layer, prefix, config_.moe.experts > 0, routing);
  }

  // Parameters read for one token: everything but the embedding, with top_k of the experts.
  void count_active(const WeightStore& store) {
    for (int c = 0; c < kWeightClassCount; c++) {
      auto weight_class = static_cast<WeightClass>(c);
      int64_t n = store.total(weight_class).parameters;
      if (weight_class == WeightClass::kEmbedding) n = 0;
      if (weight_class == WeightClass::kExpert && config_.moe.experts > 0) n = n / config_.moe.experts * config_.moe.top_k;
      active_ += n;
    }
    if (store.total(WeightClass::kHead).parameters == 0) active_ += config_.vocab * config_.hidden;
    active_ += store.vector_total().parameters;
  }

  ModelConfig config_;
  Decoder<MlaBlock> decoder_;
  std::vector<std::unique_ptr<MtpModule>> modules_;
  int64_t active_ = 0;
};

}  // namespace

std::unique_ptr<Model> make_deepseek(const ModelConfig& config, WeightStore& store, MoeBlock::Routing routing, bool mtp) {
  return std::make_unique<DeepseekModel>(config, store, routing, mtp);
}

}  // namespace dg
