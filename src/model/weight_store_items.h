// One declared tensor of a WeightStore; private to weight_store.cpp and weight_load.cpp.
#pragma once
#include <string>
#include <vector>

#include "model/weight_store.h"

namespace dg {

struct WeightStore::Item {
  std::string name;
  const TensorInfo* source = nullptr;  // null: constant, or planning
  const TensorInfo* scale = nullptr;   // weight_scale_inv of an FP8 source
  const Format* source_format = nullptr;
  const Format* format = nullptr;
  int64_t out = 0, in = 0;
  int64_t data_offset = 0, scale_offset = 0;
  std::vector<Weight*> weights;  // views to fill in; several when declared several times
  std::vector<Tensor*> tensors;
  std::vector<float> constant;
};

}  // namespace dg
