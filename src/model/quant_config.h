// QuantConfig: how config.json says that a checkpoint's matrices are quantised (quantization_config). Only what the tensors
// themselves do not tell is kept; see weight_source.h.
#pragma once
#include <cstdint>

namespace dg {

struct QuantConfig {
  enum class Method { kNone, kFp8, kAwq, kGptq, kCompressedTensors };
  Method method = Method::kNone;
  int bits = 16;               // AWQ, GPTQ
  int64_t group = 0;           // AWQ, GPTQ: elements of k per scale; -1: the whole row
  bool symmetric = true;       // GPTQ: every zero point is 2^(bits - 1)
  bool act_order = false;      // GPTQ desc_act: groups are made of columns in any order (g_idx)
  bool zero_minus_one = true;  // GPTQ v1 stores zero points less one
};

}  // namespace dg
