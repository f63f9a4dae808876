// WeightSource: one published matrix, delivered as rows of a Format whatever the checkpoint's scheme is. A scheme (plain
// tensors, FP8 with scales, AWQ, GPTQ, compressed-tensors, MXFP4 ...) is one class in a file weight_source_<scheme>.cpp and
// one line of the list in weight_source.cpp. Which scheme a matrix has is seen from the tensors that exist, so that
// modules which a checkpoint leaves unquantised need no list of names.
//
// Making a source checks names, dtypes and shapes; what only the values can tell (NaN, zero points, groups) is checked while
// reading. Sources are immutable: any thread may read, each with its own LoadScratch.
#pragma once
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/tensor_index.h"
#include "model/quant_config.h"
#include "model/weight_part.h"
#include "quant/format.h"

namespace dg {

class WeightSource;

// Working memory of one loading thread. The loader reads a matrix in tasks, each in one or more calls of read(); what a
// source keeps between them (`strip`, `order`, `groups`) is that of one task.
struct LoadScratch {
  int64_t task_first = 0, task_rows = 0;  // of the calls to come, set by the loader
  std::vector<std::byte> strip, raw;
  std::vector<std::byte> part_data, part_scales;  // whole rows, of which a part is kept
  std::vector<int32_t> order, groups;
  const WeightSource* strip_of = nullptr;  // what `strip` holds: of this source, from this row, so many rows
  int64_t strip_first = -1, strip_rows = 0;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  WeightSource(const WeightSource&) = delete;
  WeightSource& operator=(const WeightSource&) = delete;

  const Format& format() const { return *format_; }
  int64_t out() const { return out_; }
  int64_t in() const { return in_; }
  // The checkpoint's tensors that it consists of; the first one is the largest (its place in the files orders reading).
  const std::vector<const TensorInfo*>& tensors() const { return tensors_; }

  // Rows [first, first + rows) in format(): data of format().data_bytes(rows, in), scales of scale_bytes(rows, in). `first`
  // is a multiple of kReadRows, or where a part may be cut (cuts()). The error names file, tensor, what was expected and found.
  static constexpr int64_t kReadRows = 128;
  virtual Result<void> read(int64_t first, int64_t rows, std::byte* data, std::byte* scales, LoadScratch& scratch) const = 0;

  // Rows of a task when the published layout runs across rows, so that a task is read as a strip of a few MiB; 0: any do.
  virtual int64_t strip_rows() const { return 0; }

  // Act order: column k of the delivered rows multiplies x[columns()[k]]. Only called when permuted().
  virtual bool permuted() const { return false; }
  virtual Result<std::vector<int32_t>> columns() const { return std::vector<int32_t>(); }

  // Where part_of_source() may cut.
  WeightCuts cuts() const {
    WeightCuts cuts = cuts_of(*format_);
    return {std::lcm(cuts.rows, rows_of_word()), permuted() ? 0 : cuts.columns};
  }
  const TensorIndex& index() const { return index_; }

 protected:
  // Rows that share a published word: read() begins and ends at a multiple, or at the end.
  virtual int64_t rows_of_word() const { return 1; }
  WeightSource(const TensorIndex& index, const Format& format, int64_t out, int64_t in)
      : index_(index), format_(&format), out_(out), in_(in) {}
  std::string where(const TensorInfo& info) const;  // "path: tensor name"

  const TensorIndex& index_;
  const Format* format_;
  int64_t out_, in_;
  std::vector<const TensorInfo*> tensors_;
};

// The source of matrix `name` (as an unquantised checkpoint names it: "....weight"), or why there is none.
Result<std::unique_ptr<WeightSource>> find_weight_source(const TensorIndex& index, const QuantConfig& config, const std::string& name,
                                                         int64_t out, int64_t in);
// A vector (norm, bias) as one row.
Result<std::unique_ptr<WeightSource>> find_vector_source(const TensorIndex& index, const std::string& name, int64_t size);
// Whether the matrix or vector is there under any scheme.
bool has_weight_source(const TensorIndex& index, const std::string& name);

// The format in which matrices arrive when only config.json is known (planning).
const Format& assumed_format(const QuantConfig& config);

}  // namespace dg
