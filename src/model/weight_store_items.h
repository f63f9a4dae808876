// One declared tensor of a WeightStore; private to weight_store.cpp and weight_load.cpp.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "model/weight_source.h"
#include "model/weight_store.h"

namespace dg {

struct WeightStore::Item {
  std::string name;
  std::unique_ptr<WeightSource> source;  // null: constant, or planning
  const Format* source_format = nullptr;
  const Format* format = nullptr;  // as it is kept
  WeightClass weight_class = WeightClass::kAttention;
  bool is_vector = false;
  bool as_product = false, as_rows = false;  // how it was declared
  bool prepared = false;                     // `data` is laid out by the backend, scales included
  bool keeps_columns = false;                // act order stays; else the loader puts the columns in order
  WeightPart part;                           // of the published matrix
  int64_t out = 0, in = 0;                   // of the part
  int64_t data_bytes = 0, scale_bytes = 0;
  int64_t data_offset = 0, scale_offset = 0, columns_offset = 0;  // fixed by allocate()
  std::vector<Weight*> weights;                                   // views to fill in; several when declared several times
  std::vector<Tensor*> tensors;
  std::vector<float> constant;

  int64_t columns_bytes() const { return keeps_columns ? in * static_cast<int64_t>(sizeof(int32_t)) : 0; }
};

}  // namespace dg
