// WeightPart: the rows and columns of a published matrix that one rank of a tensor-parallel group keeps. Parts are cut where the
// published format allows it: between packs of columns and blocks of scales, so that a part is a matrix of that format itself.
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "quant/format.h"

namespace dg {

class WeightSource;

struct WeightPart {
  int64_t first_row = 0, rows = -1;  // -1: all
  int64_t first_column = 0, columns = -1;
  static WeightPart of_rows(int64_t first, int64_t count) { return {.first_row = first, .rows = count}; }
  static WeightPart of_columns(int64_t first, int64_t count) { return {.first_column = first, .columns = count}; }
  // Of an (out, in) matrix: whether it is all of it, and its shape.
  bool whole(int64_t out, int64_t in) const { return local_out(out) == out && local_in(in) == in; }
  int64_t local_out(int64_t out) const { return rows < 0 ? out : rows; }
  int64_t local_in(int64_t in) const { return columns < 0 ? in : columns; }
};

// Where a matrix can be cut: every so many rows and columns. 0 columns: nowhere.
struct WeightCuts {
  int64_t rows = 1, columns = 1;
};
WeightCuts cuts_of(const Format& format);

// The format in which a part of a matrix of `format` is delivered: the same, except that 128 x 128 blocks of scales which a cut would
// divide become blocks of 32 x 32 with the same scales. `where` begins the error, which says what does not divide.
Result<const Format*> part_format(const Format& format, const WeightCuts& cuts, const WeightPart& part, const std::string& where);

// Delivers a part of what `whole` delivers. Reads whole rows and keeps its columns of them.
Result<std::unique_ptr<WeightSource>> part_of_source(std::unique_ptr<WeightSource> whole, const WeightPart& part, const std::string& where);

}  // namespace dg
