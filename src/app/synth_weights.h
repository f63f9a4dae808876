// Where the commands that write checkpoints take their numbers from: random, or another checkpoint.
#pragma once
#include <cstdint>
#include <string>

#include "base/result.h"
#include "io/tensor_index.h"

namespace dg {

// Normal values from a table of quantiles: 12 random bits pick one, which is plenty for weights and fast.
class Normal {
 public:
  explicit Normal(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ULL + 1) {
    // Sum of three uniforms has the right first moments; sampled once into the table.
    for (float& v : table_) v = (uniform() + uniform() + uniform() - 1.5f) * 2.0f;
  }
  float next() { return table_[bits() >> 52]; }
  void reseed(uint64_t seed) { state_ = seed * 0x9e3779b97f4a7c15ULL + 1; }  // keeps the table

 private:
  uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    return state_ ^= state_ << 17;
  }
  float uniform() { return static_cast<float>(bits() >> 40) * 0x1p-24f; }
  uint64_t state_;
  float table_[4096];
};

// Rows of the matrices and vectors of a model by their Hugging Face names. Any thread may call rows().
class WeightRows {
 public:
  virtual ~WeightRows() = default;
  // out[0, rows * in) = rows [first, first + rows) of tensor `name` (out, in); a vector is one row.
  virtual Result<void> rows(const std::string& name, int64_t out_rows, int64_t in, int64_t first, int64_t rows, float* out) const = 0;
};

// Matrices with standard deviation 1/sqrt(in), so that activations keep their size through the layers; vectors 1, biases 0.
// The numbers depend on seed, name and row alone.
class RandomWeightRows : public WeightRows {
 public:
  explicit RandomWeightRows(uint64_t seed) : normal_(seed), seed_(seed) {}
  Result<void> rows(const std::string& name, int64_t out_rows, int64_t in, int64_t first, int64_t rows, float* out) const override;

 private:
  Normal normal_;
  uint64_t seed_;
};

// A checkpoint: F32, F16, BF16, FP8 with 128 x 128 block scales, or GGUF's formats.
class CheckpointWeightRows : public WeightRows {
 public:
  explicit CheckpointWeightRows(const TensorIndex& index) : index_(index) {}
  Result<void> rows(const std::string& name, int64_t out_rows, int64_t in, int64_t first, int64_t rows, float* out) const override;

 private:
  const TensorIndex& index_;
};

}  // namespace dg
