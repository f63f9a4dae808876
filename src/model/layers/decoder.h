// The pre-norm decoder that all architectures here share: norm -> attention -> add -> norm -> feed-forward -> add, then
// the final norm and the vocabulary projection. An architecture chooses the blocks; `Attention` is GqaAttention or
// MlaBlock.
#pragma once
#include "model/layers/attention.h"
#include "model/layers/mlp.h"
#include "model/split.h"

namespace dg {

template <class AttentionBlock>
struct DecoderLayer {
  Tensor attention_norm, feed_forward_norm;  // (hidden)
  AttentionBlock attention;
  FeedForward feed_forward;

  void declare_norms(WeightStore& store, const std::string& prefix, int64_t hidden) {
    store.vector(&attention_norm, prefix + "input_layernorm.weight", hidden);
    store.vector(&feed_forward_norm, prefix + "post_attention_layernorm.weight", hidden);
  }

  // `x` is the residual stream, whole on every rank as the norms make it; the outputs of attention and feed-forward are parts.
  // `normed` is its attention_norm on entry and next_norm of it on exit.
  void forward(Ctx& c, const Batch& batch, Tensor x, Tensor normed, const Rotary& rotary, Tensor next_norm, float eps) const {
    Arena::Scope scope(c.arena);
    Tensor delta = attention.forward(c, batch, normed, rotary);
    c.backend.add_rms_norm({.out = normed, .residual = x, .delta = delta, .weight = feed_forward_norm, .eps = eps, .partial = true});
    delta = feed_forward.forward(c, normed);
    c.backend.add_rms_norm({.out = normed, .residual = x, .delta = delta, .weight = next_norm, .eps = eps, .partial = true});
  }
};

template <class AttentionBlock>
struct Decoder {
  Weight embedding, head;   // (vocab, hidden); the same storage when tied. Of the head the rows of this rank
  int64_t first_logit = 0;  // the row of the whole head that `head` begins with
  Tensor final_norm;
  Rotary rotary;
  std::vector<DecoderLayer<AttentionBlock>> layers;

  void declare_ends(WeightStore& store, const ModelConfig& config, int64_t rotary_dim) {
    layers.resize(static_cast<size_t>(config.layers));
    store.matrix(&embedding, "model.embed_tokens.weight", config.vocab, config.hidden, WeightClass::kEmbedding, WeightUse::kRows);
    store.vector(&final_norm, "model.norm.weight", config.hidden);
    // Tied when the config says so or when the checkpoint has no head of its own.
    bool tied = config.tie_embeddings || !store.has("lm_head.weight");
    if (tied) store.ignore("lm_head.weight");
    const std::string name = tied ? "model.embed_tokens.weight" : "lm_head.weight";
    const int64_t unit = config.parallel.size == 1 ? 1 : store.cuts(name, config.vocab, config.hidden, WeightClass::kHead).rows;
    const Share share = share_dimension(store, config, config.vocab, unit, "vocabulary");
    first_logit = share.first;
    if (share.count > 0) store.matrix(&head, name, config.vocab, config.hidden, WeightClass::kHead, WeightUse::kProduct, share.rows());
    rotary.declare(store, config.rope, rotary_dim);
  }

  ForwardResult forward(Ctx& c, const Batch& batch, float eps) const {
    Tensor x = embed(c, batch.ids, embedding);
    if (c.observe) c.observe(0, x);
    Tensor normed = rms_norm(c, x, layers[0].attention_norm, eps);
    for (size_t i = 0; i < layers.size(); i++) {
      bool last = i + 1 == layers.size();
      layers[i].forward(c, batch, x, normed, rotary, last ? final_norm : layers[i + 1].attention_norm, eps);
      if (c.observe) c.observe(static_cast<int>(i) + 1, x);
    }
    return {.hidden = normed, .logits = vocabulary_logits(c, normed, batch.logit_rows, head)};
  }
};

}  // namespace dg
