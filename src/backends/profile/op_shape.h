// The class of an op in a profile: its name, its fixed dimensions and the power of two that its rows and context fall into.
// Steps of a server differ by a row or two; without classes every one of them would be a line of its own.
#pragma once
#include <cstdint>
#include <string>

#include "device/cost.h"
#include "device/machine.h"

namespace dg {

struct OpShape {
  const char* op = "";
  const Format* format = nullptr;  // of the weights
  const char* cache = "";          // element type of the paged cache
  MathType type = MathType::kF32;  // the fastest type its operands can be multiplied in
  bool decode = false;             // attention: all rows are generation rows
  int64_t dims[4] = {0, 0, 0, 0};
  int64_t rows = 0;     // tokens of the batch
  int64_t context = 0;  // cached tokens, all sequences together

  bool operator==(const OpShape& o) const;  // of the same class: names, dimensions, power of two of rows and context
  size_t hash() const;
};

// 0, 1, 2, 3-4, 5-8, 9-16, ... -> 0, 1, 2, 3, 4, 5, ...
int size_class(int64_t n);

#define DG_DECLARE_SHAPE(method, Op) OpShape shape_of(const Op& op);
DG_OPS(DG_DECLARE_SHAPE)
#undef DG_DECLARE_SHAPE

// "linear 1536x8960 bf16 m=512"; rows and context as ranges where calls differ.
std::string shape_label(const OpShape& shape, int64_t low_rows, int64_t high_rows, int64_t low_context, int64_t high_context);

// device/cost.h with what only the data of a running step tells: how many experts its tokens really chose.
template <class Op>
Cost measured_cost(const Op& op) {
  return cost_of(op);
}
template <>
Cost measured_cost(const MoeExperts& op);

}  // namespace dg
