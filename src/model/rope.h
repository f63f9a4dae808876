// Rotary frequencies of a configuration. Formulas: RoFormer; YaRN paper (arXiv:2309.00071); Llama 3.1 release.
#pragma once
#include <vector>

#include "model/config.h"

namespace dg {

struct RopeTable {
  std::vector<float> inv_freq;  // (dim / 2)
  float magnitude = 1;          // multiplies cos and sin
};

RopeTable make_rope_table(const RopeConfig& config, int64_t dim);

// YaRN's attention temperature m(f, k) = 0.1 k ln f + 1 for f > 1, else 1.
double yarn_mscale(double factor, double k);

// Softmax scale of an MLA head: q_dim^-0.5, times m(factor, mscale_all_dim)^2 under YaRN.
float mla_softmax_scale(const RopeConfig& config, int64_t q_dim);

}  // namespace dg
