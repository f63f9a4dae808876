#include "model/arch/dense.h"

#include <fmt/core.h>

namespace dg {
namespace {

class DenseModel : public Model {
 public:
  DenseModel(const ModelConfig& config, WeightStore& store, DenseOptions options) : config_(config) {
    decoder_.declare_ends(store, config, config.head_dim);
    for (size_t i = 0; i < decoder_.layers.size(); i++) {
      std::string prefix = fmt::format("model.layers.{}.", i);
      auto& layer = decoder_.layers[i];
      layer.declare_norms(store, prefix, config.hidden);
      layer.attention.declare(store, prefix + "self_attn.", config, options.attention);
      layer.feed_forward.mlp.declare(store, prefix + "mlp.", config, config.intermediate, WeightClass::kMlp, options.mlp_bias);
    }
    for (int c = 0; c < kWeightClassCount; c++)
      if (static_cast<WeightClass>(c) != WeightClass::kEmbedding) active_ += store.total(static_cast<WeightClass>(c)).parameters;
    if (store.total(WeightClass::kHead).parameters == 0) active_ += config.vocab * config.hidden;  // tied: read as the head
    active_ += store.vector_total().parameters;
  }

  const ModelConfig& config() const override { return config_; }
  void register_cache(CacheLayout& layout) override {
    for (size_t i = 0; i < decoder_.layers.size(); i++) decoder_.layers[i].attention.register_cache(layout, fmt::format("layer.{}", i));
  }
  ForwardResult forward(Ctx& c, const Batch& batch) override { return decoder_.forward(c, batch, config_.rms_eps); }
  int64_t first_logit() const override { return decoder_.first_logit; }
  int64_t active_parameters() const override { return active_; }

 private:
  ModelConfig config_;
  Decoder<GqaAttention> decoder_;
  int64_t active_ = 0;
};

}  // namespace

std::unique_ptr<Model> make_dense(const ModelConfig& config, WeightStore& store, DenseOptions options) {
  return std::make_unique<DenseModel>(config, store, options);
}

}  // namespace dg
