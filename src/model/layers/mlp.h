// Feed-forward blocks: the gated MLP and the mixture of experts.
#pragma once
#include "model/layers/linear.h"

namespace dg {

// down(silu(gate x) * up x): the part of this rank, which the ranks add up. So is that of MoeBlock.
struct Mlp {
  void declare(WeightStore& store, const std::string& prefix, const ModelConfig& config, int64_t inner, WeightClass weight_class,
               bool bias = false);
  Tensor forward(Ctx& c, Tensor x) const;

  Weight gate, up, down;
  Tensor gate_bias, up_bias, down_bias;  // optional
};

// Router, routed experts and shared experts (fused by the checkpoint into one MLP of `shared * intermediate`).
struct MoeBlock {
  struct Routing {
    RouterScore score = RouterScore::kSoftmax;
    GroupScore group_score = GroupScore::kMax;
    bool groups = false;  // limit the choice to the best groups
    bool normalise = false;
    bool correction_bias = false;  // e_score_correction_bias
  };
  void declare(WeightStore& store, const std::string& prefix, const ModelConfig& config, Routing routing);
  Tensor forward(Ctx& c, Tensor x) const;

  ModelConfig::Moe config;
  Routing routing;
  Weight router;
  Tensor bias;                  // (experts), optional
  std::vector<Expert> experts;  // of this rank, from the one with this id
  int first_expert = 0;
  Mlp shared;
};

// The feed-forward half of a decoder layer: one or the other.
struct FeedForward {
  bool is_moe = false;
  Mlp mlp;
  MoeBlock moe;
  Tensor forward(Ctx& c, Tensor x) const { return is_moe ? moe.forward(c, x) : mlp.forward(c, x); }
};

}  // namespace dg
